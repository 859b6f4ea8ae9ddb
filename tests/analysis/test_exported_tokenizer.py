# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""An exported folder gets the tokenizer of the run, or that of the folder that it is made from."""

import dataclasses
import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from pqt_jax import evaluate
from pqt_jax.analysis import exported_tokenizer, find_tokenizer, load
from pqt_jax.data import tokenizer_files, tokenizers
from pqt_jax.errors import InputError
from pqt_jax.training.run import tokenizer_copy
from support import tiny
from support.tokenizer_files import make, make_sentencepiece


def make_model(model=tiny.LLAMA2, **data):
    """What `find` looks at of a model of a run."""
    config = tiny.get_config(model)
    for name, value in data.items():
        config.data[name] = value
    return load.TrainedModel(
        config=model, graph=None, params=None, rules=(), origin="", run_config=config
    )


def find(workdir, **data):
    config = dataclasses.replace(tiny.LLAMA2, vocab_size=512)
    return exported_tokenizer.find(Namespace(workdir=str(workdir)), make_model(config, **data))


def copy_to(workdir, path, begin=None):
    tokenizer = tokenizers.load(str(path))
    about = {"name": tokenizer.name, "end": "", "pattern": ""}
    about |= {"fingerprint": tokenizer.fingerprint, "begin": begin}
    content = b"" if path == "bytes" else Path(path).read_bytes()
    workdir.mkdir(exist_ok=True)
    tokenizer_copy.write(workdir, tokenizer_copy.TokenizerFile(about, content))


def test_a_run_on_text_reads_bytes_and_has_no_end(tmp_path):
    found = find(tmp_path, files="*.txt")
    assert found.ids == {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
    assert "not trained on its end token, 256" in found.about


@pytest.mark.parametrize("kind", ["bytes", "json", "model", "tiktoken"])
def test_a_run_on_tokens_has_a_copy(tmp_path, kind):
    path = make(kind, tmp_path)
    copy_to(tmp_path / "run", path)
    found = find(tmp_path / "run", tokens="gone")
    end = tokenizers.load(path).end
    assert found.ids == dict.fromkeys(tokenizer_files.IDS, end)
    assert found.about == f"tokenizer: {Path(path).name}"
    masked = find(tmp_path / "run", tokens="gone", boundaries="mask")
    assert masked.ids == found.ids | {"bos_token_id": None}
    assert json.loads(masked.files["tokenizer_config.json"])["model_max_length"] == 32


@pytest.mark.parametrize("begin", [1, None])
def test_documents_begin_as_in_training(tmp_path, begin):
    """Whatever the file of the tokenizer says: that of SentencePiece always has a BOS."""
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    copy_to(tmp_path / "run", make_sentencepiece(tmp_path / "tokenizer.model", **plain), begin)
    found = find(tmp_path / "run", tokens="gone")
    assert found.ids["bos_token_id"] == (begin or found.ids["eos_token_id"])
    assert json.loads(found.files["tokenizer_config.json"])["add_bos_token"] == (begin == 1)
    config = dataclasses.replace(tiny.LLAMA2, vocab_size=512)
    options = Namespace(workdir=str(tmp_path / "run"))
    found = exported_tokenizer.find_gguf(options, make_model(config, tokens="gone"))
    assert found["tokenizer.ggml.add_bos_token"] == (begin == 1)


def test_an_older_run_has_that_of_its_data(tmp_path):
    path = make("json", tmp_path)
    copy_to(tmp_path / "run", path)
    (tmp_path / "data").mkdir()
    about = json.loads((tmp_path / "run/tokenizer/description.json").read_text())
    shard = {"file": "0.bin", "tokens": 1, "sha256": ""}
    splits = {split: {"shards": [shard], "bytes": 0} for split in ("train", "validation")}
    index = {"version": 1, "dtype": "uint16", "vocab_size": 400, "end": 0, "tokenizer": about}
    (tmp_path / "data/index.json").write_text(json.dumps(index | splits))
    missing = find(tmp_path, tokens=str(tmp_path / "data"))
    assert not missing.files and missing.about.endswith("data' has none")
    shutil.copy(path, tmp_path / "data")
    found = find(tmp_path, tokens=str(tmp_path / "data"))
    assert found == find(tmp_path / "run", tokens="x") and found.ids["eos_token_id"] == 0


def test_files_of_tokens_have_none_but_an_end(tmp_path):
    found = find(tmp_path, tokens="data/*.bin", end_token=50)
    assert found.files == {}
    assert found.ids == {"bos_token_id": None, "eos_token_id": 50, "pad_token_id": None}
    assert found.about == "tokenizer: none, since config.data.tokens='data/*.bin' has none"
    assert set(find(tmp_path, tokens="data/*.bin").ids.values()) == {None}


def test_a_damaged_copy_is_refused(tmp_path):
    copy_to(tmp_path / "run", make("json", tmp_path))
    path = tmp_path / "run/tokenizer/tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InputError, match="is not the tokenizer that made the tokens; put a copy"):
        find(tmp_path / "run", tokens="x")
    path.unlink()
    with pytest.raises(InputError, match="--workdir=.*run: the tokenizer is missing in .*; put a"):
        find(tmp_path / "run", tokens="x")
    (tmp_path / "run/tokenizer/description.json").write_text("{}")
    with pytest.raises(InputError, match="description.json in it is damaged; put a copy back$"):
        find(tmp_path / "run", tokens="x")


def test_the_folder_of_another_model_brings_its_own(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    tokenizer = b'{"model": {"vocab": {"a": 0}}}'
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    model = dataclasses.replace(make_model(), run_config=None)
    found = exported_tokenizer.find(Namespace(hf=str(tmp_path), workdir=None), model)
    assert found.files == {"tokenizer.json": tokenizer} and found.ids["eos_token_id"] == 5


@pytest.mark.parametrize("size", [256, 257, 300])
def test_bytes_are_read_again_as_bytes(tmp_path, size):
    config = dataclasses.replace(tiny.LLAMA2, vocab_size=size)
    options = Namespace(workdir=str(tmp_path))
    found = exported_tokenizer.find(options, make_model(config))
    tokenizer_files.write(tmp_path, found)
    (tmp_path / "config.json").write_text(json.dumps(found.ids))
    options = evaluate.parser().parse_args([f"--hf={tmp_path}"])
    model = dataclasses.replace(make_model(config), run_config=None)
    again = find_tokenizer.find_tokenizer(options, model)
    assert again.name == "bytes" and again.begin is None
    assert list(again.encode(b"\xff\x00")) == [255, 0]
