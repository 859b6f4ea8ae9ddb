# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files written atomically: after a kill or on a full disk the old or the new file is complete."""

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pqt_jax.errors import OutputError


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
