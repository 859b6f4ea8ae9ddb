# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""An exported folder is known by the digests of its files, which sha256sum checks too."""

import shutil
import subprocess

import pytest

from pqt_jax.interchange import checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text("a model")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 5000)
    checksums.write(tmp_path)
    return tmp_path


def test_a_folder_as_it_was_written_has_no_change(folder):
    assert checksums.find_change(folder) is None
    (folder / "README.md").unlink()
    assert checksums.find_change(folder) is None


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_a_file_of_other_content_is_named(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    said = f"holds {name}, which was changed since it was exported"
    assert checksums.find_change(folder) == said


def test_a_file_or_a_folder_of_somebody_is_named(folder):
    (folder / "model-00001-of-00002.safetensors").write_text("mine")
    said = "holds model-00001-of-00002.safetensors, which the export did not write"
    assert checksums.find_change(folder) == said
    (folder / "documents").mkdir()
    assert checksums.find_change(folder) == "holds documents, which the export did not write"


def test_a_folder_without_digests_is_no_export(folder):
    (folder / checksums.FILE).unlink()
    said = "holds no SHA256SUMS, by which an export of pqt_jax is known"
    assert checksums.find_change(folder) == said
    (folder / checksums.FILE).write_bytes(b"\xff README.md\n")
    assert checksums.find_change(folder) == "holds README.md, which the export did not write"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum of coreutils")
def test_coreutils_read_the_digests(folder):
    command = ["sha256sum", "--strict", "--check", checksums.FILE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "README.md: OK\nmodel.safetensors: OK\n")
    (folder / "README.md").write_text("another")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1
