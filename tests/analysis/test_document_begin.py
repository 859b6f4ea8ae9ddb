# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents begin with a BOS where the model was trained so, in `generate` and in `evaluate`."""

import dataclasses
import json
from argparse import Namespace

import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer

from pqt_jax import evaluate, export, generate
from pqt_jax.analysis import document_begin, evaluation_text, generation
from pqt_jax.data import prepare, tokenizers, tokens
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface
from pqt_jax.models import Llama2
from pqt_jax.training.loss import token_losses
from pqt_jax.training.run import tokenizer_copy
from support import tiny
from support.command import refused
from support.document_files import without_processes
from support.tokenizer_files import make


def write_folder(folder, kind="words", config=None, tokenizer_config=None, vocab_size=400):
    """A Hugging Face folder of a Llama with a tokenizer, and its model."""
    settings = dataclasses.replace(tiny.LLAMA2, vocab_size=vocab_size)
    model = Llama2(settings, rngs=nnx.Rngs(0))
    huggingface.save(folder, settings, nnx.state(model), dtype="float32")
    make(kind, folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["bos_token_id"]
    path.write_text(json.dumps(content | (config or {})))
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return model


def find_begin(tokenizer, bos=None, trained=None, **origin):
    options = Namespace(
        **{"hf": None, "workdir": None, "packed": None, "gguf": None, "bos": bos} | origin
    )
    return document_begin.set_begin(options, tokenizer, trained).begin


def test_the_data_of_a_run_decides(tmp_path):
    tokenizer = tokenizers.load(make("model", tmp_path))
    assert tokenizer.begin == 1
    for origin in ({"workdir": "run"}, {"packed": "folder"}):
        assert find_begin(tokenizer, **origin) is None
        assert find_begin(tokenizer, bos=True, **origin) == 1
        assert find_begin(tokenizer, trained=1, **origin) == 1
        assert find_begin(tokenizer, trained=1, bos=False, **origin) is None
        assert find_begin(tokenizer, trained=7, bos=True, **origin) == 7
    with pytest.raises(InputError, match="--bos: tokenizer bytes has none; leave it out"):
        find_begin(tokenizers.load("bytes"), bos=True, workdir="run")


@pytest.mark.parametrize(
    "kind, config, tokenizer_config, begin",
    [
        ("words", {}, None, 1),  # its post-processor adds it
        ("words", {"bos_token_id": 1}, None, 1),
        ("words", {"bos_token_id": None}, None, None),  # as we export
        ("words", {}, {"add_bos_token": False}, None),
        ("json", {"bos_token_id": 7}, None, None),
        ("json", {"bos_token_id": 7}, {"add_bos_token": True}, 7),
        ("model", {"bos_token_id": 1}, {}, 1),
        ("model", {"bos_token_id": 1}, {"add_bos_token": False}, None),
        ("tiktoken", {}, {"add_bos_token": True}, None),
    ],
)
def test_the_files_of_a_folder_decide(tmp_path, kind, config, tokenizer_config, begin):
    tokenizer = tokenizers.load(make(kind, tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    if tokenizer_config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    assert find_begin(tokenizer, hf=str(tmp_path)) == begin
    assert find_begin(tokenizer, bos=False, hf=str(tmp_path)) is None


@pytest.mark.parametrize(
    "kind, text, begin, is_masked, start, tokens",
    [
        ("words", None, 1, False, 1, [1]),
        ("words", None, 1, True, 1, [1]),
        ("words", b"a b", 1, False, 1, [1, 3, 4]),
        ("words", None, None, False, 1, [2]),  # the end of the document before
        ("words", b"a b", None, False, 0, [3, 4]),
        ("bytes", None, None, False, 0, [10]),
        ("bytes", None, None, True, 0, [10]),
        ("bytes", b"\n", None, False, 0, [10]),
    ],
)
def test_what_a_prompt_begins_with(tmp_path, kind, text, begin, is_masked, start, tokens):
    tokenizer = tokenizers.load(make(kind, tmp_path))._replace(begin=begin)
    found, prompt = generation._tokenize(text, tokenizer, is_masked)
    assert (found, prompt.tolist()) == (start, tokens)


def test_a_shipped_model_scores_all_tokens_after_bos(tmp_path, capsys):
    model = write_folder(tmp_path / "m")
    ids = [3, 4, 5, 3, 9, 10, 4, 4]
    (tmp_path / "a.txt").write_text("a b c a 0 1 b b")
    arguments = [f"--hf={tmp_path / 'm'}", f"--data={tmp_path}/a.txt", "--weights=master"]
    results = {}
    for name, bos in (("shipped", []), ("without", ["--no-bos"])):
        out = tmp_path / f"{name}.json"
        assert evaluate.main([*arguments, *bos, "--length=16", f"--json={out}"]) == 0
        results[name] = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert "9 tokens, 8 scored once each (each document begins with BOS, token 1)" in shown
    assert "8 tokens, 7 scored once each (the first token of a document has no context)" in shown
    assert [results[name]["begin"] for name in results] == [1, None]
    assert [results[name]["bytes"] for name in results] == [15, 14]
    for name, document in (("shipped", np.array([1, *ids])), ("without", np.array(ids))):
        nats = float(token_losses(model(document[None, :-1]), document[None, 1:]).mean())
        assert results[name]["weights"]["master"]["loss"]["value"] == pytest.approx(nats, rel=1e-5)


def test_a_token_that_the_model_lacks_is_named(tmp_path, capsys):
    write_folder(tmp_path / "m", vocab_size=10)  # the tokenizer has 19
    arguments = [f"--hf={tmp_path / 'm'}", "--tokens=2", "--prompt"]
    assert generate.main([*arguments, "a b 0"]) == 0  # tokens 1, 3, 4 and 9
    message = refused(generate.main, [*arguments, "a b 1"], capsys)
    assert "the prompt holds token 10 of tokenizer tokenizer.json, and the model of " in message
    assert "has 10 tokens; give the model's tokenizer by --tokenizer" in message
    (tmp_path / "a.txt").write_text("a 1")
    arguments = [f"--hf={tmp_path / 'm'}", f"--data={tmp_path}/a.txt"]
    assert "a.txt, document 1 holds token 10 of" in refused(evaluate.main, arguments, capsys)
    config = tmp_path / "m" / "tokenizer_config.json"
    config.write_text('{"add_bos_token": true}')
    make("json", tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": 10}))
    assert "a document that begins by BOS holds token 10" in refused(
        evaluate.main, arguments, capsys
    )


@pytest.mark.slow
def test_what_was_trained_with_bos_is_evaluated_with_it_wherever_it_is(run_copy, tmp_path, capsys):
    path = make("words", tmp_path)
    description = {"name": "tokenizer.json", "end": "", "pattern": "", "begin": 1}
    description["fingerprint"] = tokenizers.load(path).fingerprint
    content = (tmp_path / "tokenizer.json").read_bytes()
    tokenizer_copy.write(run_copy, tokenizer_copy.TokenizerFile(description, content))
    packed, hf, text = tmp_path / "packed", tmp_path / "hf", tmp_path / "a.txt"
    text.write_text("a b c a 0 1 b b")
    for layout, out in (("packed", packed), ("huggingface", hf)):
        given = [f"--workdir={run_copy}", "--format=fp8_e4m3", f"--layout={layout}", f"--out={out}"]
        assert export.main(given) == 0
    found = []
    for origin in (
        [f"--workdir={run_copy}", "--weights=fp8_e4m3"],
        [f"--packed={packed}", f"--tokenizer={path}"],
        [f"--hf={hf}", "--weights=master"],
    ):
        out = tmp_path / "out.json"
        common = [f"--data={text}", "--length=16", f"--json={out}"]
        assert evaluate.main([*origin, *common]) == 0
        results = json.loads(out.read_text())
        assert (results["begin"], results["scored"]) == (1, 8)
        found.append(list(results["weights"].values())[-1]["loss"]["value"])
    assert found == pytest.approx(found[:1] * 3, rel=1e-4)
    model = Tokenizer.from_file(str(hf / "tokenizer.json"))
    assert model.encode("a b").ids == [1, 3, 4] and model.encode("a", "b").ids == [1, 3, 1, 4]
    config = json.loads((hf / "tokenizer_config.json").read_text())
    assert config["add_bos_token"] and config["bos_token"] == "<s>"
    assert evaluate.main([*origin, *common, "--no-bos"]) == 0
    assert json.loads(out.read_text())["begin"] is None


def test_documents_of_a_prepared_folder_begin_as_is_asked_for(tmp_path):
    path = make("words", tmp_path)
    lines = [json.dumps({"text": f"a b {i}"}) for i in range(9)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    tokenizer, found = tokenizers.load(path), {}
    for out, bos in (("with", ["--bos"]), ("without", [])):
        given = [f"--tokenizer={path}", f"--input={tmp_path}/in.jsonl", "--validation=0.5", *bos]
        with without_processes():
            assert prepare.main([*given, f"--out={tmp_path / out}"]) == 0
        index = tokens.read_index(tmp_path / out)
        assert index.tokenizer["begin"] == (1 if bos else None)
        text = tokens.load(str(tmp_path / out), 19)
        stored = text.validation[:].tolist()
        assert stored[:4] == [1, 3, 4, stored[3]] if bos else [3, 4, stored[2], 2]
        for begin in (1, None):
            asked = tokenizer._replace(begin=begin)
            documents = evaluation_text._split_documents(text, tmp_path / out, asked)
            found[out, begin] = [document.tokens.tolist() for document in documents]
    assert found["with", 1] == found["without", 1] != found["with", None] == found["without", None]
    assert all(document[:3] == [1, 3, 4] for document in found["with", 1])
    content = json.loads((tmp_path / "without" / "index.json").read_text())
    assert "begin" not in content["tokenizer"]  # as before there was the option
