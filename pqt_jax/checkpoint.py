# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checkpoints: state, position in the data and metadata of one step, by Orbax.

The metadata says what made the checkpoint: the resolved configuration, the fingerprint of the
text, the version of the noise stream. A run goes on from a checkpoint only if all of these are
its own. Saving is synchronous, so that whatever fails in it fails here.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from pqt_jax import bits, metrics
from pqt_jax import config as configs
from pqt_jax.config import Config
from pqt_jax.data.source import Text
from pqt_jax.errors import InputError

RUN_FILE, LOCK_FILE = "run.json", "run.lock"
OUTPUTS = ("metrics.jsonl", "summary.json", "loss.png", "bits.png", "checkpoints")
_PACKAGES = ("pqt_jax", "jax", "flax", "optax", "grain", "orbax-checkpoint")

Meta = dict[str, Any]


def describe(config: Config, text: Text) -> Meta:
    """The metadata of a run: what must be the same to go on, and the versions that it used."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "config": json.loads(configs.as_json(config)),
        "data_fingerprint": text.fingerprint,
        "stream_version": bits.STREAM_VERSION,
        "versions": {"python": platform.python_version(), **versions},
    }


def claim(workdir: Path, config: Config, meta: Meta) -> int:
    """Make a workdir this run's own, or find that it already is, and lock it.

    Args:
      workdir: made if it is missing.
      config: the resolved configuration.
      meta: from `describe`.

    Returns:
      A file descriptor that holds the lock until it is closed or the process ends.

    Raises:
      InputError: if the workdir cannot be written, holds outputs of something else, is in use, or
        belongs to a run that differs; the message names the first field that does. No output is
        changed then.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is not a directory")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".{RUN_FILE}.probe"
        probe.write_text("")
        probe.unlink()
        _check_owner(workdir, config, meta)
        descriptor = os.open(workdir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Again, since another run may have claimed it in between.
        if not _check_owner(workdir, config, meta):
            metrics.write_text(workdir / RUN_FILE, json.dumps(meta, indent=2) + "\n")
    except OSError as error:
        os.close(descriptor)
        busy = isinstance(error, BlockingIOError)
        reason = "is in use by another run" if busy else f"cannot be locked: {error.strerror}"
        raise InputError(f"--workdir={workdir} {reason}") from None
    except InputError:
        os.close(descriptor)
        raise
    return descriptor


def _check_owner(workdir: Path, config: Config, meta: Meta) -> bool:
    """Whether the workdir is this run's; InputError if it is another's."""
    run_file = workdir / RUN_FILE
    if run_file.exists():
        try:
            old = json.loads(run_file.read_text())
            whole = isinstance(old["config"], dict) and {"data_fingerprint", "stream_version"} <= {
                *old
            }
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise InputError(f"--workdir={workdir}: {RUN_FILE} in it is damaged")
        check_same(old, config, meta, workdir)
        return True
    if found := [name for name in OUTPUTS if (workdir / name).exists()]:
        raise InputError(
            f"--workdir={workdir} holds {found[0]} but no {RUN_FILE}; give a new directory"
        )
    return False


def check_same(old: Meta, config: Config, meta: Meta, workdir: Path) -> None:
    """Raise InputError, naming the field, unless two runs are the same but for their logging."""
    different = configs.differences(old["config"], config)
    for name in ("data_fingerprint", "stream_version"):
        if old[name] != meta[name]:
            different.append(f"{name} was {old[name]} and is {meta[name]}")
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise InputError(
            f"--workdir={workdir} belongs to another run: {different[0]}{more}; give another"
        )


def open_manager(workdir: Path) -> ocp.CheckpointManager:
    """The checkpoints of a workdir; the newest two are kept."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, data: Any, meta: Mapping[str, Any]
) -> None:
    """Save one step.

    Args:
      manager: from `open_manager`.
      step: must be beyond the newest saved one.
      state: NamedTuple of pytrees of arrays.
      data: the Grain iterator.
      meta: anything JSON can hold.

    Raises:
      RuntimeError: if Orbax declines to save; it says so by a return value alone.
    """
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state._asdict()),
        data=grain.checkpoint.CheckpointSave(data),
        meta=ocp.args.JsonSave(dict(meta)),
    )
    if not manager.save(step, args=items):
        newest = manager.latest_step()
        raise RuntimeError(f"checkpoint of step {step} was not saved; the newest is {newest}")


def restore(manager: ocp.CheckpointManager, step: int, like: Any, data: Any) -> tuple[Any, Meta]:
    """Restore one step.

    Args:
      manager: from `open_manager`.
      step: a saved one.
      like: state of the shapes, dtypes and placement wanted, NamedTuple of pytrees.
      data: Grain iterator over the same data; it is moved to the saved position.

    Returns:
      (state, metadata).
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like._asdict()
    )
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(shapes),
        data=grain.checkpoint.CheckpointRestore(data),
        meta=ocp.args.JsonRestore(),
    )
    restored = manager.restore(step, args=items)
    return type(like)(**restored["state"]), restored["meta"]


def restore_newest(manager: ocp.CheckpointManager, like: Any, data: Any) -> tuple[int, Any, Meta]:
    """Restore the newest step that can be read, and delete those beyond it, which cannot.

    Args:
      manager: from `open_manager`, with at least one saved step.
      like, data: as for `restore`.

    Returns:
      (step, state, metadata).

    Raises:
      InputError: if no step can be read; nothing is deleted then.
    """
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            state, meta = restore(manager, step, like, data)
        except Exception as error:  # what reading damaged files raises depends on where they are
            damaged[step] = textwrap.shorten(f"{type(error).__name__}: {error}", 90)
            continue
        for other, reason in damaged.items():
            manager.delete(other)  # else its number could not be saved again
            print(
                f"checkpoint of step {other} cannot be read ({reason}); going on from step {step}",
                file=sys.stderr,
            )
        return step, state, meta
    newest = max(damaged)
    raise InputError(
        f"no checkpoint in {manager.directory} can be read (step {newest}: {damaged[newest]}); "
        "put a copy back, or delete that folder to start over"
    )
