# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Traces of a few steps by JAX's profiler, for TensorBoard, XProf or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from pqt_jax.console import print_error, print_line
from pqt_jax.training.run import distributed

_WARMUP, _STEPS = 10, 5  # number of steps before the trace, at most, and in it


@contextlib.contextmanager
def trace_steps(folder: Path | None, left: int) -> Iterator[Callable[[int], None]]:
    """Trace five steps after the tenth; in a short run, up to five steps after its first half.

    If the trace cannot be written, a warning is printed and training continues.

    Args:
      folder: where the first process writes the trace; None for no trace.
      left: number of steps that will be taken.

    Yields:
      A function to call before each step with the number of the step, counted from 1.
    """
    if folder is None or left < 1 or not distributed.is_first_process():
        yield lambda step: None
        return
    begin = min(_WARMUP, left // 2) + 1
    end = min(begin + _STEPS, left + 1)
    running = False

    def call_or_warn(function: Callable[[], None]) -> bool:
        try:
            function()
            return True
        except (RuntimeError, OSError) as error:
            print_error(f"warning: no trace is written to {folder}: {error}")
            return False

    def stop() -> None:
        nonlocal running
        running = False
        if call_or_warn(jax.profiler.stop_trace):
            print_line(f"wrote a trace of {end - begin} steps to {folder}")

    def before_step(step: int) -> None:
        nonlocal running
        if step == begin:
            running = call_or_warn(lambda: jax.profiler.start_trace(str(folder)))
        elif step == end and running:
            stop()

    try:
        yield before_step
    finally:
        if running:  # the run ends during the trace
            stop()
