# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Folders written so that a kill or a full disk leaves them whole: the old one, or the new.

    .name.12ab34cd.part      being written by a process that holds its lock, or left by a dead one
    .name.12ab34cd.old       replaced; put back where a process died between the two renames

What dead writers left is removed by the next writer of the same folder. A folder is replaced only
where every name in it is one that this package gives.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from pqt_jax.errors import InputError, OutputError

_PART, _OLD = ".part", ".old"
_WRITTEN = re.compile(
    r"config\.json|report\.(txt|json|png)|weights\.safetensors"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
Overwrite = bool | re.Pattern[str] | None


@contextlib.contextmanager
def atomic_folder(out: str | os.PathLike[str], overwrite: Overwrite = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` where the body ends well, and vanishes elsewhere.

    Example:
      >>> import tempfile
      >>> out = Path(tempfile.mkdtemp()) / "export"
      >>> with atomic_folder(out) as temporary:
      ...     _ = (temporary / "config.json").write_text("{}")
      ...     out.exists()
      False
      >>> [path.name for path in out.iterdir()]
      ['config.json']

    Args:
      out: the folder to be. Its parents are made; a link to a folder is followed.
      overwrite: replace what is there, once the new folder is whole; only if an export may have
        written it, or, of a pattern, if every name in it matches. None is False for callers that
        offer no choice.

    Yields:
      The temporary folder, beside `out`. An OSError of the body counts as a failure to write it.

    Raises:
      InputError: if `out` is no folder, or holds something that may not be replaced.
      OutputError: if the system refuses to write.
    """
    given, out = Path(out), check_destination(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _begin(given, out, overwrite)
    except OSError as error:
        raise OutputError(given, error) from None
    try:
        yield temporary
        _sync(temporary)
        _finish(given, temporary, out, overwrite)
    except OSError as error:
        raise OutputError(given, error) from None
    except OutputError as error:  # of a file in the temporary folder, a name that helps nobody
        raise OutputError(given, error.error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already where all went well
        os.close(descriptor)


def check_destination(out: str | os.PathLike[str], overwrite: Overwrite = False) -> Path:
    """Raise what `atomic_folder` would for what is there now, before any work is done for it.

    Returns:
      The folder without links in its path.
    """
    given = Path(out)
    try:
        resolved = given.resolve()
        _check(given, resolved, overwrite)
        return resolved
    except OSError as error:
        raise OutputError(given, error) from None
    except (ValueError, RuntimeError) as error:  # a NUL byte; a loop of links before Python 3.13
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(given)!r} cannot be a folder: {error}; give another") from None


def _check(given: Path, out: Path, overwrite: Overwrite) -> None:
    """Raise InputError unless `out` is missing, empty, or may be replaced."""
    if not out.is_dir():
        if out.exists() or out.is_symlink():
            raise InputError(f"{given} is not a folder; give another")
        return
    entries = sorted(out.iterdir())
    if entries and not overwrite:
        or_ask = "" if overwrite is None else ", or ask to overwrite"
        raise InputError(f"{given} exists and holds {entries[0].name}; give another folder{or_ask}")
    ours = overwrite if isinstance(overwrite, re.Pattern) else _WRITTEN
    foreign = [path.name for path in entries if path.is_dir() or not ours.fullmatch(path.name)]
    if foreign:  # somebody's home, or their thesis
        raise InputError(
            f"{given} holds {foreign[0]}, which no such command writes, so it is not "
            "overwritten; give another folder"
        )


def _begin(given: Path, out: Path, overwrite: Overwrite) -> tuple[Path, int]:
    """(new temporary folder, descriptor that locks it); what dead writers left is removed."""
    with _locked(out.parent):
        _clean(out)
        _check(given, out, overwrite)  # again: an old folder may have been put back
        temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}{_PART}")
        temporary.mkdir()
        return temporary, _lock(temporary, fcntl.LOCK_EX)


def _finish(given: Path, temporary: Path, out: Path, overwrite: Overwrite) -> None:
    with _locked(out.parent):
        _check(given, out, overwrite)  # again: another process may have written it since
        old = temporary.with_suffix(_OLD)
        if replaced := out.is_dir() and any(out.iterdir()):
            out.rename(old)
        try:
            temporary.rename(out)
        except OSError:
            if replaced:
                old.rename(out)
            raise
        _sync_one(out.parent)
        shutil.rmtree(old, ignore_errors=True)


def _clean(out: Path) -> None:
    """Remove, or put back, what writers of `out` that are dead have left beside it."""
    name = re.compile(re.escape(f".{out.name}.") + f"[0-9a-f]{{8}}({_PART}|{_OLD})")
    for path in out.parent.iterdir():
        if not name.fullmatch(path.name):
            continue
        if path.suffix == _OLD and not out.exists():
            path.rename(out)
            continue
        with contextlib.suppress(BlockingIOError):  # its writer lives
            os.close(_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else begins or finishes a folder in this one; held for moments."""
    descriptor = _lock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, operation: int) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sync(folder: Path) -> None:
    """Have everything in a folder on the disk before its name is."""
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
