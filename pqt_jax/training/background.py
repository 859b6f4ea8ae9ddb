# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What makes a start faster: calls in a thread, and tracing without garbage collection.

XLA compiles outside Python, which can trace or compile something else meanwhile.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def call_in_thread(function: Callable[[], T]) -> Callable[[], T]:
    """Begin to call a function in a thread, which ends with the call.

    Example:
      >>> call_in_thread(lambda: 6 * 7)()
      42

    Args:
      function: what is called.

    Returns:
      A function that waits for the end of the call, and returns or raises what the call did.
    """
    executor = ThreadPoolExecutor(1)
    result = executor.submit(function).result
    executor.shutdown(wait=False)
    return result


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no garbage while the body runs, such as a trace, which makes objects that stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
