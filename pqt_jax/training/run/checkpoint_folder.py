# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Where the checkpoints of a run are, and which steps they have.

WORKDIR/checkpoints    or, with config.log.store, gs://BUCKET/FOLDER/checkpoints (`object_store`)
"""

from pathlib import Path
from typing import Any

from pqt_jax.errors import InputError
from pqt_jax.training.run import object_store
from pqt_jax.training.run.run_metadata import Meta

NAME = "checkpoints"


def store_of(meta: Meta) -> str:
    """The `config.log.store` of a run; "" also for one of an earlier version."""
    return meta["config"].get("log", {}).get("store", "")


def locate(workdir: Path, store: str) -> Any:
    """The folder of a run's checkpoints: a `Path`, or what etils has in its place for a bucket.

    Raises:
      InputError: if a package for buckets is not installed.
    """
    return object_store.open_folder(store) / NAME if store else (workdir / NAME).absolute()


def saved_steps(folder: Any) -> set[int]:
    """The steps of the checkpoints in a folder of `locate`; empty if a disk cannot be read.

    Raises:
      InputError: if a bucket cannot be read.
    """
    if object_store.is_address(folder):
        return object_store.saved_steps(folder)
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return set()
    return {int(name) for name in names if name.isdecimal()}


def check_newest(workdir: Path, old: Meta, new: Meta) -> None:
    """Raise InputError if a run changes `config.log.store` and leaves its newest checkpoint behind.

    Args:
      workdir: the run's folder.
      old, new: the metadata in it, and that of the run as it goes on.
    """
    if store_of(old) == store_of(new):
        return
    there, here = (locate(workdir, store_of(meta)) for meta in (old, new))
    if max(saved_steps(there), default=0) > max(saved_steps(here), default=0):
        raise InputError(
            f"config.log.store={store_of(new)!r}: the newest checkpoint is in {there} and not in "
            f"{here}; give config.log.store={store_of(old)!r}, or copy the checkpoints"
        )
