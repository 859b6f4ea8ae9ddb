# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Where text comes from: files → a training and a validation array of bytes, with a fingerprint.

Without files of the user's own, the text is the Python source of the running interpreter's standard
library, about ten megabytes that are on every machine. It differs between interpreters: losses on
it compare only under the same fingerprint.
"""

import glob
import hashlib
import os
import stat
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pqt_jax.errors import InputError, system_reason

_FIELD = "config.data.files"
_GIVE = "give a text file, or a glob such as 'books/**/*.txt'"

VALIDATION_ONE_IN = 20  # one file in twenty is for validation; of a single file, its last twentieth

# Tests and bundled packages are most of the volume and vary by distribution; the others hold code
# that was written to be odd.
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


class Tokens(Protocol):
    """Many tokens: an array, or what gives slices of it."""

    @property
    def dtype(self) -> np.dtype:
        """uint8, uint16 or uint32."""
        ...

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def __getitem__(self, at: Any, /) -> Any:
        """Tokens `start:stop`."""
        ...


class Text(NamedTuple):
    """The text of a run.

    Attributes:
      train: the training tokens, one document after the other: uint8[n], each a byte, or
        `tokens.Stream`.
      validation: the held-out ones.
      fingerprint: SHA-256 over names, sizes and contents of all files, in hexadecimal.
      description: one line for people.
      end: the token that ends a document, if one is known; see `boundaries.set_end_token`.
    """

    train: Tokens
    validation: Tokens
    fingerprint: str
    description: str
    end: int | None = None


def load(files: str = "") -> Text:
    """Read the text.

    Args:
      files: a glob pattern (`**` descends into folders), or "" for the standard library.

    Returns:
      The text, split: one file in twenty is held out, chosen by the SHA-256 of its name; of a
      single file, the last 5 % of its bytes.

    Raises:
      InputError: if nothing matches, or a file is unreadable or empty.
    """
    root, paths = match_files(files) if files else _standard_library()
    contents = _contents(root, paths)
    train, validation = _split(contents)
    arrays = [np.frombuffer(b"".join(part.values()), np.uint8) for part in (train, validation)]
    digest = _fingerprint(contents)
    description = (
        f"{sum(map(len, arrays)):,} bytes in {len(contents)} file{'s' * (len(contents) > 1)} under "
        f"{root}, {len(arrays[1]):,} of them held out, fingerprint {digest[:12]}"
    )
    return Text(arrays[0], arrays[1], digest, description)


def read_validation_files(files: str = "") -> tuple[dict[str, bytes], str]:
    """The validation text of `load`, file by file.

    Args:
      files: as for `load`.

    Returns:
      (content by name, the fingerprint that `load` gives).

    Raises:
      InputError: as `load` does.
    """
    contents = _contents(*(match_files(files) if files else _standard_library()))
    return _split(contents)[1], _fingerprint(contents)


def read_files(pattern: str, argument: str) -> dict[str, bytes]:
    """All files that a glob matches.

    Args:
      pattern: `**` descends into folders.
      argument: what the pattern is called in an error.

    Returns:
      Content by name, sorted by name.

    Raises:
      InputError: if nothing matches, or a file is unreadable or empty.
    """
    return _contents(*match_files(pattern, argument), argument)


def _standard_library() -> tuple[Path, list[Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path
        for path in root.rglob("*.py")
        if not _SKIPPED & set(path.relative_to(root).parts) and path.stat().st_size
    ]
    if not paths:
        raise InputError(
            f"the standard library has no .py files under {root}; "
            "give text of your own by config.data.files=GLOB"
        )
    return root, paths


def match_files(pattern: str, argument: str = _FIELD, give: str = _GIVE) -> tuple[Path, list[Path]]:
    """The files that a glob matches, and the folder that holds them all.

    Args:
      pattern: `**` descends into folders.
      argument: what the pattern is called in an error.
      give: what would be right, in one.

    Raises:
      InputError: if nothing matches.
    """
    expanded = os.path.expanduser(pattern)
    try:
        literal = os.path.isfile(expanded)  # also where its name reads as a pattern
        found = [expanded] if literal else glob.glob(expanded, recursive=True)
        paths = [Path(name) for name in found if not os.path.isdir(name)]
        missing = f"matches {'only folders' if found else 'no file'}; {give}"
        if not found and not glob.has_magic(pattern):
            os.stat(expanded)
    except FileNotFoundError:
        paths, missing = [], f"does not exist; {give}"
    except OSError as error:
        paths, missing = [], f"cannot be read: {system_reason(error, give)}"
    except ValueError as error:  # a NUL byte
        paths, missing = [], f"cannot be read: {error}; {give}"
    if not paths:
        raise InputError(f"{argument}={pattern!r} {missing}")
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return root, [path.absolute() for path in paths]


def _contents(root: Path, paths: Sequence[Path], argument: str = _FIELD) -> dict[str, bytes]:
    names = {path.relative_to(root).as_posix(): path for path in paths}
    return {name: _read(names[name], argument) for name in sorted(names)}


def _fingerprint(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(os.fsencode(f"{name}\0{len(content)}\0"))  # names may hold any byte
        digest.update(content)
    return digest.hexdigest()


def _split(contents: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Training and validation."""
    if len(contents) == 1:
        ((name, content),) = contents.items()
        cut = len(content) - len(content) // VALIDATION_ONE_IN
        return {name: content[:cut]}, {name: content[cut:]}
    chosen = _held_out(list(contents))
    train = {name: content for name, content in contents.items() if name not in chosen}
    return train, {name: contents[name] for name in sorted(chosen)}


def _held_out(names: Sequence[str]) -> set[str]:
    """Names for validation, by their hashes: another file added moves none of the others."""
    order = {name: int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) for name in names}
    chosen = {name for name in names if order[name] % VALIDATION_ONE_IN == 0}
    if not chosen or len(chosen) == len(names):
        chosen = {min(names, key=order.__getitem__)}
    return chosen


def _read(path: Path, argument: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise InputError(f"{argument}: {path} is not a regular file; leave it out")
        content = path.read_bytes()
    except OSError as error:
        why = system_reason(error, "leave it out")
        raise InputError(f"{argument}: cannot read {path}: {why}") from None
    if not content:
        raise InputError(f"{argument}: {path} is empty; leave it out")
    return content
