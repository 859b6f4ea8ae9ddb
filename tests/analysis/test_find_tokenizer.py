# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs and models with a tokenizer are evaluated and sampled from, as those of bytes are."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from pqt_jax import evaluate, generate, train
from pqt_jax.analysis import evaluation_text, find_tokenizer, load
from pqt_jax.data import prepare, tokenizers, tokens
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface
from pqt_jax.models import Llama2
from pqt_jax.training.loss import token_losses
from pqt_jax.training.run import tokenizer_copy
from support import tiny
from support.command import refused
from support.document_files import is_held_out
from support.session import shared_folder
from support.tokenizer_files import make

WORDS = "the quick brown fox jumps over the lazy dog".split()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with `in`, texts; `tokenizer.json`; `out`, their tokens; `run`, trained on them."""
    return shared_folder(tmp_path_factory, "run-on-tokens", train_on_tokens)


def train_on_tokens(folder):
    (folder / "in").mkdir()
    for i in range(30):
        text = " ".join(WORDS[(i + j * j) % 9] for j in range(60 + i))
        (folder / "in" / f"{i}.txt").write_text(text)
    path = make("json", folder)
    arguments = [f"--input={folder}/in/*", f"--out={folder / 'out'}", "--validation=0.2"]
    assert prepare.main([f"--tokenizer={path}", "--processes=1", *arguments]) == 0
    arguments = [f"--config.data.tokens={folder / 'out'}", "--config.model.vocab_size=400"]
    run = ["--config=tests/support/tiny.py", f"--workdir={folder / 'run'}", *arguments]
    assert train.main([*run, "--config.steps=40", "--config.method=bf16"]) == 0


def evaluate_json(folder, *options):
    out = folder / "x.json"
    assert evaluate.main([*options, "--weights=master,fp4_e2m1", f"--json={out}"]) == 0
    return json.loads(out.read_text())


def test_the_validation_text_of_a_run_is_scored_in_nats_and_bits(prepared, tmp_path, capsys):
    results = evaluate_json(tmp_path, f"--workdir={prepared / 'run'}", "--length=32")
    shown = capsys.readouterr().out
    held_out = [
        text
        for path in sorted((prepared / "in").iterdir())
        if is_held_out(text := path.read_bytes(), 0.2)
    ]
    tokenizer = tokenizers.load(str(prepared / "tokenizer.json"))
    ids = [tokenizer.encode(text) for text in held_out]
    assert f"{len(held_out)} documents, {sum(map(len, ids)):,} tokens, " in shown
    assert results["tokenizer"] == "tokenizer.json" and results["documents"] == len(held_out) > 1
    assert results["scored"] == sum(len(x) - 1 for x in ids)
    first = sum(len(tokenizer.decode(x[:1])) for x in ids)
    assert results["bytes"] == sum(map(len, held_out)) - first
    for row in results["weights"].values():
        nats, bits = row["loss"]["value"], row["bits_per_byte"]["value"]
        assert bits == pytest.approx(nats * results["scored"] / results["bytes"] / math.log(2))
    assert results["weights"]["master"]["loss"]["value"] < 4  # and not ln 400 = 6
    for i, text in enumerate(held_out):
        (tmp_path / f"{i}.txt").write_bytes(text)
    arguments = [f"--workdir={prepared / 'run'}", "--length=32", f"--data={tmp_path}/*.txt"]
    again = evaluate_json(tmp_path, *arguments)
    for name, row in results["weights"].items():  # the documents are in another order
        loss = again["weights"][name]["loss"]["value"]
        assert loss == pytest.approx(row["loss"]["value"], rel=1e-6)


@pytest.mark.slow
def test_text_is_generated_in_words(prepared, capsys):
    arguments = [f"--workdir={prepared / 'run'}", "--temperature=0", "--tokens=6"]
    assert generate.main([*arguments, "--prompt=the quick"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the quick ") and set(re.findall(r"\w\w\w+", out)) & set(WORDS)
    assert generate.main(arguments) == 0  # from the token that ends documents
    assert "<|endoftext|>" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_hugging_face_folder_brings_its_own(prepared, tmp_path, capsys):
    config = dataclasses.replace(tiny.LLAMA2, vocab_size=400)
    model = Llama2(config, rngs=nnx.Rngs(0))
    huggingface.save(tmp_path / "m", config, nnx.state(model), dtype="float32")
    data = f"--data={prepared}/in/0.txt"
    arguments = [f"--hf={tmp_path / 'm'}", data, "--length=16"]
    message = refused(evaluate.main, arguments, capsys)
    assert "--tokenizer is missing" in message and "has 400 tokens" in message
    (tmp_path / "m" / "tokenizer.json").write_bytes((prepared / "tokenizer.json").read_bytes())
    results = evaluate_json(tmp_path, *arguments)
    assert results == evaluate_json(
        tmp_path, *arguments, f"--tokenizer={prepared / 'tokenizer.json'}"
    )
    text = (prepared / "in" / "0.txt").read_bytes()
    ids = np.asarray(tokenizers.load(str(prepared / "tokenizer.json")).encode(text))
    nats = [
        float(token_losses(model(part[None, :-1]), part[None, 1:]).sum())
        for part in (ids[i : i + 17] for i in range(0, len(ids) - 1, 16))
    ]
    loss = results["weights"]["master"]["loss"]["value"]
    assert loss == pytest.approx(sum(nats) / (len(ids) - 1), rel=1e-5)


@pytest.mark.slow
def test_files_without_a_tokenizer_need_one(prepared, tmp_path, capsys):
    for part in ("train", "validation"):
        (tmp_path / f"{part[:5]}.bin").write_bytes(
            (prepared / "out" / f"{part}-00000.bin").read_bytes()
        )
    (tmp_path / "valid.bin").rename(tmp_path / "val.bin")
    run = ["--config=tests/support/tiny.py", f"--workdir={tmp_path / 'run'}", "--config.steps=3"]
    files = f"--config.data.tokens={tmp_path}/*.bin"
    assert train.main([*run, files, "--config.model.vocab_size=400"]) == 0
    capsys.readouterr()
    arguments = [f"--workdir={tmp_path / 'run'}"]
    load.load_run(tmp_path / "run")  # compiles the sums that a checkpoint is verified by
    for command in (evaluate, generate):
        message = refused(command.main, arguments, capsys)
        assert "--tokenizer is missing; config.data.tokens=" in message
    arguments.append(f"--tokenizer={prepared / 'tokenizer.json'}")
    assert "does not say where a document ends" in refused(evaluate.main, arguments, capsys)
    assert generate.main([*arguments, "--tokens=3"]) == 0
    assert evaluate.main([*arguments, f"--data={prepared}/in/*", "--weights=master"]) == 0


def test_tokens_that_the_model_does_not_have_are_refused(prepared, trained_run, capsys):
    arguments = [f"--workdir={trained_run}", f"--tokenizer={prepared / 'tokenizer.json'}"]
    load.load_run(trained_run)  # compiles the sums that a checkpoint is verified by
    message = refused(generate.main, [*arguments, "--prompt=the quick"], capsys)
    assert re.search(
        r"the prompt holds token \d+ of tokenizer tokenizer.json, and the model of .* has 256",
        message,
    )
    assert tokens.read_index(prepared / "out").tokenizer["name"] == "tokenizer.json"


def test_documents_of_characters_that_tokens_cut_are_scored(prepared, tmp_path):
    for name, text in (("a", "é"), ("b", "漢字"), ("c", "the 𝒳")):
        (tmp_path / f"{name}.txt").write_text(text)
    arguments = [f"--workdir={prepared / 'run'}", "--length=32", f"--data={tmp_path}/*.txt"]
    results = evaluate_json(tmp_path, *arguments)
    tokenizer = tokenizers.load(str(prepared / "tokenizer.json"))
    first = len(tokenizer.decode(tokenizer.encode(b"the")[:1]))
    assert results["bytes"] == (2 - 1) + (6 - 1) + (8 - first)


def test_the_pattern_of_tiktoken_is_taken_from_prepared_data_or_said_to_be_missing(
    tmp_path, capsys
):
    path, pattern, text = make("tiktoken", tmp_path), r"\w|\W", b"the the"
    given = tokenizers.load(path, pattern=pattern)
    assert len(given.encode(text)) == 7 != len(tokenizers.load(path).encode(text))
    assert len(find_tokenizer._load_file(path, pattern).encode(text)) == 7
    assert capsys.readouterr().err == ""
    assert len(find_tokenizer._load_file(path, "").encode(text)) != 7
    assert capsys.readouterr().err == (
        f"warning: {path} does not say by which pattern text is split; GPT-2's is used, give "
        "another by --pattern\n"
    )
    about = {"name": given.name, "end": "", "pattern": pattern, "fingerprint": given.fingerprint}
    index = {"version": 1, "dtype": "uint16", "vocab_size": 261, "end": 260, "tokenizer": about}
    shard = {"file": "0.bin", "tokens": 1, "sha256": ""}
    splits = {split: {"shards": [shard], "bytes": 0} for split in tokens.SPLITS}
    (tmp_path / tokens.INDEX).write_text(json.dumps(index | splits))
    tokenizer_copy.write(tmp_path, tokenizer_copy.TokenizerFile(about, Path(path).read_bytes()))
    for place in (path, str(tmp_path / "tokenizer" / given.name)):
        assert len(find_tokenizer._load_file(place, "").encode(text)) == 7
    assert capsys.readouterr().err == ""


def test_a_pattern_needs_a_tokenizer(trained_run, capsys):
    message = refused(generate.main, [f"--workdir={trained_run}", "--pattern=x"], capsys)
    assert "--pattern goes with --tokenizer=FILE.tiktoken; leave it out" in message


def test_a_tokenizer_that_has_changed_is_refused(prepared, tmp_path):
    """In a run of an older version, which has no copy of it."""
    folder, old = tmp_path / "tokens", tmp_path / "run"
    shutil.copytree(prepared / "out", folder)
    assert find_tokenizer._load_of_run(old, str(folder)).vocab_size
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match="tokenizer.json is not the tokenizer that made"):
        find_tokenizer._load_of_run(old, str(folder))


def test_a_run_is_read_from_anywhere_and_after_its_data_is_gone(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "out", tmp_path / "tokens")
    run = shutil.copytree(prepared / "run", tmp_path / "run")
    meta = json.loads((run / "run.json").read_text())
    meta["config"]["data"]["tokens"], meta["directory"] = "tokens", str(tmp_path)
    (run / "run.json").write_text(json.dumps(meta))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = evaluate.parser().parse_args(["--workdir=../run"])
    model = load.load_model(options)
    tokenizer = find_tokenizer.find_tokenizer(options, model)
    _, documents = evaluation_text.read_documents(options, model, tokenizer)
    (tmp_path / "tokens").rename(tmp_path / "moved")
    model = load.load_model(options)
    assert find_tokenizer.find_tokenizer(options, model).fingerprint == tokenizer.fingerprint
    with pytest.raises(
        InputError, match="--data is missing; config.data.tokens='tokens' does not exist"
    ):
        evaluation_text.read_documents(options, model, tokenizer)
    options.data = "../moved"
    name, again = evaluation_text.read_documents(options, model, tokenizer)
    assert name == "--data=../moved" and len(again) == len(documents) > 1
    assert [d.bytes for d in again] == [d.bytes for d in documents]
    with pytest.raises(InputError, match="--data=../moved was made by another tokenizer than the"):
        evaluation_text.read_documents(options, model, tokenizers.load("bytes"))


def test_the_bytes_of_a_text_are_counted_where_tokens_do_not_give_them_back(tmp_path):
    """A tokenizer that leaves out accents and letters' case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    texts = [f"Ünder the  NAÏVE fox {'é' * i}" for i in range(1, 9)]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "<|endoftext|>"]
    trainer = trainers.WordPieceTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    given = [f"--tokenizer={tmp_path}/tokenizer.json", f"--input={tmp_path}/*.txt"]
    given += [f"--out={tmp_path / 'out'}", "--processes=1", "--validation=0.6"]
    assert prepare.main(given) == 0
    text = tokens.load(str(tmp_path / "out"), 400)
    loaded = tokenizers.load(str(tmp_path / "tokenizer.json"))
    found = evaluation_text._split_documents(text, tmp_path / "out", loaded)
    chosen = [x.encode() for x in texts if is_held_out(x.encode(), 0.6)]
    assert len(found) == len(chosen) > 1
    decoded = [len(loaded.decode(document.tokens.tolist())) for document in found]
    factor = sum(map(len, chosen)) / sum(decoded)
    assert factor > 1.1
    first = tokenizers.count_first_token_bytes(loaded, found[0].tokens[:4].tolist())
    wanted = [factor * (size - first) for size in decoded]  # all begin with the same word
    assert [document.bytes for document in found] == pytest.approx(wanted)
