# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files are read and written whole, or an error of one line says why not."""

import os
import pathlib

import pytest

from pqt_jax.console import escaped, print_error
from pqt_jax.errors import OutputError
from pqt_jax.interchange import files

FULL = "no space left on device; free some and run the command again"


@pytest.mark.parametrize("name", ["", ".", "a/b", "/a", "a\0b", "\ud800", 3, None, []])
def test_a_name_in_a_file_is_that_of_a_file_beside_it(name):
    with pytest.raises(ValueError):
        files.check_name(name)
    assert [files.check_name(n) for n in ("a.bin", "é", "\udcff")] == ["a.bin", "é", "\udcff"]


def test_a_full_disk_is_named():
    with pytest.raises(OutputError, match=f"^cannot write /dev/full: {FULL}$"):
        files.append(pathlib.Path("/dev/full"), "line")


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    files.write(path, "old")
    (tmp_path / "file.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=f"cannot write {path}: {FULL}"):
        files.write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_other_failures_are_named_too(tmp_path):
    with pytest.raises(OutputError, match="no such file or directory; mend that and run"):
        files.write(tmp_path / "gone" / "file", "new")


def test_a_line_of_an_error_is_one_line():
    assert escaped("a\nb\x1b[1m é \ud800") == "a\\nb\\x1b[1m é \\ud800"


def test_a_byte_that_is_no_text_is_shown_as_itself():
    for name in ("caf\udce9", repr("caf\udce9")):
        assert escaped(name).strip("'") == "caf\\xe9"


def test_what_is_long_is_cut_in_the_middle(capsys):
    for value in ("x" * 5000, "x " * 5000):
        print_error(f"config.steps='{value}'; it must be a whole number")
        line = capsys.readouterr().err
        assert line.startswith("config.steps='x") and "…" in line and len(line) < 2100
        assert line.endswith("'; it must be a whole number\n")
    whole = f"/{'x' * 255}/y: no such file"
    print_error(whole)
    assert capsys.readouterr().err == f"{whole}\n"


def test_what_may_never_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", pathlib.Path("/dev/zero")):
        with pytest.raises(OSError, match="it is not a regular file") as caught:
            files.read_bytes(path)
        assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError):
        files.read_bytes(tmp_path)
    (tmp_path / "file").write_bytes(b"\xff")
    assert files.read_bytes(tmp_path / "file") == b"\xff"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", b"\xff", "1" * 5000, ""])
def test_json_that_cannot_be_parsed_is_one_kind_of_error(text):
    with pytest.raises(ValueError) as caught:
        files.parse_json(text)
    assert str(caught.value) and "\n" not in str(caught.value)
