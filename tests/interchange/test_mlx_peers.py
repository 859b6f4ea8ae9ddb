# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""mlx_lm loads a folder of few bits: weights bit for bit, logits, and text."""

import dataclasses
from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.analysis import export_folder, load, open_weights
from pqt_jax.analysis.export_folder import Storage
from pqt_jax.analysis.sampling import generate_tokens
from pqt_jax.data import tokenizer_files
from pqt_jax.interchange import huggingface, low_bit
from pqt_jax.interchange.mlx import LAYOUT
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3
from pqt_jax.training import named_formats
from support import tiny
from support.exported import (
    OTHERS,
    make,
    put_matrices,
    random_matrices,
    write_folder,
    write_low_bit,
)

mx = pytest.importorskip("mlx.core", reason="needs the extra 'peers'")
mlx_utils = pytest.importorskip("mlx_lm.utils", reason="needs the extra 'peers'")

CONFIG = dataclasses.replace(
    tiny.LLAMA2, vocab_size=257, d_model=64, d_ff=96, num_heads=4, num_kv_heads=2
)
FORMATS = {
    "fp4": [E2M1],
    "fp8": [E4M3],
    "mixed": [E2M1, E3M2, E4M3, None, E2M3],
}
TOKENS = np.arange(32) * 37 % 256


def write(folder, formats, config=CONFIG):
    config, model = make(config)
    about = {"name": "bytes", "end": "", "pattern": ""}
    sizes = {"vocab_size": config.vocab_size, "max_length": config.max_length}
    write_folder(folder, config, model, tokenizer_files.make_files(about, b"", **sizes))
    matrices = random_matrices(folder, formats)
    put_matrices(model, matrices)
    write_low_bit(folder, LAYOUT, matrices)
    return model, matrices


@pytest.mark.parametrize("name", FORMATS)
def test_mlx_lm_computes_the_same(tmp_path, name):
    ours, matrices = write(tmp_path / "out", FORMATS[name])
    theirs, config = mlx_utils.load_model(tmp_path / "out")
    layers = dict(theirs.named_modules())
    for path, matrix in matrices.items():
        layer = layers[path.removesuffix(".weight")]
        assert layer.mode == {"E2M1": "mxfp4"}.get(matrix.fmt.name, "mxfp8")
        options = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        found = mx.dequantize(layer.weight, layer.scales, dtype=mx.float32, **options)
        assert np.array(found).tobytes() == low_bit.decode(matrix).tobytes()
    quantized = [name for name, layer in layers.items() if hasattr(layer, "mode")]
    assert sorted(quantized) == sorted(path.removesuffix(".weight") for path in matrices)
    found = np.array(theirs(mx.array(TOKENS[None])))
    wanted = np.asarray(ours(jnp.asarray(TOKENS[None])))
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"qwen3 with biases"}))
def test_mlx_lm_knows_other_models(tmp_path, name):
    """But no Qwen 3 with biases, which it refuses."""
    ours, matrices = write(tmp_path / "out", [E2M1, E4M3], OTHERS[name])
    theirs, _ = mlx_utils.load_model(tmp_path / "out")
    found = np.array(theirs(mx.array(TOKENS[None])))
    wanted = np.asarray(ours(jnp.asarray(TOKENS[None])))
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max() and len(matrices) > 10


def test_mlx_lm_computes_the_same_from_an_export(tmp_path):
    config, model = make(CONFIG)
    huggingface.save(tmp_path / "hf", config, nnx.state(model), dtype="float32")
    storage = Storage(layout=LAYOUT, numbers="bfloat16", rest="float32")
    options = Namespace(workdir=None, hf=str(tmp_path / "hf"), packed=None, gguf=None)
    (tmp_path / "out").mkdir()

    def write(source):
        plan = named_formats.make_plan(source.params, source.rules, "fp4_e2m1")
        export_folder.write(tmp_path / "out", source, plan, storage, {})

    open_weights.use_model(options, write)
    plan = named_formats.make_plan(nnx.state(model), load.HF_RULES, "fp4_e2m1")
    nnx.update(model, named_formats.round_by_plan(nnx.state(model), plan))
    theirs, _ = mlx_utils.load_model(tmp_path / "out")
    found = np.array(theirs(mx.array(TOKENS[None])))
    wanted = np.asarray(model(jnp.asarray(TOKENS[None])))
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_mlx_lm_generates_from_the_folder(tmp_path):
    import mlx_lm

    ours, _ = write(tmp_path / "out", FORMATS["mixed"])
    theirs, tokenizer = mlx_utils.load(str(tmp_path / "out"))
    prompt = tokenizer.encode("the é")
    assert prompt == list("the é".encode())
    steps = mlx_lm.stream_generate(theirs, tokenizer, prompt, max_tokens=40)
    found = [step.token for step in steps]
    graph, params = nnx.split(ours)
    wanted = generate_tokens(
        graph, params, jnp.array([prompt]), steps=40, key=jax.random.key(0), temperature=0
    )
    assert found == wanted[0].tolist() and len(set(found)) > 3
    text = mlx_lm.generate(theirs, tokenizer, "the é", max_tokens=40)
    assert text == bytes(found).decode(errors="replace")
