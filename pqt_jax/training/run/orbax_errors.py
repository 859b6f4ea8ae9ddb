# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Failures of Orbax as one exception with a one-line reason, without log lines or tracebacks.

    call_orbax     one call: prints nothing, and raises an OrbaxError if it fails
    quiet_orbax    a context for a whole run: Orbax's background threads print nothing

A read or write that fails leaves log lines, coroutines that were never awaited and closed event
loops behind. Python prints a traceback for each of these when it is collected, which may be as late
as the end of the process. Nothing is lost by silencing them: the failure itself is raised, by the
call or by a later one.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

_REPORTED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
)


class OrbaxError(RuntimeError):
    """A call of Orbax failed; the message is a short reason on one line."""


def call_orbax(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of Orbax.

    Args:
      function, args, options: the function and its arguments.

    Returns:
      What the function returns.

    Raises:
      OrbaxError: if it raises any exception.
    """
    hook, level = sys.unraisablehook, logging.root.manager.disable
    sys.unraisablehook = _ignore
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return function(*args, **options)
            except Exception as error:  # the type depends on what is damaged, or where a disk ends
                reason = _short_reason(error)
            _wait_for_event_loops()  # the frames of the call are gone here
    finally:
        sys.unraisablehook = hook
        logging.disable(level)
    raise OrbaxError(reason)


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silence what Orbax's background threads print about failures that a later call raises."""
    hook = sys.unraisablehook

    def report_unraisable(unraisable: Any) -> None:
        # TensorStore's threads report to the event loop of a call that has failed.
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    def is_not_orbax(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL or "/orbax/" not in record.pathname

    def is_not_unretrieved(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    filters = ((logging.getLogger("absl"), is_not_orbax),)
    filters += ((logging.getLogger("asyncio"), is_not_unretrieved),)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"coroutine '.*serialize.*' was never awaited", RuntimeWarning
        )
        for logger, function in filters:
            logger.addFilter(function)
        sys.unraisablehook = report_unraisable
        try:
            yield
        finally:
            gc.collect()  # what would complain later complains now, unheard
            sys.unraisablehook = hook
            for logger, function in filters:
                logger.removeFilter(function)


def _ignore(_: Any) -> None:
    """Replaces `sys.unraisablehook` during a call."""


def _wait_for_event_loops(patience: float = 5.0) -> None:
    """Collect the event loops that a failed call left, and wait for the threads that use them.

    Reads that were under way report to the event loop of the call, which is closed, and print an
    error. They hold a reference to the loop until they have done so.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        gc.collect()
        if not any(issubclass(type(x), asyncio.BaseEventLoop) for x in gc.get_objects()):
            return
        time.sleep(0.02)


def _short_reason(error: BaseException) -> str:
    """The system's reason, if the long text of Orbax contains one; else the start of the text."""
    text = f"{type(error).__name__}: {error}"
    for number in _REPORTED:
        if os.strerror(number) in text:
            return os.strerror(number)
    return textwrap.shorten(text, 90)
