# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""EleutherAI's lm_eval scores a folder offline, with the log-likelihoods that our model gives."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.data import tokenizer_files, tokenizers
from support import tiny
from support.exported import make as make_model
from support.exported import write_folder
from support.tokenizer_files import make

pytest.importorskip("lm_eval", reason="needs the extra 'lm-eval'")
pytest.importorskip("accelerate", reason="needs the extra 'lm-eval'")

TASK = """task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/tiny.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
"""
DOCUMENTS = [
    {"question": "the quick", "choices": ["brown", "fox jumps", "é"], "answer": 0},
    {"question": "über\r\n\tnaïve", "choices": ["東京", "a", "lazy dog"], "answer": 1},
    {"question": "jumps over the", "choices": ["lazy", "dog", "fox"], "answer": 2},
]


def log_likelihood(model, context, continuation):
    tokens = np.array([[*context, *continuation]])
    logits = jax.nn.log_softmax(model(jnp.asarray(tokens)).astype(jnp.float32))[0]
    at = range(len(context) - 1, tokens.size - 1)
    return float(sum(logits[i, tokens[0, i + 1]] for i in at))


@pytest.mark.slow
@pytest.mark.parametrize("kind, size", [("bytes", 256), ("json", 400)])
def test_lm_eval_scores_a_folder(tmp_path, kind, size):
    path = make(kind, tmp_path)
    tokenizer = tokenizers.load(path)
    content = b"" if path == "bytes" else (tmp_path / tokenizer.name).read_bytes()
    about = {"name": tokenizer.name, "end": "", "pattern": ""}
    config, model = make_model(dataclasses.replace(tiny.LLAMA2, vocab_size=size))
    sizes = {"vocab_size": size, "max_length": config.max_length}
    found = tokenizer_files.make_files(about, content, ends=kind != "bytes", **sizes)
    write_folder(tmp_path / "out", config, model, found)
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(x) + "\n" for x in DOCUMENTS))
    (tmp_path / "tiny.yaml").write_text(TASK.format(folder=tmp_path))
    arguments = ["--model=hf", f"--model_args=pretrained={tmp_path / 'out'},dtype=float32"]
    arguments += ["--tasks=tiny", f"--include_path={tmp_path}", "--device=cpu", "--batch_size=2"]
    arguments += [f"--output_path={tmp_path / 'results'}", "--log_samples"]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    process = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *arguments],
        env={**os.environ, **offline, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    (samples,) = (tmp_path / "results").rglob("samples_tiny_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == len(DOCUMENTS)
    correct = 0
    for line in lines:
        document = line["doc"]
        context = tokenizer.encode(document["question"].encode())
        ours = []
        for choice in document["choices"]:
            whole = tokenizer.encode(f"{document['question']} {choice}".encode())
            assert list(whole[: len(context)]) == list(context)
            ours.append(log_likelihood(model, context, whole[len(context) :]))
        theirs = [float(one[0][0]) for one in line["resps"]]
        np.testing.assert_allclose(theirs, ours, rtol=1e-4)
        correct += int(np.argmax(ours)) == document["answer"]
    (results,) = (tmp_path / "results").rglob("results_*.json")
    score = json.loads(results.read_text())["results"]["tiny"]["acc,none"]
    assert score == pytest.approx(correct / len(DOCUMENTS))
