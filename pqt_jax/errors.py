# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What ends a run with one line instead of a traceback, and the printing of that line."""

import errno
import os
import sys
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, and what would be right."""

    exit_code = 2


class OutputError(RuntimeError):
    """Something cannot be written, through no fault of the input.

    Args:
      path: of the file or folder.
      error: the system's, or its text.
    """

    exit_code = 1

    def __init__(self, path: Path, error: OSError | str):
        reason = error if isinstance(error, str) else error.strerror or str(error)
        full = reason in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
        remedy = "free some" if full else "mend that"
        super().__init__(
            f"cannot write {path}: {reason[:1].lower()}{reason[1:]}; "
            f"{remedy} and run the command again"
        )


def say(message: str) -> None:
    """Print one line on stderr, whatever characters are in it."""
    print(escaped(message), file=sys.stderr, flush=True)


def escaped(text: str) -> str:
    """The text with what cannot be printed, line breaks included, as backslash escapes.

    Example:
      >>> print(escaped("two\\nlines"))
      two\\nlines
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
