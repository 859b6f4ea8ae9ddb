# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""However a command ends, there is one line, or none, and an exit code."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pqt_jax import console, errors
from support.paths import ROOT


def ending(error):
    def command(_):
        raise error

    return command


@pytest.mark.parametrize(
    "error, code, line",
    [
        (errors.InputError("--out= is empty"), 2, "error: --out= is empty\n"),
        (errors.OutputError(Path("a"), "no"), 1, "error: cannot write a: no; mend that and run "),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_ends_a_command_is_one_line(capsys, error, code, line):
    assert console.run(ending(error), []) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_other_errors_are_not_hidden():
    assert console.run(lambda _: None, []) == 0
    for error in (OSError(errno.EIO, os.strerror(errno.EIO)), ZeroDivisionError()):
        with pytest.raises(type(error)):
            console.run(ending(error), [])


def test_a_line_that_nobody_can_read_ends_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, _):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(console.sys, "stderr", Gone())
    console.print_error("warning: nobody hears it")


def test_help_that_nobody_reads_is_quiet():
    reader, unread = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pqt_jax.train", "--help"]
    done = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(unread)
    assert done.returncode == errors.UNREAD and done.stderr == ""


@pytest.mark.parametrize(
    "error, code, last",
    [("KeyboardInterrupt", 130, ""), ("errors.InputError('no')", 2, "last\n")],
)
def test_only_after_ctrl_c_a_command_ends_without_the_end_of_python(error, code, last):
    program = f"""
import atexit, sys
from pqt_jax import console, errors
def command(arguments):
    print('first')
    raise {error}
atexit.register(print, 'last')
sys.exit(console.run(command))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code and done.stdout == "first\n" + last
