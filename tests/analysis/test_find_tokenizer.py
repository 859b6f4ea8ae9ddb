# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs and models of other tokens than bytes are evaluated and sampled from like those."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from flax import nnx

from pqt_jax import evaluate, generate, train
from pqt_jax.analysis import load
from pqt_jax.data import prepare, tokenizers, tokens
from pqt_jax.interchange import huggingface
from pqt_jax.models import Llama2
from pqt_jax.training.loss import token_losses
from support import tiny
from support.command import refused
from support.tokenizer_files import make

WORDS = "the quick brown fox jumps over the lazy dog".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with `in`, texts; `tokenizer.json`; `out`, their tokens; `run`, trained on them."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "in").mkdir()
    for i in range(30):
        text = " ".join(WORDS[(i + j * j) % 9] for j in range(60 + i))
        (folder / "in" / f"{i}.txt").write_text(text)
    path = make("json", folder)
    given = [f"--input={folder}/in/*", f"--out={folder / 'out'}", "--validation=0.2"]
    assert prepare.main([f"--tokenizer={path}", "--processes=1", *given]) == 0
    arguments = [f"--config.data.tokens={folder / 'out'}", "--config.model.vocab_size=400"]
    run = ["--config=tests/support/tiny.py", f"--workdir={folder / 'run'}", *arguments]
    assert train.main([*run, "--config.steps=40", "--config.method=bf16"]) == 0
    return folder


def measured(folder, *options):
    out = folder / "x.json"
    assert evaluate.main([*options, "--weights=master,fp4_e2m1", f"--json={out}"]) == 0
    return json.loads(out.read_text())


def test_the_validation_text_of_a_run_is_scored_in_nats_and_bits(made, tmp_path, capsys):
    found = measured(tmp_path, f"--workdir={made / 'run'}", "--length=32")
    shown = capsys.readouterr().out
    held = [
        text
        for path in sorted((made / "in").iterdir())
        if prepare.is_validation(text := path.read_bytes(), 0.2)
    ]
    tokenizer = tokenizers.load(str(made / "tokenizer.json"))
    ids = [tokenizer.encode(text) for text in held]
    assert f"{len(held)} documents, {sum(map(len, ids)):,} tokens, " in shown
    assert found["tokenizer"] == "tokenizer.json" and found["documents"] == len(held) > 1
    assert found["scored"] == sum(len(x) - 1 for x in ids)
    first = sum(len(tokenizer.decode(x[:1])) for x in ids)
    assert found["bytes"] == sum(map(len, held)) - first
    for row in found["weights"].values():
        nats, bits = row["loss"]["value"], row["bits_per_byte"]["value"]
        assert bits == pytest.approx(nats * found["scored"] / found["bytes"] / math.log(2))
    assert found["weights"]["master"]["loss"]["value"] < 4  # and not ln 400 = 6
    for i, text in enumerate(held):
        (tmp_path / f"{i}.txt").write_bytes(text)
    given = [f"--workdir={made / 'run'}", "--length=32", f"--data={tmp_path}/*.txt"]
    again = measured(tmp_path, *given)
    for name, row in found["weights"].items():  # the documents are in another order
        loss = again["weights"][name]["loss"]["value"]
        assert loss == pytest.approx(row["loss"]["value"], rel=1e-6)


def test_text_is_generated_in_words(made, capsys):
    given = [f"--workdir={made / 'run'}", "--temperature=0", "--tokens=6"]
    assert generate.main([*given, "--prompt=the quick"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the quick ") and set(re.findall(r"\w\w\w+", out)) & set(WORDS)
    assert generate.main(given) == 0  # from the token that ends documents
    assert "<|endoftext|>" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_hugging_face_folder_brings_its_own(made, tmp_path, capsys):
    config = dataclasses.replace(tiny.LLAMA2, vocab_size=400)
    model = Llama2(config, rngs=nnx.Rngs(0))
    huggingface.save(tmp_path / "m", config, nnx.state(model), dtype="float32")
    data = f"--data={made}/in/0.txt"
    given = [f"--hf={tmp_path / 'm'}", data, "--length=16"]
    message = refused(evaluate.main, given, capsys)
    assert "--tokenizer is missing" in message and "has 400 tokens" in message
    (tmp_path / "m" / "tokenizer.json").write_bytes((made / "tokenizer.json").read_bytes())
    found = measured(tmp_path, *given)
    assert found == measured(tmp_path, *given, f"--tokenizer={made / 'tokenizer.json'}")
    text = (made / "in" / "0.txt").read_bytes()
    ids = np.asarray(tokenizers.load(str(made / "tokenizer.json")).encode(text))
    nats = [
        float(token_losses(model(part[None, :-1]), part[None, 1:]).sum())
        for part in (ids[i : i + 17] for i in range(0, len(ids) - 1, 16))
    ]
    loss = found["weights"]["master"]["loss"]["value"]
    assert loss == pytest.approx(sum(nats) / (len(ids) - 1), rel=1e-5)


@pytest.mark.slow
def test_files_without_a_tokenizer_need_one(made, tmp_path, capsys):
    for part in ("train", "validation"):
        (tmp_path / f"{part[:5]}.bin").write_bytes(
            (made / "out" / f"{part}-00000.bin").read_bytes()
        )
    (tmp_path / "valid.bin").rename(tmp_path / "val.bin")
    run = ["--config=tests/support/tiny.py", f"--workdir={tmp_path / 'run'}", "--config.steps=3"]
    files = f"--config.data.tokens={tmp_path}/*.bin"
    assert train.main([*run, files, "--config.model.vocab_size=400"]) == 0
    capsys.readouterr()
    given = [f"--workdir={tmp_path / 'run'}"]
    load.load_run(tmp_path / "run")  # compiles the sums that a checkpoint is verified by
    for command in (evaluate, generate):
        message = refused(command.main, given, capsys)
        assert "--tokenizer is missing; config.data.tokens=" in message
    given.append(f"--tokenizer={made / 'tokenizer.json'}")
    assert "does not say where a document ends" in refused(evaluate.main, given, capsys)
    assert generate.main([*given, "--tokens=3"]) == 0
    assert evaluate.main([*given, f"--data={made}/in/*", "--weights=master"]) == 0


def test_tokens_that_the_model_does_not_have_are_refused(made, trained_run, capsys):
    given = [f"--workdir={trained_run}", f"--tokenizer={made / 'tokenizer.json'}"]
    message = refused(generate.main, given, capsys)
    assert re.search(
        r"tokenizer tokenizer.json has \d+ tokens, and the model of .* only 256", message
    )
    assert tokens.read_index(made / "out").tokenizer["name"] == "tokenizer.json"


def test_documents_of_characters_that_tokens_cut_are_scored(made, tmp_path):
    for name, text in (("a", "é"), ("b", "漢字"), ("c", "the 𝒳")):
        (tmp_path / f"{name}.txt").write_text(text)
    given = [f"--workdir={made / 'run'}", "--length=32", f"--data={tmp_path}/*.txt"]
    found = measured(tmp_path, *given)
    tokenizer = tokenizers.load(str(made / "tokenizer.json"))
    first = len(tokenizer.decode(tokenizer.encode(b"the")[:1]))
    assert found["bytes"] == (2 - 1) + (6 - 1) + (8 - first)
