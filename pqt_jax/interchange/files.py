# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files read and written.

They are written atomically: after a kill or on a full disk the old or the new file is complete. A
pipe or a device in the place of a file is an error, since reading it may never end.
"""

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from pqt_jax.errors import OutputError


def open_file(path: Path) -> BufferedReader:
    """Open a regular file to read bytes.

    Raises:
      OSError: if it cannot be opened, or is no regular file.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # Python refuses a directory itself
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return descriptor


def read_bytes(path: Path) -> bytes:
    """Read a regular file.

    Raises:
      OSError: as `open_file`.
    """
    with open_file(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Read a JSON value from a regular file.

    Raises:
      OSError: as `open_file`.
      ValueError: as `parse_json`.
    """
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from a file.

    Raises:
      ValueError: if it is not JSON, or nested too deep; the message is one line.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from None


def check_name(name: Any) -> str:
    """Return a name that was read from a file, of another file in the same folder.

    Raises:
      ValueError: if it is no such name.
    """
    if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file")
    os.fsencode(name)  # raises for what cannot be in a name
    return name


def append(path: Path, line: str) -> None:
    """Append a line to a file, by one write.

    Raises:
      OutputError: if it cannot be written.
    """
    try:
        with path.open("ab") as file:
            file.write(line.encode())
    except OSError as error:
        raise OutputError(path, error) from None


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Raise OutputError for the OSErrors of a body that writes a file."""
    try:
        yield
    except OSError as error:
        raise OutputError(path, error) from None


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically: it is replaced when the new content is complete.

    Raises:
      OutputError: if it cannot be written.
    """
    write_chunks(path, [content.encode() if isinstance(content, str) else content])


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file atomically, as `write`, chunk by chunk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OutputError(path, error) from None


def replace_nonfinite(value: Any) -> Any:
    """Replace NaN and ±Inf by None, which JSON can represent, also inside dicts and lists.

    Example:
      >>> replace_nonfinite({"loss": float("nan"), "steps": [1, 2.5]})
      {'loss': None, 'steps': [1, 2.5]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: replace_nonfinite(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [replace_nonfinite(inside) for inside in value]
    return value
