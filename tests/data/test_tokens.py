# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files of tokens, ours, nanoGPT's and llm.c's, and whatever can be wrong with them."""

import json
import os
import resource

import numpy as np
import pytest

from pqt_jax.data import prepare, tokens
from pqt_jax.errors import InputError
from pqt_jax.training.config import validation
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.config.schema import RunConfig
from support import tiny


def write_llm_c(path, ids, magic=20240520, version=1, dtype=np.uint16, count=None):
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype).tobytes())


def test_a_stream_is_its_parts_in_a_row():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 9, n).astype(np.uint16) for n in (5, 1, 0, 7, 3)]
    whole, stream = np.concatenate(parts), tokens.Stream(parts)
    assert len(stream) == len(whole) and stream.dtype == np.uint16
    for start in range(len(whole) + 2):
        for stop in range(len(whole) + 3):
            np.testing.assert_array_equal(stream[start:stop], whole[start:stop])


def test_files_of_nanogpt(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.arange(7, dtype=np.uint16).tofile(tmp_path / "val.bin")
    text = tokens.load(f"{tmp_path}/*.bin", 100)
    assert text.train[:].tolist() == list(range(100)) and text.validation[:].tolist() == [*range(7)]
    assert "107 tokens under" in text.description and "7 of them for validation" in text.description
    alone = tokens.load(f"{tmp_path}/train.bin", 100)  # its last twentieth
    assert alone.train[:].tolist() == list(range(95))
    assert alone.validation[:].tolist() == [95, 96, 97, 98, 99]
    assert alone.fingerprint != text.fingerprint


@pytest.mark.parametrize(
    "magic, version, dtype", [(20240520, 1, np.uint16), (20240801, 7, np.uint32)]
)
def test_files_of_llm_c(tmp_path, magic, version, dtype):
    for i in range(3):
        ids = np.arange(i * 1000, i * 1000 + 500)
        write_llm_c(tmp_path / f"fineweb_train_{i}.bin", ids, magic, version, dtype)
    write_llm_c(tmp_path / "fineweb_val_0.bin", range(9), magic, version, dtype)
    text = tokens.load(f"{tmp_path}/*.bin", 3000)
    assert text.train.dtype == dtype and len(text.train) == 1500
    assert text.train[498:502].tolist() == [498, 499, 1000, 1001]
    assert text.validation[:].tolist() == list(range(9))


def nothing(path):
    path.write_bytes(b"")


BAD = {
    "empty": (nothing, "a.bin is empty; leave it out"),
    "odd": (lambda p: p.write_bytes(b"abc"), "a.bin has 3 bytes, no whole number of uint16"),
    "out of vocabulary": (
        lambda p: np.array([1, 2, 300, 4], np.uint16).tofile(p),
        "a.bin holds token 300 at 2; it must be below config.model.vocab_size=256",
    ),
    "torn": (
        lambda p: write_llm_c(p, range(9), count=10),
        "a.bin has 1,042 bytes and must have 1,044; it is incomplete",
    ),
    "no header's end": (
        lambda p: p.write_bytes(np.array([20240520, 1, 5, 0], np.int32).tobytes()),
        "a.bin has 16 bytes and must have 1,034; it is incomplete",
    ),
    "a header of none": (lambda p: write_llm_c(p, []), "a.bin is empty; leave it out"),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_cannot_be_trained_on_are_named(tmp_path, kind):
    make, message = BAD[kind]
    make(tmp_path / "a.bin")
    np.arange(50, dtype=np.uint16).tofile(tmp_path / "b.bin")
    with pytest.raises(InputError) as caught:
        tokens.load(f"{tmp_path}/*.bin", 256)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config.data.tokens='.*bin' matches no file"):
        tokens.load(f"{tmp_path}/*.bin", 256)
    with pytest.raises(
        InputError, match=r"holds no index.json; give a folder that pqt_jax.data.pre"
    ):
        tokens.load(str(tmp_path), 256)
    np.arange(50, dtype=np.uint16).tofile(tmp_path / "val.bin")
    with pytest.raises(InputError, match="matches validation files alone; give training files"):
        tokens.load(f"{tmp_path}/*.bin", 256)
    write_llm_c(tmp_path / "train.bin", range(9), 20240801, 7, np.uint32)
    with pytest.raises(InputError, match="has files of uint(32|16) and of uint(16|32)"):
        tokens.load(f"{tmp_path}/*.bin", 256)


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(20):
        (tmp_path / "in" / f"{i}.txt").write_text(f"document {i}")
    out = tmp_path / "out"
    options = [f"--input={tmp_path}/in/*", f"--out={out}", "--validation=0.3", "--processes=1"]
    assert prepare.main(["--tokenizer=bytes", *options]) == 0
    return out


def test_a_prepared_folder_that_has_changed_is_refused(prepared):
    before = tokens.load(str(prepared), 257)
    shard, index = prepared / "train-00000.bin", prepared / "index.json"
    whole, text = shard.read_bytes(), index.read_text()
    changed = bytearray(whole)
    changed[10] ^= 1
    for content, message in (
        (bytes(changed), "train-00000.bin is not what was written; put a copy back"),
        (whole[:-2], "it is incomplete, put a copy back"),
        (None, "train-00000.bin cannot be read: No such file or directory"),
    ):
        shard.unlink()
        if content is not None:
            shard.write_bytes(content)
        with pytest.raises(InputError, match=message):
            tokens.load(str(prepared), 257)
        shard.write_bytes(whole)
    for content, message in (
        (text[:50], "index.json is damaged; put a copy back, or prepare the data again"),
        (text.replace('"version": 1', '"version": 2'), "is of version 2, and version 1 is read"),
        (json.dumps({"version": 1}), "index.json is damaged"),
        ("[]", "index.json is damaged"),
        (json.dumps(json.loads(text) | {"vocab_size": -5}), "index.json is damaged"),
        (text.replace("257", "1e400"), "index.json is damaged"),
        (text.replace("257", "257.0"), "index.json is damaged"),
        ("[" * 100_000, "index.json is damaged"),
        (json.dumps(json.loads(text) | {"validation": {"shards": []}}), "index.json is damaged"),
    ):
        index.write_text(content)
        with pytest.raises(InputError, match=message):
            tokens.load(str(prepared), 257)
    index.unlink()
    os.mkfifo(index)
    for function in (tokens.read_index, lambda folder: tokens.load(str(folder), 257)):
        with pytest.raises(InputError, match="index.json: it is not a regular file; put a copy"):
            function(prepared)
    index.unlink()
    index.write_text(text)
    assert tokens.load(str(prepared), 257).fingerprint == before.fingerprint
    with pytest.raises(InputError, match=r"bin holds token 256 at \d+; it must be below config.mo"):
        tokens.load(str(prepared), 256)
    larger = json.loads(text) | {"vocab_size": 1000}  # tokens that never occur
    index.write_text(json.dumps(larger | {tokens.DIGEST: tokens.compute_digest(larger)}))
    assert len(tokens.load(str(prepared), 257).train) == len(before.train)


def test_files_of_another_version_or_without_a_header_are_not_guessed(tmp_path):
    write_llm_c(tmp_path / "a.bin", range(9), 20240801, 6, np.uint32)
    with pytest.raises(InputError, match="llm.c of version 6, and version 7 is read"):
        tokens.load(f"{tmp_path}/*.bin", 70_000)
    (tmp_path / "a.bin").write_bytes(np.arange(40, dtype=np.uint16).tobytes())
    assert len(tokens.load(f"{tmp_path}/*.bin", 65_536).train) == 38
    with pytest.raises(InputError, match="no header, .* cannot hold config.model.vocab_size=65537"):
        tokens.load(f"{tmp_path}/*.bin", 65_537)


def test_folders_and_whole_words_choose_validation(tmp_path):
    for name in ("train/0.bin", "train/medieval.bin", "val/0.bin", "test/0.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_llm_c(tmp_path / name, range(len(name)))
    text = tokens.load(f"{tmp_path}/*/*.bin", 100)
    assert len(text.validation) == len("val/0.bin")
    assert (
        "; validation: val/0.bin; trained on in spite of its name: test/0.bin" in text.description
    )


def test_more_files_than_a_process_may_open(tmp_path):
    """Of 10,000 files only some are mapped at a time."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for i in range(600):
        (tmp_path / f"train_{i:05d}.bin").write_bytes(np.full(5, i % 7, np.uint16).tobytes())
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))
    try:
        text = tokens.load(f"{tmp_path}/*.bin", 8)
        assert len(text.train) + len(text.validation) == 3000
        for i in range(0, 2850, 5):
            assert text.train[i : i + 5].tolist() == [i // 5 % 7] * 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_model_may_have_few_tokens(tmp_path):
    config = tiny.get_config()
    config.model.vocab_size, config.data.tokens = 50, f"{tmp_path}/*.bin"
    validation.check(from_values(RunConfig, config.to_dict()))
    write_llm_c(tmp_path / "a.bin", range(50), 20240520, 1, np.uint16)
    assert int(tokens.load(config.data.tokens, 50).train[:].max()) == 47
