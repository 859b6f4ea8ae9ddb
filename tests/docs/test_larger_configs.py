# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The commands of docs/train.md start a large config from files on disk."""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from pqt_jax.training.run import metrics
from support import tokenizer_files
from support.paths import ROOT

NARROW = {
    "mesh.fsdp": 1,
    "steps": 2,
    "optimizer.warmup_steps": 0,
    "model.vocab_size": 512,
    "model.d_model": 32,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.d_ff": 64,
    "data.length": 64,
    "data.loss_chunk": 32,
    "data.batch": 4,
    "log.validation_batches": 1,
}


def section(title):
    text = (ROOT / "docs" / "train.md").read_text()
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def write_c4(folder):
    """Files as those of C4: JSON lines with a text, a time and an address, compressed by gzip."""
    folder.mkdir(parents=True)
    words = tokenizer_files.TEXT.split()
    for number in range(3):
        name = f"c4-train.{number:05}-of-01024.json.gz"
        with gzip.open(folder / name, "wt") as file:
            for i in range(400):
                text = " ".join(words[(i * number + j * j) % len(words)] for j in range(i, i + 60))
                line = {"text": f"{i}. {text}", "timestamp": "2019-04-25T12:57:54Z", "url": "u"}
                file.write(json.dumps(line) + "\n")


def run(command, folder, *more):
    name, *rest = shlex.split(command)
    assert name == "python"
    return subprocess.run(
        [sys.executable, *rest, *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_folder_of_c4_and_a_tokenizer_become_a_run_by_three_commands(tmp_path):
    install, prepare, train = re.search(r"```sh\n(.*?)\n```", section("Larger configs"), re.DOTALL)[
        1
    ].splitlines()
    assert install == "pip install -e '.[data]'"
    write_c4(tmp_path / "c4" / "en")
    tokenizer_files.make_hugging_face(tmp_path / "tokenizer.json")
    narrow = [f"--config.{name}={value}" for name, value in NARROW.items()]

    refused = run(train, tmp_path, *narrow)  # the first obstacle names the command before
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    said = re.search(r"make that folder by (python .*? --out \S+),", refused.stderr)[1]
    assert re.sub("FILES?", "", said).split() == [
        word for word in prepare.split() if not re.search(r"tokenizer\.json|gz", word)
    ]

    done = run(prepare, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(train, tmp_path, *narrow)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    records = metrics.read(tmp_path / "runs" / "llama2_1b" / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == [2]


@pytest.mark.parametrize("name", ["gpt2_124m", "llama2_134m", "llama2_1b"])
def test_a_config_says_how_its_data_is_made(name):
    about = (ROOT / "configs" / f"{name}.py").read_text()
    command = " ".join(
        re.search(r"^Data +(.*?)^Command", about, re.DOTALL | re.MULTILINE)[1].split()
    )
    assert command.startswith("python -m pqt_jax.data.prepare --tokenizer tokenizer.json --input ")
    out = command.split(" --out ")[1]
    assert f'config.data.tokens = "{out}"' in about
    assert f"| `{name}` |" in section("Larger configs") and f"`{out}`" in section("Larger configs")
