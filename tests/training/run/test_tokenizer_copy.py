# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A run keeps the tokenizer of its data, and knows where its data was."""

import json
import os
import shutil

import pytest

from pqt_jax.data import prepare, tokenizers, tokens
from pqt_jax.errors import InputError
from pqt_jax.training.run import run_metadata, tokenizer_copy
from support.session import shared_folder
from support.tokenizer_files import make

TEXT = b"the quick brown fox"


def prepare_both(folder):
    (folder / "text.jsonl").write_text('{"text": "the quick fox"}\n' * 3 + '{"text": "dog"}\n' * 3)
    for kind in ("json", "bytes"):
        given = [f"--tokenizer={make(kind, folder)}", f"--out={folder / kind}", "--processes=1"]
        assert prepare.main([*given, f"--input={folder}/text.jsonl", "--validation=0.5"]) == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders `json` and `bytes` of tokens."""
    return shared_folder(tmp_path_factory, "prepared-for-copies", prepare_both)


@pytest.mark.parametrize("kind", ["json", "bytes"])
def test_a_copy_needs_nothing_of_the_data(prepared, tmp_path, kind):
    shutil.copytree(prepared / kind, tmp_path / "tokens")
    (tmp_path / "run").mkdir()
    assert not tokenizer_copy.is_there(tmp_path / "run")
    tokenizer_copy.write(tmp_path / "run", tokenizer_copy.read_prepared(tmp_path / "tokens"))
    shutil.rmtree(tmp_path / "tokens")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert tokenizer_copy.is_there(tmp_path / "moved")
    found = tokenizer_copy.load(tmp_path / "moved")
    path = "bytes" if kind == "bytes" else str(prepared / "tokenizer.json")
    wanted = tokenizers.load(path)
    assert found.fingerprint == wanted.fingerprint and found.end == wanted.end
    assert list(found.encode(TEXT)) == list(wanted.encode(TEXT))


def test_a_changed_tokenizer_is_refused_before_it_is_copied(prepared, tmp_path):
    folder = shutil.copytree(prepared / "json", tmp_path / "tokens")
    with (folder / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="tokenizer.json is not the tokenizer that made the tok"):
        tokenizer_copy.read_prepared(folder)
    (folder / "tokenizer.json").unlink()
    assert tokenizer_copy.read_prepared(folder) is None


def test_a_damaged_copy_is_refused(prepared, tmp_path):
    tokenizer_copy.write(tmp_path, tokenizer_copy.read_prepared(prepared / "json"))
    folder = tmp_path / "tokenizer"
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(InputError, match="is not the tokenizer that made the tokens; put a copy"):
        tokenizer_copy.load(tmp_path)
    for damaged in ("", "[]", "{}", "null", '{"name": "bytes"}', "[" * 100_000):
        (folder / "description.json").write_text(damaged)
        with pytest.raises(InputError, match="tokenizer/description.json in it is damaged"):
            tokenizer_copy.load(tmp_path)


def test_data_is_found_from_other_directories(tmp_path, monkeypatch):
    (tmp_path / "a" / "text").mkdir(parents=True)
    (tmp_path / "a" / "text" / "x.txt").write_text("x")
    meta = {"directory": str(tmp_path / "a")}
    monkeypatch.chdir(tmp_path)
    assert run_metadata.locate(meta, "text/*.txt") == f"{tmp_path}/a/text/*.txt"
    assert run_metadata.locate(meta, "text") == f"{tmp_path}/a/text"
    assert run_metadata.locate(meta, f"{tmp_path}/a/text") == f"{tmp_path}/a/text"
    assert run_metadata.locate(meta, "") == ""  # the standard library
    for gone in ({}, {"directory": str(tmp_path / "b")}, {"directory": None}):
        assert run_metadata.locate(gone, "text") == "text"
    (tmp_path / "a").rename(tmp_path / "b")
    assert run_metadata.locate(meta, "text") == "text"
    assert os.getcwd() == str(tmp_path)


CHANGES = {
    "end": lambda index: index | {"end": index["end"] + 1},
    "dtype": lambda index: index | {"dtype": "uint32"},
    "vocab_size": lambda index: index | {"vocab_size": index["vocab_size"] + 1},
    "bytes": lambda index: index | {"train": index["train"] | {"bytes": 7}},
    "tokenizer": lambda index: index | {"tokenizer": index["tokenizer"] | {"end": "x"}},
    "one more": lambda index: index | {"more": 1},
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_that_was_changed_is_refused(prepared, tmp_path, name):
    folder = shutil.copytree(prepared / "json", tmp_path / "tokens")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(dict(reversed(index.items())), indent=7))
    assert tokens.read_index(folder).end == index["end"]  # order and layout do not matter
    (folder / "index.json").write_text(json.dumps(CHANGES[name](index)))
    with pytest.raises(InputError, match="index.json is damaged"):
        tokens.read_index(folder)


def test_an_index_of_an_older_version_has_no_digest(prepared, tmp_path):
    folder = shutil.copytree(prepared / "json", tmp_path / "tokens")
    index = json.loads((folder / "index.json").read_text())
    del index["sha256"]
    (folder / "index.json").write_text(json.dumps(index))
    assert len(tokens.load(str(folder), 400).train)
    (folder / "index.json").write_text(json.dumps(index | {"dtype": ">u2"}))
    with pytest.raises(InputError, match="index.json is damaged"):
        tokens.read_index(folder)
