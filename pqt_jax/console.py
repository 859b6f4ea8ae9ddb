# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What all commands share: parsing arguments, printing lines, and ending with an exit code."""

import argparse
import codecs
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pqt_jax.errors import HUNG_UP, INTERRUPTED, TERMINATED, UNREAD, InputError, OutputError

_SIGNALLED = (HUNG_UP, INTERRUPTED, TERMINATED)
_PATHS = ("DIR", "FILE", "GLOB", "RUN")  # metavars of options that name files or folders


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` and accepts no abbreviated options.

    An option or argument with a metavar of `_PATHS` takes paths of this machine alone.
    """

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and refuse addresses such as gs://bucket/run."""
        known, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if action.metavar in _PATHS:
                value = getattr(known, action.dest)
                for path in value if isinstance(value, list) else [value or ""]:
                    try:
                        check_local(path)
                    except ValueError as error:
                        hint = "; training can write its checkpoints to one, by config.log.store"
                        is_bucket = _name(action) == "--workdir" and path.startswith("gs://")
                        reason = f"{error}{hint if is_bucket else ''}"
                        raise InputError(f"{_name(action)}={path!r}; {reason}") from None
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        message = message.removeprefix("argument ")
        option = message.removesuffix(": expected one argument")
        if option != message:  # also for a value that begins with -, which is taken for an option
            message = f"{option} has no value; give {option}=VALUE"
        raise InputError(message)


def _name(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar)


def check_local(path: str) -> None:
    """Raise ValueError for an address, of which `pathlib` would make a folder named "gs:".

    Example:
      >>> check_local("runs/quickstart")
      >>> check_local("s3://bucket/run")
      Traceback (most recent call last):
      ValueError: it must be a path of this machine, and not an address
    """
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise ValueError("it must be a path of this machine, and not an address")


def whole_number(text: str) -> int:
    """Read a whole number, which may be written as 1e8.

    Example:
      >>> whole_number("1e8"), whole_number("9007199254740993")
      (100000000, 9007199254740993)

    Raises:
      ValueError: for other text.
    """
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise
        return int(value)


def number(kind: type, good: Callable[[Any], bool], wanted: str) -> Callable[[str], Any]:
    """Make a function for `add_argument(type=…)` that reads a number within a range.

    Example:
      >>> number(int, lambda n: n > 0, "a whole number from 1 on")("12")
      12

    Args:
      kind: int or float.
      good: whether a number is in the range.
      wanted: the range in words, for the error message.
    """

    def read(text: str) -> Any:
        try:
            if good(value := whole_number(text) if kind is int else kind(text)):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r}; it must be {wanted}")

    return read


def run(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command, and print one line instead of a traceback if it fails.

    Args:
      command: does the work; takes the arguments.
      arguments: the command line without the program. None for `sys.argv[1:]`; then a signal
        ends the process here, since jaxlib of jax 0.10 may crash while Python ends if it was
        compiling.

    Returns:
      One of `errors.EXIT_CODES`.
    """
    if arguments is None and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # by `_start`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _run(command, sys.argv[1:] if arguments is None else arguments)
    if code in _SIGNALLED and arguments is None:
        exit_now(code)
    return code


def _run(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    escape_output()
    try:
        command(arguments)
        sys.stdout.flush()
        return 0
    except (InputError, OutputError) as error:
        print_error(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except SystemExit as end:
        if end.code not in _SIGNALLED:
            raise
        print_error("interrupted")
        return end.code
    except OSError as error:
        if _prints():
            raise
        return _close_stdout(error)


def print_and_exit(text: str) -> NoReturn:
    """Print a text that is all a command has to say, such as its help, and end the process."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise SystemExit(_close_stdout(error)) from None
    raise SystemExit(0)


def _close_stdout(error: OSError) -> int:
    """Drop what stdout still holds, and return the exit code; only a gone reader is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at exit
    if isinstance(error, BrokenPipeError):
        return UNREAD
    failure = OutputError("standard output", error)
    print_error(f"error: {failure}")
    return failure.exit_code


def exit_now(code: int, *, flush: bool = True) -> NoReturn:
    """End the process without Python's exit handlers, in which it may hang or crash.

    Args:
      code: exit code.
      flush: whether to write what stdout has buffered. False in a thread, in which stdout may be
        locked.
    """
    if flush:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    os._exit(code)


def _prints() -> bool:
    """Whether stdout can be written; text of a failed print may still be in its buffer."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def print_error(message: str) -> None:
    """Print one line on stderr, with unprintable characters escaped and long text shortened.

    If stderr cannot be written, the line is dropped.
    """
    line = re.sub(r"\S{400,}", lambda word: shorten(word[0], 200), escaped(message))
    with contextlib.suppress(OSError):
        print(shorten(line, 2000), file=sys.stderr, flush=True)


def print_line(text: str) -> None:
    """Print text on stdout; if it cannot be written, warn once on stderr and print no more."""
    try:
        print(text, flush=True)
    except OSError as error:
        # The buffered text would fail again, at exit at the latest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = (error.strerror or str(error)).lower()
        print_error(f"warning: standard output cannot be written ({reason}); going on without it")


def is_terminal() -> bool:
    """Whether stdout is a terminal that somebody may look at.

    Launchers make terminals whose text goes to a file: `mpirun` of Open MPI one for each process,
    `srun --pty` and containers one that has no columns.
    """
    if sys.stdout is None or not sys.stdout.isatty() or "OMPI_COMM_WORLD_SIZE" in os.environ:
        return False
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except OSError:  # a stream of Python without a descriptor
        return True


class LenientStream:
    """A stream whose write errors are ignored, such as those of a terminal that was closed.

    Args:
      stream: the stream to write to.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it can be written."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def format_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a text table.

    Example:
      >>> format_row(["bf16", "1.2500"], [8, -8])
      'bf16      1.2500'

    Args:
      cells: the texts of the columns.
      widths: widths of the columns in characters; negative to align right. A longer cell widens its
        column in this line.
    """
    aligned = [
        cell.ljust(width) if width >= 0 else cell.rjust(-width)
        for cell, width in zip(cells, widths, strict=True)
    ]
    return "".join(aligned).rstrip()


def shorten(text: str, length: int) -> str:
    """The text, with its middle replaced by "…" if it is longer than `length`.

    Example:
      >>> shorten("a" + 5000 * "x" + "b", 10)
      'axxxxxx…xxb'
    """
    tail = length // 3
    return text if len(text) <= length else f"{text[: length - tail]}…{text[-tail:]}"


def escape_output() -> None:
    """Let stdout and stderr print backslash escapes for characters that they cannot encode."""
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
    """The text with unprintable characters, line breaks included, as backslash escapes.

    A byte of a file name that is not UTF-8, which Python represents by a surrogate, becomes \\xff.

    Example:
      >>> print(escaped("two\\nlines"))
      two\\nlines
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", text)  # also those that repr() escaped


def format_quantity(number: int, noun: str) -> str:
    """A number and what it counts, in the singular for 1.

    Example:
      >>> format_quantity(1, "matrix"), format_quantity(1200, "array")
      ('1 matrix', '1,200 arrays')
    """
    plurals = {"matrix": "matrices", "process": "processes", "loss": "losses"}
    plurals |= {"way to train": "ways to train"}
    return f"{number:,} {noun if number == 1 else plurals.get(noun, noun + 's')}"
