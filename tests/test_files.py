# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files are written whole, or an error of one line says why not."""

import errno
import os
import pathlib

import pytest

from pqt_jax import files
from pqt_jax.errors import OutputError, escaped

FULL = "no space left on device; free some and run the command again"


def test_a_full_disk_is_named():
    with pytest.raises(OutputError, match=f"^cannot write /dev/full: {FULL}$"):
        files.append(pathlib.Path("/dev/full"), "line")


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write(path, "old")

    def fill(target, content):
        pathlib.Path(target).open("wb").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill)
    with pytest.raises(OutputError, match=f"cannot write {path}: {FULL}"):
        files.write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_other_failures_are_named_too(tmp_path):
    with pytest.raises(OutputError, match="no such file or directory; mend that and run"):
        files.write(tmp_path / "gone" / "file", "new")


def test_a_line_of_an_error_is_one_line():
    assert escaped("a\nb\x1b[1m é \udcff") == "a\\nb\\x1b[1m é \\udcff"
