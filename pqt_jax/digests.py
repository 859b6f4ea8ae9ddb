# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Digests of a checkpoint's files, by which damage is found, and named, without reading a state.

step directory → digests.json: {"state/d/ab12": [bytes, SHA-256], …}
"""

import hashlib
import json
from pathlib import Path

from pqt_jax import files

FILE = "digests.json"


def write(folder: Path) -> None:
    """Write the digests of all files in a folder into it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in paths}
    files.write(folder / FILE, json.dumps(digests, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """What differs from the digests; None if nothing does, or if there are no digests.

    They are missing where a run was killed between saving a checkpoint and writing them.
    """
    if not (folder / FILE).exists():
        return None
    try:
        digests = json.loads((folder / FILE).read_text())
        for name, (size, expected) in digests.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            found_size, found = _digest(folder / name)
            if found_size != size:
                return f"{name}: {found_size} bytes, {size} were written"
            if found != expected:
                return f"{name}: other bytes than were written"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{FILE} is not what was written"
    return None


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
