# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""SIGINT and SIGTERM: the first is noted, for the run to end in order; the second ends it at once.

Python's own handlers run only between its instructions, and compilation takes seconds. A thread
therefore counts what the C handler writes to a pipe, and ends the process at the second signal,
wherever it is.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that signals add their numbers to. For the main thread."""
    received: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # a handler must not wait
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in NUMBERS}
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


def _end_at_the_second(reader: int) -> None:
    seen = 0
    while written := os.read(reader, 1):
        seen += written[0] in NUMBERS
        if seen == 2:
            os._exit(128 + written[0])
