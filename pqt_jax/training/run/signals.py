# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Signals to a run: the first is noted, for it to end in order; the second ends it at once.

They are SIGINT, SIGTERM and SIGHUP. SIGHUP is what a lost terminal sends; where it is ignored, as
under nohup, it stays so. What has nothing to save is ended by the first.

Python's own handlers run only between its instructions, and compilation takes seconds. A thread
therefore reads what the C handler writes to a pipe, and says that the first has been noted, or ends
the process, wherever it is.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pqt_jax.console import exit_now

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTED = b"stopping after this step; another signal ends the run at once, without a checkpoint\n"
_SHOW_CURSOR = b"\r\n\x1b[?25h"  # which a bar hides


@contextlib.contextmanager
def collect_signals() -> Iterator[list[int]]:
    """A list that signals add their numbers to. For the main thread."""
    received: list[int] = []
    with _heard(lambda number, _: received.append(number), _end_at_the_second):
        yield received


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """Signals end the process with one line and 128 + their number; for what has nothing to save.

    KeyboardInterrupt does it less well: Python drops it where it comes in a callback of its own,
    and jaxlib of jax 0.10 may crash at exit where it came while compiling.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _heard(lambda *_: None, _end_at_the_first):
        yield


@contextlib.contextmanager
def default_signal_handling() -> Iterator[None]:
    """Signals end the process as they do by default, also one that waits outside Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _not_ignored()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_ignored() -> list[signal.Signals]:
    return [n for n in NUMBERS if signal.getsignal(n) != signal.SIG_IGN]


@contextlib.contextmanager
def _heard(handler: Callable[[int, Any], None], listen: Callable[[int], None]) -> Iterator[None]:
    """Signals call a handler, and a thread listens to the pipe that their numbers go to."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # a handler must not wait
    before = {number: signal.signal(number, handler) for number in _not_ignored()}
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
            os.write(2, _NOTED)
