# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What ends a run with one line instead of a traceback, and the printing of that line."""

import codecs
import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, and what would be right."""

    exit_code = 2


class OutputError(RuntimeError):
    """Something cannot be written, through no fault of the input.

    Args:
      path: of the file or folder, or a name of what is written to.
      error: the system's, or its text.
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


INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE


def run(command: Callable[[], int]) -> int:
    """Run a command, and end it with one line, whatever it was that ended it.

    Args:
      command: returns an exit code.

    Returns:
      That code, or those of `InputError` and `OutputError`; 130 after Ctrl-C; 141, in silence,
      where nobody reads the output any more, as of `command | head`.
    """
    escape_output()
    try:
        code = command()
        sys.stdout.flush()
        return code
    except (InputError, OutputError) as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except OSError as error:
        if _prints():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at exit
        if isinstance(error, BrokenPipeError):
            return UNREAD
        failure = OutputError("standard output", error)
        say(f"error: {failure}")
        return failure.exit_code


def leave(code: int) -> NoReturn:
    """End the process with the code of `run`.

    After Ctrl-C at once: jaxlib of jax 0.10 may crash while Python ends, if it was compiling.
    """
    if code != INTERRUPTED:
        sys.exit(code)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _prints() -> bool:
    """Whether stdout takes anything: what failed may be buffered still, or not be buffered."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def system_reason(error: OSError, remedy: str) -> str:
    """Why a path cannot be used, and what to do: the remedy, or what helps a path too long."""
    if error.errno == errno.ENAMETOOLONG:
        remedy = "give a shorter path"
    return f"{error.strerror}; {remedy}"


def say(message: str) -> None:
    """Print one line on stderr, whatever characters are in it; what is long is cut.

    Where stderr cannot be written, there is nobody to tell, and what was to be said is dropped.
    """
    line = re.sub(r"\S{400,}", lambda word: cut(word[0], 200), escaped(message))
    with contextlib.suppress(OSError):
        print(cut(line, 2000), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print on stdout; where nobody reads it any more, go on without it, and say so once."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What is buffered would fail again, at exit at the latest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = (error.strerror or str(error)).lower()
        say(f"warning: standard output cannot be written ({reason}); going on without it")


class Lenient:
    """A stream that may go away, as a terminal does: what cannot be written is dropped then.

    Args:
      stream: what it writes to.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of a stream."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of a stream."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def cut(text: str, length: int) -> str:
    """The text, without its middle if it is longer.

    Example:
      >>> cut("a" + 5000 * "x" + "b", 10)
      'axxxxxx…xxb'
    """
    tail = length // 3
    return text if len(text) <= length else f"{text[: length - tail]}…{text[-tail:]}"


def escape_output() -> None:
    """Let stdout and stderr show, by escapes, what they cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return escaped(text.encode("ascii", "backslashreplace").decode()), error.end


_HANDLER = "pqt_jax.escape"
codecs.register_error(_HANDLER, _escape)


def escaped(text: str) -> str:
    """The text with what cannot be printed, line breaks included, as backslash escapes.

    A byte of a file name that is no text, which Python holds as a surrogate, is itself: \\xff.

    Example:
      >>> print(escaped("two\\nlines"))
      two\\nlines
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", text)  # also those that repr() escaped
