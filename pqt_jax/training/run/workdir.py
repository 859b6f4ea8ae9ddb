# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The directory of a run: claimed, locked, and refused where it holds anything else.

    run.json         what made the run: configuration, fingerprints of text and starting weights,
                     noise stream
    run.lock         held while a process uses it
    checkpoints/     metrics.jsonl     bits.jsonl     summary.json     loss.png     bits.png
    profile/

Only the run that `run.json` describes uses it, and one process at a time (of a sweep, any number).
What would stop the run later, or lose what is there, is refused here, before anything is changed.
"""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from pqt_jax.data.source import Text
from pqt_jax.errors import InputError, OutputError, system_reason
from pqt_jax.interchange import files
from pqt_jax.numerics import philox
from pqt_jax.training.config import saved_config
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import metrics

RUN, LOCK, METRICS, SUMMARY = "run.json", "run.lock", "metrics.jsonl", "summary.json"
BIT_HISTORY, LOSS, BITS, CHECKPOINTS = "bits.jsonl", "loss.png", "bits.png", "checkpoints"
PROFILE, DAMAGED = "profile", "damaged"
WORK_UNITS, SWEEP_RESULTS = "parts", "runs.jsonl"  # of a sweep
TRAINING_RUN, SWEEP = "a training run", "a sweep"
_FILES = (METRICS, BIT_HISTORY, SUMMARY, LOSS, BITS, SWEEP_RESULTS)
_FOLDERS = (CHECKPOINTS, WORK_UNITS)
_FINGERPRINTS = {  # and the fields whose files they are of
    "data_fingerprint": ("config.data.files ", "config.data.tokens "),
    "init_fingerprint": ("config.init_from ",),
    "stream_version": (),
}
_LONGEST = 3840  # bytes; with the names of a checkpoint's files Linux takes 4096
_PATIENCE = 30.0  # seconds
_PACKAGES = ("pqt_jax", "jax", "flax", "optax", "grain", "orbax-checkpoint")

Meta = dict[str, Any]


def make_metadata(config: RunConfig, text: Text, init_fingerprint: str = "") -> Meta:
    """The metadata of a run: what must be the same to go on, and the versions that it used.

    Args:
      config: of the run.
      text: that it trains on.
      init_fingerprint: of the weights that it starts from, if they are not new.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "config": json.loads(saved_config.as_json(config)),
        "data_fingerprint": text.fingerprint,
        "init_fingerprint": init_fingerprint,
        "stream_version": philox.STREAM_VERSION,
        "versions": {"python": platform.python_version(), **versions},
    }


def is_metadata(meta: Any) -> bool:
    """Whether something that was read has the fields of metadata."""
    if not isinstance(meta, dict) or not {"data_fingerprint", "stream_version"} <= meta.keys():
        return False
    return all(isinstance(meta.get(name), dict) for name in ("config", "versions"))


def check_same_run(old: Meta, new: Meta, what: str) -> None:
    """Raise InputError, naming the field, unless two runs are the same but for their logging."""
    different = saved_config.differences(old["config"], new["config"])
    for name, fields in _FINGERPRINTS.items():
        if old.get(name, "") == new.get(name, ""):  # wherever it lies now
            different = [text for text in different if not text.startswith(fields)]
        else:
            before, now = (meta.get(name) or "none" for meta in (old, new))
            different.append(f"{name} was {before!s:.12} and is {now!s:.12}")
            if name == "init_fingerprint":
                different[-1] += " (it is of the weights in config.init_from)"
            data = new["config"]["data"]
            if name == "data_fingerprint" and not (data["files"] or data.get("tokens")):
                different[-1] += " (it is of this Python's standard library)"
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise InputError(
            f"{what} belongs to another run: {different[0]}{more}; give another --workdir"
        )


def changed_versions(old: Meta, new: Meta) -> str:
    """What to say where something goes on under other versions; "" where they are the same."""
    before, now = old["versions"], new["versions"]
    if not (changed := [name for name in now if before.get(name) != now[name]]):
        return ""
    names = ", ".join(f"{name} {now[name]}" for name in changed)
    return f"{names}; it was {', '.join(f'{before.get(name)}' for name in changed)} before"


def claim(workdir: Path, meta: Meta, *, alone: bool = True) -> int:
    """Make a workdir this run's own, or find that it already is, and lock it.

    Args:
      workdir: made if it is missing.
      meta: from `make_metadata`.
      alone: whether no other process may use it meanwhile; else they agree among themselves by
        locks on bytes of the file (`lab.work_units`).

    Returns:
      A descriptor of the file of locks; it holds the lock until it is closed or the process ends.

    Raises:
      InputError: if the workdir cannot be written, holds outputs of something else, is in use, or
        belongs to a run that differs; the message names the first field that does. No output is
        changed then.
      OutputError: if there is no space for it.
    """
    name = str(workdir.absolute())
    if "\0" in name or name.encode(errors="ignore").decode() != name:
        raise InputError(f"--workdir={workdir}: its name must be UTF-8 without NUL; give another")
    if found := re.search(r"[][\\]", name):
        raise InputError(
            f"--workdir={workdir}: checkpoints cannot be kept under a path with {found[0]}; give "
            "another"
        )
    if len(name.encode()) > _LONGEST:
        raise InputError(
            f"--workdir={workdir} is too long for the files in it; give a shorter path"
        )
    try:
        if workdir.is_symlink() and not workdir.is_dir():
            raise InputError(f"--workdir={workdir} is a link to nowhere; give a directory")
        if workdir.exists() and not workdir.is_dir():
            raise InputError(f"--workdir={workdir} is not a directory; give a directory")
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass  # files can be made there
        _check_owner(workdir, meta)
        descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(workdir, error) from None
        why = system_reason(error, "give another directory")
        raise InputError(f"--workdir={workdir} cannot be written: {why}") from None
    try:
        if alone:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # every byte, also of a sweep's
        else:
            _wait_for_the_first_byte(descriptor, workdir, meta)
        # Again, since another run may have claimed it in between.
        if not _check_owner(workdir, meta):
            files.write(workdir / RUN, json.dumps(meta, indent=2) + "\n")
        if not alone:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"--workdir={workdir} is in use by another run") from None
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"--workdir={workdir} cannot be locked: {error.strerror}") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for_the_first_byte(descriptor: int, workdir: Path, meta: Meta) -> None:
    """Processes of a sweep hold it for moments; whoever else does is soon seen to be the owner."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError) as error:  # which of them, POSIX leaves open
            _check_owner(workdir, meta)
            if time.monotonic() > deadline:
                raise BlockingIOError from error
            time.sleep(0.05)


def check_shared(workdir: Path) -> None:
    """Raise InputError if the workdir that the first process has claimed is not to be seen here."""
    if not (workdir / RUN).exists():
        raise InputError(
            f"--workdir={workdir} is not the folder of the first process; give one on a disk that "
            "all processes share"
        )


def _check_owner(workdir: Path, meta: Meta) -> bool:
    """Whether the workdir is this run's; InputError if it is another's, or cannot be used."""
    for name in (RUN, LOCK, *_FILES):
        for path in (workdir / name, workdir / f"{name}.tmp"):
            if path.is_dir():
                raise InputError(
                    f"--workdir={workdir}: {path.name} in it is a directory; move it away"
                )
    for name in _FOLDERS:
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise InputError(f"--workdir={workdir}: {name} in it is no directory; move it away")
    if not (workdir / RUN).exists():
        if found := [name for name in (*_FILES, *_FOLDERS) if (workdir / name).exists()]:
            raise InputError(
                f"--workdir={workdir} holds {found[0]} but no {RUN}; give a new directory"
            )
        return False
    old = _read(workdir)
    check_same_run(old, meta, f"--workdir={workdir}")
    _check_checkpoints(workdir, old, meta)
    return True


def read_init_fingerprint(workdir: Path) -> str:
    """The fingerprint of the weights that a run with checkpoints started from; "" for none."""
    with contextlib.suppress(OSError, InputError):
        if any((workdir / CHECKPOINTS).iterdir()):
            return _read(workdir, "--workdir=").get("init_fingerprint", "")
    return ""


def read_metadata(workdir: Path, option: str = "--workdir=", whose: str = TRAINING_RUN) -> Meta:
    """The metadata of a run, for those who only look.

    Args:
      workdir: of the run.
      option: that it was given by, for messages.
      whose: what it is to be of, for messages.

    Raises:
      InputError: if it is not a run's directory, or cannot be read.
    """
    given = f"{option}{workdir}"
    try:
        if not workdir.is_dir():
            what = "is not a directory" if workdir.exists() else "does not exist"
            raise InputError(f"{given} {what}; give the workdir of {whose}")
        meta = _read(workdir, option)
        if ("sweep" in meta["config"]) != (whose == SWEEP):
            raise InputError(f"{given} is not of {whose}; give the workdir of one")
        return meta
    except FileNotFoundError:
        what = f"holds no {RUN}; give the workdir of {whose}"
        raise InputError(f"{given} {what}") from None
    except OSError as error:
        why = system_reason(error, f"give the workdir of {whose}")
        raise InputError(f"{given} cannot be read: {why}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{given}: {error}; give another") from None  # a NUL byte


def _read(workdir: Path, option: str = "--workdir=") -> Meta:
    meta: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        meta = json.loads((workdir / RUN).read_text())
    if not is_metadata(meta):
        raise InputError(
            f"{option}{workdir}: {RUN} in it is damaged; put a copy back, or give a new directory"
        )
    return meta


def check_not_in_checkpoints(out: Path, given: str) -> None:
    """Raise InputError for a folder to write that is a run's checkpoints, or among them."""
    for folder in (out, *out.parents):
        if folder.name == CHECKPOINTS and (folder.parent / RUN).exists():
            raise InputError(f"--out={given} is among a run's checkpoints; give another folder")


def _check_checkpoints(workdir: Path, old: Meta, meta: Meta) -> None:
    """Raise InputError if checkpoints must have been there and none is: they cannot be made anew.

    The first is whole when the second begins, and skipped steps put both off: without any, metrics
    go up to the second at most.
    """
    folder = workdir / CHECKPOINTS
    if folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir()):
        return
    records = metrics.read(workdir / METRICS)
    recorded = max((record["step"] for record in records), default=0)
    skipped = max((record.get("skipped") or 0 for record in records), default=0)
    both = [saved_config.completed(run["config"]) for run in (old, meta)]
    first = max(config["log"]["checkpoint_every"] for config in both)
    if (workdir / SUMMARY).exists() or recorded > 2 * first + skipped:
        raise InputError(
            f"--workdir={workdir} holds metrics up to step {recorded} but no checkpoint; "
            f"put {CHECKPOINTS}/ back, or give a new directory"
        )
