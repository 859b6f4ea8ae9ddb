# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checkpoints: state, position in the data and metadata of one step, by Orbax.

    save:    state, data, metadata → step directory → digests.json
    restore: digests → metadata, compared with this run's → state and data

The metadata says what made the checkpoint (`workdir.describe`). A run goes on from a checkpoint
only if all of it is its own. Saving is synchronous, so that whatever fails in it fails here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from pqt_jax import digests, quiet, workdir
from pqt_jax.errors import InputError, OutputError, say
from pqt_jax.workdir import Meta


def open_manager(run: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run's directory; the newest two are kept.

    Raises:
      OutputError: if their folder cannot be made.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    folder = (run / workdir.CHECKPOINTS).absolute()
    try:
        return quiet.call(ocp.CheckpointManager, folder, options=options)
    except quiet.OrbaxError as error:
        raise OutputError(folder, str(error)) from None


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
      OutputError: if it cannot be written.
      RuntimeError: if Orbax declines to save; it says so by a return value alone.
    """
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state._asdict()),
        data=grain.checkpoint.CheckpointSave(data),
        meta=ocp.args.JsonSave({**meta, "step": step}),
    )
    folder = _folder(manager, step)
    try:
        saved = quiet.call(manager.save, step, args=items)
    except quiet.OrbaxError as error:
        raise OutputError(folder, str(error)) from None
    if not saved:
        newest = manager.latest_step()
        raise RuntimeError(f"checkpoint of step {step} was not saved; the newest is {newest}")
    digests.write(folder)


def restore(
    manager: ocp.CheckpointManager, step: int, like: Any, data: Any, meta: Meta
) -> tuple[Any, Meta]:
    """Restore one step.

    Args:
      manager: from `open_manager`.
      step: a saved one.
      like: state of the shapes, dtypes and placement wanted, NamedTuple of pytrees.
      data: Grain iterator over the same data; it is moved to the saved position.
      meta: of this run.

    Returns:
      (state, saved metadata).

    Raises:
      DamagedError: if it is not what was saved.
      InputError: if another run saved it.
    """
    folder = _folder(manager, step)
    if reason := digests.damage(folder):
        raise DamagedError(reason)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like._asdict()
    )
    try:
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        saved = quiet.call(manager.restore, step, args=items)["meta"]
        if not workdir.is_whole(saved) or not {"step", "time"} <= saved.keys():
            raise DamagedError("its metadata is not whole")
        workdir.check_same(saved, meta, f"checkpoint {folder}")
        if saved["step"] != step:
            raise DamagedError(f"it holds step {saved['step']}")
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), data=grain.checkpoint.CheckpointRestore(data)
        )
        restored = quiet.call(manager.restore, step, args=items)
    except quiet.OrbaxError as error:
        raise DamagedError(str(error)) from None
    return type(like)(**restored["state"]), saved


class DamagedError(Exception):
    """A checkpoint is not what was saved; the message says where."""


def restore_newest(
    manager: ocp.CheckpointManager, like: Any, data: Any, meta: Meta
) -> tuple[int, Any, Meta]:
    """Restore the newest step that can be read, and delete those beyond it, which cannot.

    Args:
      manager: from `open_manager`, with at least one saved step.
      like, data, meta: as for `restore`.

    Returns:
      (step, state, saved metadata).

    Raises:
      InputError: if no step can be read, or another run saved it; nothing is deleted then.
      OutputError: if a damaged step cannot be deleted.
    """
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            state, saved = restore(manager, step, like, data, meta)
        except DamagedError as error:
            damaged[step] = str(error)
            continue
        for other, reason in damaged.items():
            try:
                quiet.call(manager.delete, other)  # else its number could not be saved again
            except quiet.OrbaxError as error:
                raise OutputError(_folder(manager, other), str(error)) from None
            say(
                f"checkpoint of step {other} was damaged ({reason}) and is deleted; "
                f"going on from step {step}"
            )
        return step, state, saved
    every = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise InputError(
        f"no checkpoint in {manager.directory} can be read ({every}); "
        "put a copy back, or give a new --workdir"
    )


def _folder(manager: ocp.CheckpointManager, step: int) -> Path:
    return Path(manager.directory) / str(step)
