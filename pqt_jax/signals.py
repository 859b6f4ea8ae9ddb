# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""SIGINT, SIGTERM and SIGHUP.

    collect_signals            the first asks the run to stop after a step; the second ends it
    exit_on_signal             the first ends the process: for commands that have nothing to save
    raise_exit                 SIGTERM and SIGHUP raise an exception, as Ctrl-C does
    deferred                   signals wait for a few instructions that belong together
    blocked                    processes that are started do not receive them
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
from collections.abc import Callable, Iterator, Sequence
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
def raise_exit() -> Iterator[None]:
    """Raise SystemExit(128 + number) at SIGTERM or SIGHUP, so that the body can clean up.

    By default they end the process at once. A program that handles or ignores them keeps its way.
    """

    def handle(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    at_once = [n for n in NUMBERS if signal.getsignal(n) == signal.SIG_DFL]
    with _handlers(handle, at_once):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait for the end of the body, and do then what they would have done."""
    received: list[int] = []
    try:
        with _handlers(lambda number, _: received.append(number), _unignored_signals()):
            yield
    finally:
        for number in received:
            signal.raise_signal(number)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Let signals wait, also in processes that are started meanwhile, where they wait for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def default_signal_handling() -> Iterator[None]:
    """Let signals end the process as they do by default, also while it waits outside Python."""
    with _handlers(signal.SIG_DFL, _unignored_signals()):
        yield


@contextlib.contextmanager
def _handlers(handler: Any, numbers: Sequence[int]) -> Iterator[None]:
    """Handle signals by `handler` in the body; not in a thread, which is not allowed to."""
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _unignored_signals() -> list[signal.Signals]:
    # None: not installed by Python, which could not put it back.
    return [n for n in NUMBERS if signal.getsignal(n) not in (signal.SIG_IGN, None)]


@contextlib.contextmanager
def _handle_signals(
    handler: Callable[[int, Any], None], listen: Callable[[int], None]
) -> Iterator[None]:
    """Install a signal handler, and run `listen` in a thread on the pipe with the numbers."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # a handler must not wait
    thread = threading.Thread(target=listen, args=(reader,), daemon=True)
    thread.start()
    try:
        with _handlers(handler, _unignored_signals()):
            wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(wakeup)
    finally:
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
