# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Folders are written whole or not at all, also by processes that are killed."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from pqt_jax import console
from pqt_jax.errors import InputError, OutputError
from pqt_jax.interchange import files, folders
from pqt_jax.interchange.folders import atomic_folder
from support.paths import ROOT


def write(out, content, overwrite=False):
    with atomic_folder(out, overwrite) as temporary:
        (temporary / "config.json").write_text(content)


def content(out):
    return {path.name: path.read_text() for path in out.iterdir()}


def killed(code, *arguments):
    """Run a program that waits, or kills itself, and kill it once it says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / "a" / "b"
    with atomic_folder(out) as temporary:
        (temporary / "config.json").write_text("new")
        assert not out.exists() and temporary.parent == out.parent
    assert content(out) == {"config.json": "new"} and list(out.parent.iterdir()) == [out]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


def test_an_empty_folder_and_a_link_to_one_will_do(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "real") == {"config.json": "new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_leaves_nothing(tmp_path, error):
    for out in ("out", "new/folders/out"):
        with pytest.raises(error), atomic_folder(tmp_path / out) as temporary:
            (temporary / "config.json").write_text("half")
            raise error
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    with pytest.raises(error), atomic_folder(tmp_path / "new/folders/out"):
        raise error
    assert list((tmp_path / "new").iterdir()) == []  # it was there before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_a_signal_ends_leaves_nothing_and_a_command_says_its_code(tmp_path, capsys, number):
    def command(_):
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "config.json").write_text("half")
            signal.raise_signal(number)

    assert console.run(command, []) == 128 + number
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(number) == signal.SIG_DFL
    assert capsys.readouterr().err == "interrupted\n"


def test_a_signal_waits_until_a_folder_is_removed_or_replaced(tmp_path, monkeypatch):
    out, rmtree, rename = tmp_path / "out", shutil.rmtree, pathlib.Path.rename
    write(out, "old")

    def hang_up(function):
        def call(*arguments, **options):
            signal.raise_signal(signal.SIGHUP)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(shutil, "rmtree", hang_up(rmtree))
    with pytest.raises(SystemExit), atomic_folder(out, overwrite=True):
        signal.raise_signal(signal.SIGHUP)  # the terminal is closed, and the shell says so again
    assert list(tmp_path.iterdir()) == [out]
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(pathlib.Path, "rename", hang_up(rename))
    with pytest.raises(SystemExit):
        write(out, "new", overwrite=True)
    assert content(out) == {"config.json": "new"} and list(tmp_path.iterdir()) == [out]


def test_a_program_keeps_its_own_way_with_signals(tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with atomic_folder(tmp_path / "out"):
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM] and (tmp_path / "out").is_dir()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_there_is_replaced_only_when_asked(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(
        InputError, match="out exists and holds config.json; give another folder, or overwrite=True"
    ):
        write(out, "new")
    with pytest.raises(InputError, match="config.json; give another folder$"):
        folders.check_destination(out, None)  # of a command that has no such option
    with pytest.raises(RuntimeError), atomic_folder(out, overwrite=True) as temporary:
        (temporary / "config.json").write_text("half")
        raise RuntimeError
    assert content(out) == {"config.json": "old"}
    with atomic_folder(out, overwrite=True) as temporary:
        (temporary / "model.safetensors").write_text("new")
        assert content(out) == {"config.json": "old"}
    assert content(out) == {"model.safetensors": "new"} and list(tmp_path.iterdir()) == [out]


def test_a_folder_with_folders_is_never_replaced(tmp_path):
    (tmp_path / "home" / "documents").mkdir(parents=True)
    with pytest.raises(
        InputError,
        match="home holds documents, which does not belong to an earlier output; nothing is del",
    ):
        write(tmp_path / "home", "new", overwrite=True)
    assert (tmp_path / "home" / "documents").is_dir()


def test_a_folder_of_other_files_is_never_replaced(tmp_path):
    write(tmp_path / "export", "old")
    (tmp_path / "export" / "thesis.tex").write_text("mine")
    for check in (folders.check_destination, lambda out, _: write(out, "new", overwrite=True)):
        with pytest.raises(
            InputError, match="holds thesis.tex, which does not belong to an earlier output"
        ):
            check(tmp_path / "export", True)
    assert content(tmp_path / "export") == {"config.json": "old", "thesis.tex": "mine"}


@pytest.mark.parametrize("name", ["file", "dangling", "loop", "\0"])
def test_what_cannot_be_a_folder_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    if name == "dangling":  # the folder that it names is made
        write(tmp_path / name, "new")
        assert content(tmp_path / "gone") == {"config.json": "new"}
        return
    for check in (folders.check_destination, lambda out: write(out, "new")):
        with pytest.raises((InputError, OutputError)) as caught:
            check(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_system_that_refuses_is_named(tmp_path):
    with pytest.raises(OutputError, match="out: no space left on device; free some and run"):
        with atomic_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError, match="cannot write .*/out: is a directory; "):
        with atomic_folder(tmp_path / "out") as temporary:  # not the temporary folder's name
            (temporary / "config.json").mkdir()
            files.write(temporary / "config.json", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*file/out: "):
        write(tmp_path / "file" / "out", "new")
    with pytest.raises(OutputError, match="file name too long"):
        write(tmp_path / ("x" * 300), "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", pathlib.Path.rename
    write(out, "old")

    def refuse(self, target):
        if self.suffix == ".part":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(OutputError, match="out: input/output error"):
        write(out, "new", overwrite=True)
    assert content(out) == {"config.json": "old"} and list(tmp_path.iterdir()) == [out]


def test_two_writers_do_not_disturb_each_other(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="out exists and holds config.json"):
        with atomic_folder(out) as temporary:
            write(out, "first to end")
            assert temporary.is_dir()
    assert content(out) == {"config.json": "first to end"} and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_writer_that_is_killed_leaves_the_old_or_nothing(tmp_path, overwrite):
    out = tmp_path / "out"
    if overwrite:
        write(out, "old")
    killed(
        "import sys, time; from pqt_jax.interchange.folders import atomic_folder\n"
        "with atomic_folder(sys.argv[1], overwrite=True) as temporary:\n"
        "    (temporary / 'config.json').write_text('half')\n"
        "    print('ready', flush=True); time.sleep(60)\n",
        out,
    )
    assert len(list(tmp_path.glob(".out.*.part"))) == 1
    if overwrite:
        assert content(out) == {"config.json": "old"}
    else:
        assert not out.exists()
    write(out, "new", overwrite)
    assert content(out) == {"config.json": "new"} and list(tmp_path.iterdir()) == [out]


def test_a_writer_killed_between_the_renames_loses_nothing(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    killed(
        "import pathlib, sys, time; from pqt_jax.interchange.folders import atomic_folder\n"
        "rename = pathlib.Path.rename\n"
        "def wait(self, target):\n"
        "    if self.suffix == '.part': print('ready', flush=True); time.sleep(60)\n"
        "    return rename(self, target)\n"
        "pathlib.Path.rename = wait\n"
        "with atomic_folder(sys.argv[1], overwrite=True) as temporary:\n"
        "    (temporary / 'config.json').write_text('new')\n",
        out,
    )
    assert not out.exists()
    with pytest.raises(InputError, match="out exists and holds config.json"):
        write(out, "third")
    assert content(out) == {"config.json": "old"} and list(tmp_path.iterdir()) == [out]
