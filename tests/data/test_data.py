# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Text, its split and its fingerprint; batches, and their resumption."""

import errno
import os
import pathlib

import numpy as np
import pytest

from pqt_jax.data import pipeline, source
from pqt_jax.errors import InputError


def folder(tmp_path, count=60):
    for i in range(count):
        path = tmp_path / f"part{i % 3}" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"<{i}>".encode() * 5)
    return f"{tmp_path}/**/*.txt"


def test_the_standard_library_is_the_default_text():
    text = source.load()
    assert 4e6 < len(text.train) < 3e7
    assert 0.005 < len(text.validation) / len(text.train) < 0.15
    assert text.train.dtype == np.uint8
    content = text.train.tobytes() + text.validation.tobytes()
    assert b"class Formatter" in content  # of logging
    assert b"class TestCase" in content  # of unittest, which is not a test
    assert b"class TestLongMessage" not in content  # of its tests
    assert source.load().fingerprint == text.fingerprint


def test_files_are_split_by_name_in_sorted_order(tmp_path):
    text = source.load(folder(tmp_path))
    train, held_out = text.train.tobytes().decode(), text.validation.tobytes().decode()
    ids = lambda part: [i for i in range(60) if f"<{i}>" in part]  # noqa: E731
    assert sorted(ids(train) + ids(held_out)) == list(range(60))
    assert 1 <= len(ids(held_out)) <= 9
    assert train.index("<3>") < train.index("<1>")  # part0/3.txt comes before part1/1.txt
    (tmp_path / "part0" / "new.txt").write_text("new")
    again = source.load(f"{tmp_path}/**/*.txt").validation.tobytes().decode()
    assert set(ids(held_out)) <= set(ids(again)) | {60}
    assert again.replace("new", "") == held_out


def test_two_files_leave_one_for_each_part(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 10)
    (tmp_path / "b.txt").write_text("b" * 10)
    text = source.load(f"{tmp_path}/*.txt")
    assert {text.train.tobytes(), text.validation.tobytes()} == {b"a" * 10, b"b" * 10}


def test_of_a_single_file_the_end_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 201)))
    text = source.load(str(tmp_path / "a.txt"))
    assert text.train.tolist() == list(range(1, 191))
    assert text.validation.tolist() == list(range(191, 201))


def test_the_fingerprint_sees_names_sizes_and_contents(tmp_path):
    pattern = folder(tmp_path, 6)
    seen = [source.load(pattern).fingerprint]
    (tmp_path / "part0" / "0.txt").write_bytes(b"<x>" * 5)
    seen.append(source.load(pattern).fingerprint)
    (tmp_path / "part0" / "0.txt").rename(tmp_path / "part0" / "00.txt")
    seen.append(source.load(pattern).fingerprint)
    # The same bytes in a row, cut elsewhere.
    (tmp_path / "part0" / "00.txt").write_bytes(b"<x>" * 4)
    first = (tmp_path / "part0" / "3.txt").read_bytes()
    (tmp_path / "part0" / "3.txt").write_bytes(b"<x>" + first)
    seen.append(source.load(pattern).fingerprint)
    assert len(set(seen)) == 4


def test_the_fingerprint_does_not_see_where_the_files_are(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    a, b = (source.load(folder(tmp_path / name)) for name in ("one", "two"))
    assert a.fingerprint == b.fingerprint


@pytest.mark.parametrize(
    "make, files, message",
    [
        (None, "*.txt", "'.*' matches no file; give a text file, or a glob"),
        (None, "missing.txt", "missing.txt' does not exist"),
        (lambda p: (p / "sub").mkdir(), "s*", "matches only folders"),
        (lambda p: (p / "a.txt").write_text(""), "a.txt", "a.txt is empty; give files with text"),
        (lambda p: (p / "a.txt").symlink_to(p / "gone"), "*.txt", "cannot read .*a.txt: No such"),
        (lambda p: (p / "a").symlink_to(p / "a"), "a", "Too many levels .*; leave it out"),
        (lambda p: os.mkfifo(p / "a.txt"), "*.txt", "a.txt is not a regular file; leave it out"),
        (None, "x" * 300, "cannot be read: File name too long; give a shorter path"),
        (None, "a\0b", "cannot be read: embedded null"),
        (lambda p: (p / "a").symlink_to(p / "a"), "a/b", "cannot be read: Too many levels"),
    ],
)
def test_unusable_files_are_named(tmp_path, make, files, message):
    if make:
        make(tmp_path)
    with pytest.raises(InputError, match=message):
        source.load(str(tmp_path / files))


def test_empty_files_are_left_out_and_named(tmp_path):
    pattern = folder(tmp_path, 30)
    before = source.load(pattern)
    for name in ("0.txt", "e0.txt", "e1.txt"):
        (tmp_path / "part0" / name).write_text("")
    text = source.load(pattern)
    assert "; left out, since empty: part0/0.txt, part0/e0.txt" in text.description
    assert "left out" not in before.description and len(text.validation)
    contents, fingerprint = source.read_validation_files(pattern)
    assert all(contents.values()) and fingerprint == text.fingerprint


def test_files_of_documents_that_are_trained_on_as_they_are_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 30)
    assert "markup" not in source.load(f"{tmp_path}/*").description
    (tmp_path / "b.JSONL").write_text('{"text": "a"}\n' * 9)
    description = source.load(f"{tmp_path}/*").description
    assert (
        "; read as they are, with their markup: b.JSONL (pqt_jax.data.prepare reads" in description
    )


def test_names_may_hold_any_byte(tmp_path):
    for name in (b"a\xff.txt", b"b.txt"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name)
    text = source.load(f"{tmp_path}/*.txt")
    assert len(text.train) + len(text.validation) == 11


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def refuse(path):  # as the system does, but also to root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(InputError, match="cannot read .*a.txt: Permission denied"):
        source.load(str(tmp_path / "a.txt"))


def test_windows_overlap_by_one_token():
    tokens = np.arange(13, dtype=np.uint8)
    windows = pipeline.Windows(tokens, 4)
    assert [windows[i].tolist() for i in range(len(windows))] == [
        [0, 1, 2, 3, 4],
        [4, 5, 6, 7, 8],
        [8, 9, 10, 11, 12],
    ]
    assert len(pipeline.Windows(tokens[:12], 4)) == 2
    assert len(pipeline.Windows(tokens[:4], 4)) == 0


@pytest.mark.parametrize(
    "train, validation, message",
    [
        (4, 50, "length=4: the training text has only 4 tokens, and a sequence needs 5"),
        (50, 4, "length=4: the validation text has only 4 tokens"),
        (9, 50, "batch=3: the training text has only 2 sequences"),
    ],
)
def test_too_little_text_is_refused(train, validation, message):
    with pytest.raises(InputError, match=message):
        pipeline.check_lengths(np.zeros(train), np.zeros(validation), 4, 3)
    pipeline.check_lengths(np.zeros(13), np.zeros(5), 4, 3)


TOKENS = np.arange(241, dtype=np.uint8)  # 60 windows of 4, known by their first token


def batches(seed=0, first=0):
    return pipeline.train_batches(TOKENS, length=4, batch=6, seed=seed, first=first)


def take(iterator, count):
    return np.stack([next(iterator) for _ in range(count)])


def test_an_epoch_gives_every_window_once_in_an_order_of_its_own():
    epochs = take(batches(), 20).reshape(2, 60, 5)
    assert epochs.dtype == np.uint8
    first, second = epochs[..., 0].tolist()
    assert sorted(first) == sorted(second) == list(range(0, 240, 4))
    assert first != second and first != sorted(first)
    np.testing.assert_array_equal(epochs[..., 1:], epochs[..., :-1] + 1)
    assert take(batches(seed=1), 10)[..., 0].ravel().tolist() != first


@pytest.mark.parametrize("at", [0, 7, 10, 23])
def test_batches_begin_wherever_they_are_asked_to(at):
    np.testing.assert_array_equal(take(batches(first=at), 30 - at), take(batches(), 30)[at:])


def test_validation_windows_are_fixed_and_spread_over_the_text():
    found = pipeline.validation_batches(TOKENS, length=4, batch=6, count=5)
    assert found.shape == (5, 6, 5)
    starts = found[..., 0].ravel().tolist()
    assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] == 236
    assert pipeline.validation_batches(TOKENS, length=4, batch=6, count=99).shape == (10, 6, 5)
    assert pipeline.validation_batches(TOKENS[:9], length=4, batch=6, count=5).shape == (1, 2, 5)


def test_a_file_whose_name_reads_as_a_pattern_is_itself(tmp_path):
    (tmp_path / "v[1].txt").write_text("it")
    (tmp_path / "v1.txt").write_text("not it")
    assert source.match_files(f"{tmp_path}/v[1].txt")[1] == [tmp_path / "v[1].txt"]
    (tmp_path / "v[1].txt").unlink()
    assert source.match_files(f"{tmp_path}/v[1].txt")[1] == [tmp_path / "v1.txt"]
