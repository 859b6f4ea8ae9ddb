# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Processes that tokenize end with the command, whatever ends it, and it leaves no folder."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from pqt_jax.data import processes
from support.paths import ROOT
from support.tokenizer_files import make_hugging_face

KILL, TERM, HUP, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT


@pytest.fixture
def command(tmp_path):
    """`prepare`, started with work for a minute; its processes are killed at the end."""
    (tmp_path / "in.txt").write_text("hello some text der die das here \n" * 10**6)
    given = [f"--tokenizer={make_hugging_face(tmp_path / 't.json')}", f"--input={tmp_path}/in.txt"]
    with subprocess.Popen(
        [sys.executable, "-m", "pqt_jax.data.prepare", *given, f"--out={tmp_path / 'out'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, KILL)


def others(process, field):
    """A field of each other process of the command that still runs."""
    asked = ["ps", "-ww", "-o", f"pid=,stat=,{field}=", "--sid", str(process.pid)]
    listed = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in listed]
    return [row[2] for row in rows if row[1][0] != "Z" and int(row[0]) != process.pid]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_started(process):
    return any("spawn_main" in program for program in others(process, "args"))


def is_encoding(process):
    """Whether a process has taken two seconds of a core, of which its imports are one."""
    return any(int(seconds) >= 2 for seconds in others(process, "times"))


def check_end(process, tmp_path, code, said, leaves=()):
    start = time.monotonic()
    out, _ = process.communicate(timeout=10)  # to the end, when no process has it open
    wait_for(lambda: not others(process, "args"))
    assert time.monotonic() < start + 3
    assert (process.returncode, out) == (code, said)
    assert [path.suffix for path in tmp_path.iterdir() if "out" in path.name] == list(leaves)


SIGNALS = [
    (is_started, TERM, os.kill),
    pytest.param(is_encoding, TERM, os.killpg, marks=pytest.mark.slow),
    pytest.param(is_encoding, HUP, os.killpg, marks=pytest.mark.slow),
    pytest.param(is_started, INT, os.killpg, marks=pytest.mark.slow),
    pytest.param(is_encoding, INT, os.kill, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("is_due, number, send", SIGNALS)
def test_a_signal_ends_all_processes_and_leaves_no_folder(tmp_path, command, is_due, number, send):
    wait_for(lambda: is_due(command))
    send(command.pid, number)
    check_end(command, tmp_path, 128 + number, "interrupted\n")


def test_processes_see_that_the_command_was_killed(tmp_path, command):
    wait_for(lambda: is_encoding(command))
    command.kill()
    check_end(command, tmp_path, -KILL, "", [".part"])


def make_function():
    calls = itertools.count()

    def double(number):
        if number == "abort":
            os.kill(os.getpid(), KILL)
        time.sleep(0.02 * (number % 3))
        blocked = {INT, TERM, HUP} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return 2 * number, next(calls), blocked

    return double


def test_results_come_in_the_order_of_the_items_and_a_lost_process_is_said():
    with processes.start_pool(make_function, 2) as apply:
        results = list(apply(range(40)))
        assert [(i, double) for i, (double, _, _) in results] == [(i, 2 * i) for i in range(40)]
        assert sum(calls == 0 for _, (_, calls, _) in results) == 2  # both processes worked
        assert all(blocked for _, (_, _, blocked) in results)  # a terminal sends Ctrl-C to all
        with pytest.raises(processes.LostError) as caught:
            list(apply([*range(3), "abort", 5]))
    assert caught.value.args == ("abort",)
