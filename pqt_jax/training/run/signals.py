# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""SIGINT, SIGTERM and SIGHUP during a run.

    collect_signals            the first asks the run to stop after a step; the second ends it
    exit_on_signal             the first ends the process: for commands that have nothing to save
    default_signal_handling    signals do what they do by default

A closed terminal sends SIGHUP. If SIGHUP is ignored, as under nohup, it stays ignored.

Python runs its signal handlers only between two of its own instructions, and compilation takes
seconds. The handler in C therefore writes the signal's number to a pipe, and a thread reads it. The
thread prints that the run will stop, or ends the process, whatever the main thread is doing.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pqt_jax.console import exit_now

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPING = b"stopping after this step; another signal ends the run at once, without a checkpoint\n"
_SHOW_CURSOR = b"\r\n\x1b[?25h"  # a progress bar hides it


@contextlib.contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Yield a list to which the signals received are appended. For the main thread."""
    received: list[int] = []
    with _handle_signals(lambda number, _: received.append(number), _end_at_the_second):
        yield received


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """End the process with one line and exit code 128 + number at the first signal.

    KeyboardInterrupt is less reliable: Python drops it inside some callbacks, and jaxlib of jax
    0.10 may crash at exit if it was raised during compilation.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handle_signals(lambda *_: None, _end_at_the_first):
        yield


@contextlib.contextmanager
def default_signal_handling() -> Iterator[None]:
    """Let signals end the process as they do by default, also while it waits outside Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _unignored_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unignored_signals() -> list[signal.Signals]:
    return [n for n in NUMBERS if signal.getsignal(n) != signal.SIG_IGN]


@contextlib.contextmanager
def _handle_signals(
    handler: Callable[[int, Any], None], listen: Callable[[int], None]
) -> Iterator[None]:
    """Install a signal handler, and run `listen` in a thread on the pipe with the numbers."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # a handler must not wait
    before = {number: signal.signal(number, handler) for number in _unignored_signals()}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, old in before.items():
            signal.signal(number, old)
        os.close(writer)
        thread.join()
        os.close(reader)


def _end_at_the_first(reader: int) -> None:
    while written := os.read(reader, 1):
        if written[0] in NUMBERS:
            with contextlib.suppress(OSError):
                os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"interrupted\n")
            exit_now(128 + written[0], flush=False)


def _end_at_the_second(reader: int) -> None:
    seen = 0
    while written := os.read(reader, 1):
        seen += written[0] in NUMBERS
        if seen == 2:
            exit_now(128 + written[0], flush=False)
        with contextlib.suppress(OSError):
            os.write(2, _STOPPING)
