# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Text files → a training and a validation array of bytes, with a fingerprint.

By default the text is the Python source of the standard library of the running interpreter: about
ten megabytes that every machine has. It differs between versions of Python, so losses on it are
comparable only if the fingerprints are equal.
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

from pqt_jax.data.file_kinds import is_marked_up, recognize
from pqt_jax.data.splits import describe_contradictions, list_some
from pqt_jax.errors import InputError, system_reason

_FIELD = "config.data.files"
_GIVE = "give a text file, or a glob such as 'books/**/*.txt'"

VALIDATION_ONE_IN = 20  # one file in 20 is for validation; of a single file, its last 1/20

# Tests and bundled packages are most of the volume and depend on the distribution. The others
# contain unusual code on purpose.
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


class Tokens(Protocol):
    """Tokens that can be sliced: an array, or `tokens.Stream`."""

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
      train: the training tokens, documents concatenated: uint8[n] with one byte each, or a
        `tokens.Stream`.
      validation: the validation tokens.
      fingerprint: SHA-256 over names, sizes and contents of all files, in hexadecimal.
      description: one line for the summary of a run.
      end: the token that ends a document, or None if it is unknown; see `boundaries.set_end_token`.
    """

    train: Tokens
    validation: Tokens
    fingerprint: str
    description: str
    end: int | None = None


def load(files: str = "") -> Text:
    """Read the text.

    Args:
      files: a glob pattern (`**` matches nested folders), or "" for the standard library.

    Returns:
      The text. One file in twenty is for validation, chosen by the SHA-256 of its name; of a single
      file, the last 5 % of its bytes.

    Raises:
      InputError: if no file matches, one is unreadable, or all are empty.
    """
    root, paths = match_files(files) if files else _standard_library()
    contents, empty = _contents(root, paths)
    train, validation = _split(contents)
    arrays = [np.frombuffer(b"".join(part.values()), np.uint8) for part in (train, validation)]
    digest = _fingerprint(contents)
    description = (
        f"{sum(map(len, arrays)):,} bytes in {len(contents)} file{'s' * (len(contents) > 1)} under "
        f"{root}, {len(arrays[1]):,} of them for validation, fingerprint {digest[:12]}"
    )
    if files and len(contents) > 1:
        description += f"; validation: {list_some(list(validation))}"
        if contradictions := describe_contradictions(train, validation):
            description += f"; {contradictions}"
    if marked := [name for name in contents if is_marked_up(name)]:
        description += (
            f"; read as they are, with their markup: {list_some(marked)} (pqt_jax.data.prepare "
            "reads the documents in them)"
        )
    if empty:
        description += f"; left out, since empty: {list_some(empty)}"
    return Text(train=arrays[0], validation=arrays[1], fingerprint=digest, description=description)


def read_validation_files(files: str = "", give: str = _GIVE) -> tuple[dict[str, bytes], str]:
    """Read the validation text of `load` as separate files.

    Args:
      files: as for `load`.
      give: what to give if no file matches, for messages.

    Returns:
      (content by name, the fingerprint that `load` returns).

    Raises:
      InputError: like `load`.
    """
    contents, _ = _contents(*(match_files(files, give=give) if files else _standard_library()))
    return _split(contents)[1], _fingerprint(contents)


def _standard_library() -> tuple[Path, list[Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = []
    for folder, folders, names in os.walk(root):
        # Pruned, since site-packages may hold twenty times as many files.
        folders[:] = [name for name in folders if name not in _SKIPPED]
        files = [Path(folder, name) for name in names if name.endswith(".py")]
        paths += [path for path in files if path.stat().st_size]
    if not paths:
        raise InputError(
            f"the standard library has no .py files under {root}; "
            "give text of your own by config.data.files=GLOB"
        )
    return root, paths


def match_files(pattern: str, argument: str = _FIELD, give: str = _GIVE) -> tuple[Path, list[Path]]:
    """Find the files that a glob matches.

    Args:
      pattern: a glob; `**` matches nested folders.
      argument: the name of the argument, for messages.
      give: what to give instead, for messages.

    Returns:
      (the innermost folder that contains all files, the files).

    Raises:
      InputError: if no file matches.
    """
    expanded = os.path.expanduser(pattern)
    try:
        is_file = os.path.isfile(expanded)  # its name may contain the characters of a pattern
        matches = [expanded] if is_file else glob.glob(expanded, recursive=True)
        paths = [Path(name) for name in matches if not os.path.isdir(name)]
        missing = f"matches {'only folders' if matches else 'no file'}; {give}"
        if not matches and not glob.has_magic(pattern):
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


def _contents(root: Path, paths: Sequence[Path]) -> tuple[dict[str, bytes], list[str]]:
    """Read files: (content by name, names of those that are empty)."""
    names = {path.relative_to(root).as_posix(): path for path in paths}
    contents = {name: _read(names[name]) for name in sorted(names)}
    empty = [name for name in contents if not contents[name]]
    if len(empty) == len(contents):
        raise InputError(f"{_FIELD}: {names[empty[0]]} is empty; give files with text")
    return {name: content for name, content in contents.items() if content}, empty


def _fingerprint(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(os.fsencode(f"{name}\0{len(content)}\0"))  # names may hold any byte
        digest.update(content)
    return digest.hexdigest()


def _split(contents: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Split contents by name into training and validation."""
    if len(contents) == 1:
        ((name, content),) = contents.items()
        split = len(content) - len(content) // VALIDATION_ONE_IN
        return {name: content[:split]}, {name: content[split:]}
    chosen = _choose_validation(list(contents))
    train = {name: content for name, content in contents.items() if name not in chosen}
    return train, {name: contents[name] for name in sorted(chosen)}


def _choose_validation(names: Sequence[str]) -> set[str]:
    """Choose names for validation by their hashes, so that adding a file moves no other."""
    order = {name: int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) for name in names}
    chosen = {name for name in names if order[name] % VALIDATION_ONE_IN == 0}
    if not chosen or len(chosen) == len(names):
        chosen = {min(names, key=order.__getitem__)}
    return chosen


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise InputError(f"{_FIELD}: {path} is not a regular file; leave it out")
        kind = recognize(path, _FIELD)
        if kind.kind == "parquet" or kind.compression:
            raise InputError(
                f"{_FIELD}: {path} is a {kind.compression or kind.kind} file, and text is read "
                "here; unpack it, or prepare it with pqt_jax.data.prepare"
            )
        return path.read_bytes()
    except OSError as error:
        why = system_reason(error, "leave it out")
        raise InputError(f"{_FIELD}: cannot read {path}: {why}") from None
