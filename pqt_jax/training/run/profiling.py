# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A trace of a few steps by JAX's profiler, for TensorBoard, XProf or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from pqt_jax.console import print_error, print_line
from pqt_jax.training.run import distributed

_WARM, _STEPS = 10, 5  # steps before a trace, where there are so many, and in it


@contextlib.contextmanager
def trace_steps(folder: Path | None, left: int) -> Iterator[Callable[[int], None]]:
    """Trace five steps after the tenth; of a short run, what follows its first half.

    A trace that cannot be written is a warning: the run is worth more.

    Args:
      folder: to write to, by the first process; None for no trace.
      left: steps that are to come.

    Yields:
      A function to call before each step with its number, counted from 1.
    """
    if folder is None or left < 1 or not distributed.is_first_process():
        yield lambda step: None
        return
    begin = min(_WARM, left // 2) + 1
    end = min(begin + _STEPS, left + 1)
    running = False

    def tried(function: Callable[[], None]) -> bool:
        try:
            function()
            return True
        except (RuntimeError, OSError) as error:
            print_error(f"warning: no trace is written to {folder}: {error}")
            return False

    def stop() -> None:
        nonlocal running
        running = False
        if tried(jax.profiler.stop_trace):
            print_line(f"wrote a trace of {end - begin} steps to {folder}")

    def before(step: int) -> None:
        nonlocal running
        if step == begin:
            running = tried(lambda: jax.profiler.start_trace(str(folder)))
        elif step == end and running:
            stop()

    try:
        yield before
    finally:
        if running:  # the run ends within it
            stop()
