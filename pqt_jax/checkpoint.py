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
    shapes = _placed(like._asdict())
    try:
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        saved = quiet.call(manager.restore, step, args=items)["meta"]
        _check_meta(saved, meta, folder)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), data=grain.checkpoint.CheckpointRestore(data)
        )
        restored = quiet.call(manager.restore, step, args=items)
    except quiet.OrbaxError as error:
        raise DamagedError(str(error)) from None
    return type(like)(**restored["state"]), saved


def _check_meta(saved: Any, meta: Meta, folder: Path) -> None:
    if not workdir.is_whole(saved) or not {"step", "time"} <= saved.keys():
        raise DamagedError("its metadata is not whole")
    workdir.check_same(saved, meta, f"checkpoint {folder}")
    if str(saved["step"]) != folder.name:
        raise DamagedError(f"it holds step {saved['step']}")


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


def read_params(run: Path, like: Any, meta: Meta) -> tuple[int, Any]:
    """Read the parameters of the newest step that can be read, and change nothing.

    It takes no lock, so a trainer may be at work: a step that it deletes meanwhile gives way to the
    one that it has saved.

    Args:
      run: the directory of a run.
      like: parameters of the shapes and dtypes wanted.
      meta: of the run.

    Returns:
      (step, parameters).

    Raises:
      InputError: if no step can be read, or another run saved it.
    """
    folder = (run / workdir.CHECKPOINTS).absolute()
    damaged: dict[int, str] = {}
    while left := set(_saved_steps(folder)) - damaged.keys():
        step = max(left)
        try:
            params = _read_step(folder / str(step), like, meta)
        except DamagedError as error:
            damaged[step] = str(error)
            continue
        there = _saved_steps(folder)
        for other in sorted(damaged.keys() & there, reverse=True):
            say(f"checkpoint of step {other} is damaged ({damaged[other]}); reading step {step}")
        return step, params
    if not damaged:
        raise InputError(f"--workdir={run} holds no checkpoint; train first, or give another")
    every = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise InputError(f"no checkpoint in {folder} can be read ({every}); put a copy back")


def _saved_steps(folder: Path) -> set[int]:
    try:
        return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
    except OSError:
        return set()


def _read_step(folder: Path, like: Any, meta: Meta) -> Any:
    if reason := digests.damage(folder):
        raise DamagedError(reason)
    wanted = {"params": _placed(like)}
    only = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,  # the moments of the optimizer are twice as much again
    )
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            saved = quiet.call(reader.restore, folder / "meta")
        _check_meta(saved, meta, folder)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return quiet.call(reader.restore, folder / "state", args=only)["params"]
    except quiet.OrbaxError as error:
        raise DamagedError(str(error)) from None


def _placed(like: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    where = lambda x: getattr(x, "sharding", None) or device  # noqa: E731
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), like)


def _folder(manager: ocp.CheckpointManager, step: int) -> Path:
    return Path(manager.directory) / str(step)
