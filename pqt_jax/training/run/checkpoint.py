# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checkpoints: state and metadata of one step, by Orbax.

    save:    state, metadata with the digest of every array → step directory, in the background
    restore: metadata, compared with this run's → state, compared with its digests

The metadata describes the run that made the checkpoint (`run_metadata`). A run resumes
only from a checkpoint with its own metadata. The position in the data is the step number
(`pipeline.train_batches`).

A save returns when the state has been copied; the files are written while training continues. A
step directory gets its final name when it is complete, so a killed run leaves no partial
checkpoint. An error in the background is raised by the next `save`, `check` or `close`.

With several processes, each one saves its shards, and reads the checkpoint independently. All of
them treat a checkpoint that one of them cannot read as damaged.
"""

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from pqt_jax.console import print_error
from pqt_jax.errors import InputError, OutputError
from pqt_jax.training.run import (
    checkpoint_folder,
    digests,
    distributed,
    object_store,
    orbax_errors,
    workdir,
)
from pqt_jax.training.run.run_metadata import Meta, check_same_run, is_metadata

T = TypeVar("T")
ReadParams = Callable[[Any], Any]


def open_manager(
    run: Path, keep: int = 2, keep_every: int = 0, keep_step: int = 0, store: str = ""
) -> ocp.CheckpointManager:
    """Open the checkpoints of a run.

    Args:
      run: its folder.
      keep: number of newest checkpoints that are kept.
      keep_every: checkpoints at multiples of this step number are kept forever; 0 for none.
      keep_step: the checkpoint of this step is kept as well.
      store: `config.log.store`.

    Raises:
      OutputError: if the folder of checkpoints cannot be made.
    """
    kept = [policies.LatestN(keep), policies.CustomSteps([keep_step])]
    if keep_every:
        kept.append(policies.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
    )
    folder = checkpoint_folder.locate(run, store)
    return _call(folder, ocp.CheckpointManager, folder, options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Begin to save one step; its arrays may be donated as soon as this returns.

    Args:
      manager: from `open_manager`.
      step: must be larger than the newest saved one.
      state: NamedTuple of pytrees of arrays.
      meta: any JSON value.

    Raises:
      OutputError: if this checkpoint or the one before it cannot be written.
      RuntimeError: if Orbax declines to save, which it reports by a return value alone.
    """
    tree = state._asdict()
    whole = {**meta, "step": step, "digests": digests.array_digests(tree)}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(tree),
        meta=ocp.args.JsonSave({**whole, "digest": digests.json_digest(whole)}),
    )
    if not _call(manager.directory, manager.save, step, args=items):
        newest = manager.latest_step()
        raise RuntimeError(f"checkpoint of step {step} was not saved; the newest is {newest}")


def check(manager: ocp.CheckpointManager) -> None:
    """Raise OutputError if a save has failed in the background."""
    if not manager.is_saving_in_progress():
        # Not `check_for_errors`: an error is raised once, and a thread of Orbax calls that as well.
        _call(manager.directory, manager.wait_until_finished)


def close(manager: ocp.CheckpointManager) -> None:
    """Wait until all checkpoints are written, and close the manager.

    Raises:
      OutputError: if one cannot be written.
    """
    try:
        _call(manager.directory, manager.wait_until_finished)
    finally:
        orbax_errors.call_orbax(manager.close)


def _call(path: Any, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return orbax_errors.call_orbax(function, *args, **options)
    except orbax_errors.OrbaxError as error:
        raise OutputError(str(path), str(error)) from None


def restore(manager: ocp.CheckpointManager, step: int, like: Any, meta: Meta) -> tuple[Any, Meta]:
    """Restore one step.

    Args:
      manager: from `open_manager`.
      step: number of a saved step.
      like: NamedTuple of pytrees with the shapes, dtypes and shardings to restore to.
      meta: the metadata of this run.

    Returns:
      (state, saved metadata).

    Raises:
      DamagedError: if the values are not those that were saved.
      InputError: if another run saved it.
    """
    _call(manager.directory, manager.wait_until_finished)
    restored: Any = None
    reason = ""
    try:
        restored = _read(_folder(manager, step), like._asdict(), meta)
    except DamagedError as error:
        reason = str(error)
    damaged = distributed.all_gather_int(bool(reason))
    if any(damaged):
        raise DamagedError(reason or f"process {damaged.index(1)} cannot read it")
    state, saved = restored
    _check_digests(state, saved)
    return type(like)(**state), saved


def _read(folder: Any, like: Any, meta: Meta, as_numpy: bool = False) -> tuple[Any, Meta]:
    """Read (the named parts of a step's state, its metadata) in this process alone."""
    target = _add_shardings(like)
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    if as_numpy:
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=restore_args,
        partial_restore=True,  # reading weights does not read the optimizer state
    )
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})
    reader = functools.partial(ocp.Checkpointer, multiprocessing_options=options)
    _check_files(folder)
    try:
        with reader(ocp.JsonCheckpointHandler()) as read:
            saved = orbax_errors.call_orbax(read.restore, folder / "meta")
        _check_meta(saved, meta, folder)
        with reader(ocp.PyTreeCheckpointHandler()) as read:
            return orbax_errors.call_orbax(read.restore, folder / "state", args=arguments), saved
    except orbax_errors.OrbaxError as error:
        raise DamagedError(str(error)) from None


def _check_files(folder: Any) -> None:
    """Raise DamagedError for a pipe or a device on a disk, which Orbax would wait for."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.exists() and not path.is_file():
                raise DamagedError(f"{path.name} in it is not a regular file")


def _check_meta(saved: Any, meta: Meta, folder: Any) -> None:
    if not is_metadata(saved) or not {"step", "time", "digests", "digest"} <= saved.keys():
        raise DamagedError("its metadata is not whole")
    digest = digests.json_digest({name: x for name, x in saved.items() if name != "digest"})
    if digest != saved["digest"]:
        raise DamagedError("its metadata is not what was written")
    if str(saved["step"]) != folder.name:
        raise DamagedError(f"it holds step {saved['step']}")
    check_same_run(saved, meta, f"checkpoint {folder}", [saved["step"]])


def _check_digests(tree: Any, saved: Meta) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(
            leaf, jax.Array | np.ndarray
        ):  # as Orbax returns for an array that is not there
            raise DamagedError(f"{jax.tree_util.keystr(path)} is missing")
    for path, digest in digests.array_digests(tree).items():
        if digest != saved["digests"].get(path):
            raise DamagedError(f"{path} holds other values than were written")


class DamagedError(Exception):
    """A checkpoint differs from what was saved; the message says where."""


def restore_newest(manager: ocp.CheckpointManager, like: Any, meta: Meta) -> tuple[int, Any, Meta]:
    """Restore the newest step that can be read; move newer, damaged ones to `damaged/`.

    Args:
      manager: from `open_manager`, with at least one saved step.
      like, meta: as for `restore`.

    Returns:
      (step, state, saved metadata).

    Raises:
      InputError: if no step can be read, or another run saved it. Nothing is moved then.
      OutputError: if a damaged step cannot be moved.
    """
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            state, saved = restore(manager, step, like, meta)
        except DamagedError as error:
            damaged[step] = str(error)
            continue
        for other, reason in damaged.items():
            moved_to = distributed.run_in_all(
                functools.partial(_move_to_damaged, _folder(manager, other))
            )
            if moved_to:
                print_error(
                    f"checkpoint of step {other} cannot be read ({reason}) and was moved to "
                    f"{moved_to}; resuming from step {step}"
                )
        if damaged:
            manager.reload()
        return step, state, saved
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise InputError(
        f"no checkpoint in {manager.directory} can be read ({reasons}); "
        "put a copy back, or give a new --workdir"
    )


def _move_to_damaged(folder: Any) -> Any:
    """Move a damaged step away, in the first process, so that its number can be saved again.

    It is not deleted, since the failure may have been one of reading alone.
    """
    if not distributed.is_first_process():
        return None
    damaged = folder.parent.parent / workdir.DAMAGED
    try:
        damaged.mkdir(exist_ok=True)
        if object_store.is_address(damaged):  # where a folder is there once it holds an object
            (damaged / "README.txt").write_text("Checkpoints that could not be read.\n")
        targets = (damaged / f"{folder.name}{f'-{i}' if i else ''}" for i in itertools.count())
        return folder.rename(next(path for path in targets if not path.exists()))
    except OSError as error:
        raise OutputError(folder, error) from None


def read_params(run: Path, like: Any, meta: Meta) -> tuple[int, Any]:
    """Read the parameters of the newest step that can be read, without changing the folder.

    Args:
      run: the folder of a run.
      like: parameters with the shapes and dtypes to restore to.
      meta: the run's metadata.

    Returns:
      (step, parameters).

    Raises:
      InputError: as `use_newest`.
    """
    return use_newest(run, meta, lambda step, read: (step, jax.tree.map(jnp.asarray, read(like))))


@orbax_errors.quiet_orbax()
def use_newest(run: Path, meta: Meta, use: Callable[[int, ReadParams], T]) -> T:
    """Read parameters of the newest step that can be read, some at a time.

    No lock is taken, so a trainer may be running. If it deletes a step while this reads it, the
    newer step that it has saved is read instead.

    Args:
      run: the folder of a run, in which nothing is changed.
      meta: the run's metadata.
      use: called with the step and a function, which returns those parameters that a tree like the
        saved one contains, as NumPy arrays of its shapes and dtypes. It is called again, with
        another step, where one proves to be damaged, perhaps after some parameters were read.

    Returns:
      What `use` returns.

    Raises:
      InputError: if no step can be read, or another run saved it.
    """
    folder = checkpoint_folder.locate(run, checkpoint_folder.store_of(meta))
    damaged: dict[int, str] = {}
    told: set[int] = set()
    while steps := workdir.saved_steps(folder) - damaged.keys():
        step = max(steps)

        def read(like: Any, step: int = step) -> Any:
            restored, saved = _read(folder / str(step), {"params": like}, meta, as_numpy=True)
            _check_digests(restored, saved)
            for other in sorted(damaged.keys() & workdir.saved_steps(folder) - told, reverse=True):
                told.add(other)
                print_error(
                    f"checkpoint of step {other} is damaged ({damaged[other]}); reading step {step}"
                )
            return restored["params"]

        try:
            return use(step, read)
        except DamagedError as error:
            damaged[step] = str(error)
    if not damaged:
        where = f" in {folder}" if object_store.is_address(folder) else ""
        raise InputError(
            f"--workdir={run} holds no checkpoint{where}; train first, or give another workdir"
        )
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise InputError(f"no checkpoint in {folder} can be read ({reasons}); put a copy back")


def _add_shardings(like: Any) -> Any:
    """Abstract arrays like those of a tree, on the first local device if they have no sharding."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def add_sharding(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None) or device
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(add_sharding, like)


def _folder(manager: ocp.CheckpointManager, step: int) -> Any:
    return manager.directory / str(step)
