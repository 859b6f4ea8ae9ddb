# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Folders written atomically: after a kill or on a full disk the old or the new one is complete.

    .name.12ab34cd.part      being written by a process that has locked it, or left by a killed one
    .name.12ab34cd.old       replaced; restored if a process was killed between the two renames

Ctrl-C, SIGTERM and SIGHUP leave neither. The next writer of a folder removes what killed ones have
left. A folder is replaced only if each file in it has a name that the same command writes.
"""

import contextlib
import fcntl
import functools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pqt_jax import signals
from pqt_jax.errors import InputError, OutputError

_PART, _OLD = ".part", ".old"
_WRITTEN = re.compile(
    r"config\.json|report\.(txt|json|png)|weights\.safetensors|model\.gguf|README\.md|SHA256SUMS"
    r"|tokenizer(_config)?\.json|tokenizer\.model|generation_config\.json|vocab\.json|merges\.txt"
    r"|added_tokens\.json|special_tokens_map\.json|chat_template\.jinja"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
Overwrite = bool | re.Pattern[str] | None


@contextlib.contextmanager
def atomic_folder(
    out: str | os.PathLike[str], overwrite: Overwrite = False, option: str = ""
) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` if the body succeeds, and is removed if not.

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
      out: the folder to write. Its parents are created, and removed if the body fails; a link to a
        folder is followed.
      overwrite: whether to replace an existing folder when the new one is complete. With True each
        file in it must have a name that an export writes; with a pattern, a name that matches.
        None means False, for commands that have no such option.
      option: as for `check_destination`.

    Yields:
      The temporary folder, in the parent of `out`. An OSError of the body becomes an OutputError.

    Raises:
      InputError: if `out` is not a folder, or contains files that may not be replaced.
      OutputError: if it cannot be written.
    """
    requested, out = Path(out), check_destination(out, overwrite, option)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}{_PART}")
    with signals.raise_exit(), contextlib.ExitStack() as stack:
        try:
            stack.callback(_remove_empty, [x for x in out.parents if not x.exists()])
            stack.callback(_remove, temporary)
            out.parent.mkdir(parents=True, exist_ok=True)
            check = functools.partial(_check, requested, out, overwrite, option)
            stack.callback(os.close, _create_temporary(temporary, out, check))
            yield temporary
            _sync(temporary)
            _replace(temporary, out, check)
        except OSError as error:
            raise OutputError(requested, error) from None
        except OutputError as error:  # it names a file in the temporary folder
            raise OutputError(requested, error.error) from None


def check_destination(
    out: str | os.PathLike[str], overwrite: Overwrite = False, option: str = ""
) -> Path:
    """Raise what `atomic_folder` would raise now, before the work for its content is done.

    Args:
      out: as for `atomic_folder`.
      overwrite: as for `atomic_folder`.
      option: the option of a command that named the folder, such as "--out=", for messages.

    Returns:
      The path of the folder with all links resolved.
    """
    requested = Path(out)
    try:
        resolved = requested.resolve()
        _check(requested, resolved, overwrite, option)
        return resolved
    except OSError as error:
        raise OutputError(requested, error) from None
    except (ValueError, RuntimeError) as error:  # a NUL byte; a loop of links before Python 3.13
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{option}{str(requested)!r} cannot be a folder: {error}; give another"
        ) from None


def _check(requested: Path, out: Path, overwrite: Overwrite, option: str = "") -> None:
    """Raise InputError unless `out` is missing, empty, or may be replaced."""
    if not out.is_dir():
        if out.exists() or out.is_symlink():
            raise InputError(f"{option}{requested} is not a folder; give another")
        return
    entries = sorted(out.iterdir())
    if entries and not overwrite:
        permission = "--overwrite" if option else "overwrite=True"
        remedy = "" if overwrite is None else f", or {permission} to replace it"
        raise InputError(
            f"{option}{requested} exists and holds {entries[0].name}; give another folder{remedy}"
        )
    known = overwrite if isinstance(overwrite, re.Pattern) else _WRITTEN
    foreign = [path.name for path in entries if path.is_dir() or not known.fullmatch(path.name)]
    if foreign:  # never delete files of the user
        raise InputError(
            f"{option}{requested} holds {foreign[0]}, which does not belong to an earlier output; "
            "nothing is deleted, give another folder"
        )


def _create_temporary(temporary: Path, out: Path, check: Callable[[], None]) -> int:
    """Create and lock the folder, and remove what killed writers left; returns the descriptor."""
    with _locked(out.parent):
        _remove_leftovers(out)
        check()  # again: an old folder may have been restored
        temporary.mkdir()
        return _lock(temporary, fcntl.LOCK_EX)


def _remove(temporary: Path) -> None:
    """Remove the folder, unless it has been renamed after success."""
    with signals.deferred():  # a terminal that is closed may send SIGHUP twice
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that hold nothing, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _replace(temporary: Path, out: Path, check: Callable[[], None]) -> None:
    with _locked(out.parent), signals.deferred():
        check()  # again: another process may have written it
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


def _remove_leftovers(out: Path) -> None:
    """Remove or restore the folders that killed writers of `out` have left."""
    name = re.compile(re.escape(f".{out.name}.") + f"[0-9a-f]{{8}}({_PART}|{_OLD})")
    for path in out.parent.iterdir():
        if not name.fullmatch(path.name):
            continue
        if path.suffix == _OLD and not out.exists():
            path.rename(out)
            continue
        with contextlib.suppress(BlockingIOError):  # its writer is running
            os.close(_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder for the moments in which a folder inside it is created or renamed."""
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
    """Write all content of a folder to the disk, before the folder gets its final name."""
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
