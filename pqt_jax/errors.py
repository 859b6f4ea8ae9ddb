# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The errors that end a command with one line instead of a traceback, and their exit codes."""

import errno
import os
import signal
from pathlib import Path

# A shell reports 128 + N for a process that signal N ended.
HUNG_UP = 128 + signal.SIGHUP
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE
TERMINATED = 128 + signal.SIGTERM
EXIT_CODES = {
    0: "done",
    1: "something could not be written",
    2: "the input cannot be used: one line on stderr says why, and nothing was compiled",
    HUNG_UP: "ended by SIGHUP, as when the terminal is closed",
    INTERRUPTED: "interrupted by Ctrl-C",
    UNREAD: "the reader of the output has gone, as in `command | head`",
    TERMINATED: "ended by SIGTERM",
}
# What is raised where the content of a file has another type, shape or size than it should have.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class InputError(ValueError):
    """An argument, config field or file cannot be used; the message says what would be right."""

    exit_code = 2


class OutputError(RuntimeError):
    """A file or folder cannot be written, although the input is valid.

    Args:
      path: the file or folder, or a name such as "standard output".
      error: the error of the operating system, or its text.
    """

    exit_code = 1

    def __init__(self, path: Path | str, error: OSError | str):
        self.error = error
        reason = error if isinstance(error, str) else error.strerror or str(error)
        full = reason in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
        remedy = "free some" if full else "mend that"
        super().__init__(
            f"cannot write {path}: {reason[:1].lower()}{reason[1:]}; "
            f"{remedy} and run the command again"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of JAX says that the memory of a device does not suffice."""
    return str(error).startswith("RESOURCE_EXHAUSTED")


def system_reason(error: OSError, remedy: str) -> str:
    """The reason of a system error and what to do about it.

    Args:
      error: raised for a path.
      remedy: what the user can do, unless the path is too long.
    """
    if error.errno == errno.ENAMETOOLONG:
        remedy = "give a shorter path"
    return f"{error.strerror}; {remedy}"
