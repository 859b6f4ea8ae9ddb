# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The folder of a run: its files, its lock, and the check that it belongs to this run.

    run.json         metadata: configuration, fingerprints, versions (`run_metadata`)
    run.lock         locked while a process uses the folder
    checkpoints/     metrics.jsonl     bits.jsonl     summary.json     loss.png     bits.png
    tokenizer/       the tokenizer of prepared data (`tokenizer_copy`)
    profile/

Only the run that `run.json` describes may use the folder. One process may use it at a time; a sweep
may use it from several. Whatever would stop the run later, or overwrite other files, is refused
here before anything is changed.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from pqt_jax.errors import InputError, OutputError, system_reason
from pqt_jax.interchange import files
from pqt_jax.training.config import saved_config
from pqt_jax.training.run import checkpoint_folder, metrics
from pqt_jax.training.run.checkpoint_folder import saved_steps, store_of
from pqt_jax.training.run.run_metadata import Meta, check_same_run, is_metadata

RUN, LOCK, METRICS, SUMMARY = "run.json", "run.lock", "metrics.jsonl", "summary.json"
CHECKPOINTS = checkpoint_folder.NAME
BIT_HISTORY, LOSS, BITS = "bits.jsonl", "loss.png", "bits.png"
PROFILE, DAMAGED, TOKENIZER = "profile", "damaged", "tokenizer"
WORK_UNITS, STATES, SWEEP_RESULTS = "parts", "states", "runs.jsonl"  # of a sweep
TRAINING_RUN, SWEEP = "a training run", "a sweep"
_FILES = (METRICS, BIT_HISTORY, SUMMARY, LOSS, BITS, SWEEP_RESULTS)
_FOLDERS = (CHECKPOINTS, WORK_UNITS, STATES, TOKENIZER)
_LONGEST = 3840  # bytes of a path; Linux allows 4096, with the names of a checkpoint's files
_PATIENCE = 30.0  # seconds to wait for a lock


def claim(workdir: Path, meta: Meta, *, alone: bool = True) -> int:
    """Lock a workdir for this run, and write its metadata if it is new.

    Args:
      workdir: created if it is missing.
      meta: from `run_metadata.make_metadata`.
      alone: whether no other process may use it at the same time. The processes of a sweep share
        it; they coordinate by locks on single bytes of the lock file (`lab.work_units`).

    Returns:
      A descriptor of the lock file. The lock lasts until it is closed or the process ends.

    Raises:
      InputError: if the workdir cannot be written, contains other outputs, is in use, or belongs to
        another run; the message names the first field that differs. No output is changed then.
      OutputError: if the disk is full.
    """
    name = str(workdir.absolute())
    if "\0" in name or name.encode(errors="ignore").decode() != name:
        raise InputError(f"--workdir={workdir}: its name must be UTF-8 without NUL; give another")
    if bracket := re.search(r"[][\\]", name):
        raise InputError(
            f"--workdir={workdir}: checkpoints cannot be kept under a path with {bracket[0]}; give "
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
            pass  # files can be created there
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
            # All bytes, including those that the processes of a sweep lock.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _lock_first_byte(descriptor, workdir, meta)
        # Check again, since another run may have claimed it before the lock was taken.
        if not (old := _check_owner(workdir, meta)):
            _write(workdir, meta)
        elif (changed := _follow(old, meta)) != old:
            _write(workdir, changed)
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


def _lock_first_byte(descriptor: int, workdir: Path, meta: Meta) -> None:
    """Lock the first byte. Another process of the sweep has it briefly; another run, for long."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows both
            _check_owner(workdir, meta)
            if time.monotonic() > deadline:
                raise BlockingIOError from error
            time.sleep(0.05)


def check_shared(workdir: Path) -> None:
    """Raise InputError if this process does not see the workdir that the first process claimed."""
    if not (workdir / RUN).exists():
        raise InputError(
            f"--workdir={workdir} is not the folder of the first process; give one on a disk that "
            "all processes share"
        )


def _follow(old: Meta, meta: Meta) -> Meta:
    """The metadata of a run with what a resumed run may change and others read: steps and store."""
    config = old["config"]
    if "steps" in meta["config"]:
        config = {**config, "steps": meta["config"]["steps"]}
    if store_of(old) != store_of(meta):
        config = {**config, "log": {**config.get("log", {}), "store": store_of(meta)}}
    return {**old, "config": config}


def _write(workdir: Path, meta: Meta) -> None:
    files.write(workdir / RUN, json.dumps(meta, indent=2) + "\n")


def _check_owner(workdir: Path, meta: Meta) -> Meta | None:
    """The metadata in the workdir if it belongs to this run already; None if it is new.

    Raises:
      InputError: if it belongs to another run, or contains files that prevent its use.
    """
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
        if outputs := [name for name in (*_FILES, *_FOLDERS) if (workdir / name).exists()]:
            raise InputError(
                f"--workdir={workdir} holds {outputs[0]} but no {RUN}; give a new directory"
            )
        return None
    old = _read(workdir)
    steps = saved_steps(checkpoint_folder.locate(workdir, store_of(meta)))
    check_same_run(old, meta, f"--workdir={workdir}", steps)
    _check_checkpoints(workdir, old, meta, steps)
    return old


def read_init_fingerprint(workdir: Path, store: str = "") -> str:
    """Read the fingerprint of the weights that a run with checkpoints started from; "" for none."""
    if saved_steps(checkpoint_folder.locate(workdir, store)):
        with contextlib.suppress(OSError, InputError):
            return _read(workdir, "--workdir=").get("init_fingerprint", "")
    return ""


def read_metadata(workdir: Path, option: str = "--workdir=", whose: str = TRAINING_RUN) -> Meta:
    """Read the metadata of a run, without a lock.

    Args:
      workdir: the run's folder.
      option: the option that named the workdir, for messages.
      whose: `TRAINING_RUN` or `SWEEP`: what the workdir must belong to.

    Raises:
      InputError: if it is not the folder of such a run, or cannot be read.
    """
    argument = f"{option}{workdir}"
    try:
        if not workdir.is_dir():
            what = "is not a directory" if workdir.exists() else "does not exist"
            raise InputError(f"{argument} {what}; give the workdir of {whose}")
        meta = _read(workdir, option, "give another workdir")
        if ("sweep" in meta["config"]) != (whose == SWEEP):
            raise InputError(f"{argument} is not of {whose}; give the workdir of one")
        return meta
    except FileNotFoundError:
        what = f"holds no {RUN}; give the workdir of {whose}"
        raise InputError(f"{argument} {what}") from None
    except OSError as error:
        why = system_reason(error, f"give the workdir of {whose}")
        raise InputError(f"{argument} cannot be read: {why}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{argument}: {error}; give another") from None  # a NUL byte


def _read(workdir: Path, option: str = "--workdir=", remedy: str = "give a new directory") -> Meta:
    meta: Any = None
    with contextlib.suppress(ValueError):
        meta = files.read_json(workdir / RUN)
    if not is_metadata(meta):
        raise InputError(f"{option}{workdir}: {RUN} in it is damaged; put a copy back, or {remedy}")
    return meta


def check_not_in_checkpoints(out: Path, argument: str) -> None:
    """Raise InputError if an output folder is the checkpoint folder of a run, or inside it."""
    for folder in (out, *out.parents):
        if folder.name == CHECKPOINTS and (folder.parent / RUN).exists():
            raise InputError(f"--out={argument} is among a run's checkpoints; give another folder")


def _check_checkpoints(workdir: Path, old: Meta, meta: Meta, steps: set[int]) -> None:
    """Raise InputError if the checkpoints of a run are not there, since it would start again.

    The first checkpoint is complete before the second begins, and skipped steps delay both. So a
    run without a checkpoint has metrics up to the step of its second checkpoint at most.
    """
    checkpoint_folder.check_newest(workdir, old, meta)
    if steps:
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
