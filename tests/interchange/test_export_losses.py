# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The loss of an exported run is the same by our `evaluate` and by transformers."""

import json
import warnings

import numpy as np
import pytest

from pqt_jax import evaluate, export
from pqt_jax.analysis.score import Document, make_windows
from support import tiny

REASON = "needs the extra 'peers', on Python 3.11"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

LENGTH = 16
CASES = [("huggingface", "master"), ("huggingface", "fp4_e2m1"), ("gguf", "fp4_e2m1")]
CASES += [("compressed-tensors", "fp4_e2m1"), ("compressed-tensors", "fp8_e4m3")]


@pytest.mark.slow
@pytest.mark.parametrize("layout, name", CASES)
def test_transformers_has_our_loss(trained_run, tmp_path, layout, name):
    out, text = tmp_path / "out", tiny.write_text(tmp_path / "text.txt", 3000)
    given = [f"--workdir={trained_run}", f"--layout={layout}", f"--format={name}"]
    assert export.main([*given, f"--out={out}"]) == 0
    source = f"--gguf={out / 'model.gguf'}" if layout == "gguf" else f"--hf={out}"
    given = [source, f"--data={text}", f"--length={LENGTH}", "--weights=master"]
    assert evaluate.main([*given, f"--json={tmp_path / 'ours.json'}"]) == 0
    ours = json.loads((tmp_path / "ours.json").read_text())["weights"]["master"]["loss"]["value"]
    assert abs(loss(out, layout, text) - ours) < 1e-5


def loss(folder, layout, text):
    """Nats per token by transformers in float32, of the windows that `evaluate` scores."""
    options = {"dtype": torch.float32}
    if layout == "gguf":
        options["gguf_file"] = "model.gguf"
    if layout == "compressed-tensors":
        pytest.importorskip("compressed_tensors", reason=REASON)
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that go before those of config.json
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    tokens = np.frombuffer(text.read_bytes(), np.uint8)
    windows = make_windows([Document(tokens, len(tokens) - 1)], LENGTH)
    rows = torch.from_numpy(windows.tokens.astype(np.int64))
    with torch.no_grad():
        logits = model(rows[:, :-1]).logits.double()
    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )
    scored = torch.arange(rows.shape[1] - 1)[None] < torch.from_numpy(windows.counts)[:, None]
    return (nats * scored.flatten()).sum().item() / windows.counts.sum()
