# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Calls of Orbax whose failures are one line: what it says of them elsewhere is silenced.

A read or write that fails leaves log lines, coroutines that were never awaited and closed event
loops behind, and these complain in tracebacks whenever they are collected, at the latest at exit.
"""

import asyncio
import errno
import gc
import logging
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from typing import Any


class OrbaxError(RuntimeError):
    """A call of Orbax failed; the message is the reason, short and on one line."""


def call_orbax(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of Orbax.

    Args:
      function, args, options: the function and its arguments.

    Returns:
      What the function returns.

    Raises:
      OrbaxError: if it fails, in whatever way.
    """
    hook, level = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = lambda _: None
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return function(*args, **options)
            except Exception as error:  # what is raised depends on where damage or disk end
                reason = _reason(error)
            _let_go()
    finally:
        sys.unraisablehook = hook
        logging.disable(level)
    raise OrbaxError(reason)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or "/orbax/" not in record.pathname


def _not_of_a_future(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


# What it logs from its threads is raised by a later call.
logging.getLogger("absl").addFilter(_not_of_orbax)
logging.getLogger("asyncio").addFilter(_not_of_a_future)
warnings.filterwarnings("ignore", r"coroutine '.*serialize.*' was never awaited", RuntimeWarning)


def _not_of_a_closed_loop(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return report


# What TensorStore's threads report to a loop that has failed and closed, its error being raised.
sys.unraisablehook = _not_of_a_closed_loop(sys.unraisablehook)


def _let_go(patience: float = 5.0) -> None:
    """Collect what a failed call left, its frames being gone, and wait for its threads.

    Reads that were under way report to the call's event loop, which is closed, and so complain;
    they hold on to it until they have.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        gc.collect()
        if not any(issubclass(type(x), asyncio.BaseEventLoop) for x in gc.get_objects()):
            return
        time.sleep(0.02)


def _reason(error: BaseException) -> str:
    """The system's reason where there is one, which Orbax wraps in a long text; else the start."""
    text = f"{type(error).__name__}: {error}"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return textwrap.shorten(text, 90)
