# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Signals to a run: the first is noted, for it to end in order; the second ends it at once.

They are SIGINT, SIGTERM and SIGHUP. SIGHUP is what a lost terminal sends; where it is ignored, as
under nohup, it stays so.

Python's own handlers run only between its instructions, and compilation takes seconds. A thread
therefore counts what the C handler writes to a pipe, says that the first has been noted, and ends
the process at the second, wherever it is.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTED = b"stopping after this step; another signal ends the run at once, without a checkpoint\n"


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that signals add their numbers to. For the main thread."""
    received: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # a handler must not wait
    heard = [n for n in NUMBERS if signal.getsignal(n) != signal.SIG_IGN]
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in heard}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True)
    thread.start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Signals end the process as they do by default, also one that waits outside Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [n for n in NUMBERS if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_the_second(reader: int) -> None:
    seen = 0
    while written := os.read(reader, 1):
        seen += written[0] in NUMBERS
        if seen == 2:
            os._exit(128 + written[0])
        with contextlib.suppress(OSError):
            os.write(2, _NOTED)
