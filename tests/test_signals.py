# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The first signal is noted, the second ends the process; before and after, all is as it was."""

import signal
import subprocess
import sys
import threading

import pytest

from pqt_jax.signals import (
    NUMBERS,
    collect_signals,
    default_signal_handling,
    exit_on_signal,
)

PROGRAM = """
import hashlib
from pqt_jax.signals import collect_signals
with collect_signals():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, where no handler runs
"""


@pytest.mark.parametrize(
    "pair",
    [
        NUMBERS,
        *(pytest.param(pair, marks=pytest.mark.slow) for pair in (NUMBERS[::-1], NUMBERS[:1] * 2)),
    ],
)
def test_a_second_signal_ends_the_process_at_once(pair):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=pipe, stderr=pipe)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(pair[0])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(pair[1])
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + pair[1]
    assert err.startswith(b"stopping after this step; another") and err.count(b"\n") == 1


@pytest.mark.parametrize("number", NUMBERS)
def test_what_has_nothing_to_save_is_ended_by_the_first(number):
    program = PROGRAM.replace("collect_signals", "exit_on_signal")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()  # where it goes on, which is for minutes
    assert process.returncode == 128 + number and err == b"interrupted\n"


def test_exit_on_signal_ends_with_its_body_and_needs_no_main_thread():
    before = [signal.getsignal(number) for number in NUMBERS]
    with exit_on_signal():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    found = []

    def elsewhere():
        with exit_on_signal():
            found.append(1)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [1]


def test_a_lost_terminal_is_noted_unless_it_is_ignored():
    with collect_signals() as received:
        signal.raise_signal(signal.SIGHUP)
        assert received == [signal.SIGHUP]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with collect_signals() as received:
            signal.raise_signal(signal.SIGHUP)
            assert received == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_a_process_waits_signals_do_what_they_do_by_default():
    with collect_signals() as received:
        with default_signal_handling():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]


def test_the_first_is_noted_and_handlers_come_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    with collect_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("command", ["train", "data.prepare"])
def test_ctrl_c_while_a_command_imports_its_modules_ends_it_without_a_traceback(command):
    options = ["-X", "importtime", "-m", f"pqt_jax.{command}"]  # it says what it has imported
    with subprocess.Popen([sys.executable, *options], stderr=subprocess.PIPE, text=True) as process:
        while not (line := process.stderr.readline()).endswith(" jaxlib\n"):
            assert line, "it ended before"
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == -signal.SIGINT and "Traceback" not in err
