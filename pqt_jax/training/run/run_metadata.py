# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The metadata of a run: what must be unchanged to resume it, versions, and where it began.

    config, text, starting weights → metadata → `run.json`, and every checkpoint

Two runs are the same if their configurations agree, apart from `saved_config.MAY_CHANGE`, and if
text, starting weights and noise stream have the same fingerprints. `config.steps` may differ if the
steps that were taken are the same with both numbers (`optimizer.count_fixed_steps`).
"""

import glob
import importlib.metadata
import json
import os
import platform
from collections.abc import Collection
from typing import Any

from pqt_jax.data.source import Text
from pqt_jax.errors import InputError
from pqt_jax.numerics import philox
from pqt_jax.training.config import saved_config
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.config.schema import EXTENSIBLE, RunConfig
from pqt_jax.training.optimizer import count_fixed_steps

_FINGERPRINTS = {  # fingerprint → the fields that name its files
    "data_fingerprint": ("config.data.files ", "config.data.tokens "),
    "init_fingerprint": ("config.init_from ",),
    "stream_version": (),
}
_PACKAGES = ("pqt_jax", "jax", "flax", "optax", "grain", "orbax-checkpoint")

Meta = dict[str, Any]


def make_metadata(config: RunConfig, text: Text, init_fingerprint: str = "") -> Meta:
    """Make the metadata of a run that begins or goes on in the current directory.

    Args:
      config: the run's configuration.
      text: training and validation text.
      init_fingerprint: fingerprint of the weights in `config.init_from`; "" for new weights.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "config": json.loads(saved_config.as_json(config)),
        "data_fingerprint": text.fingerprint,
        "init_fingerprint": init_fingerprint,
        "stream_version": philox.STREAM_VERSION,
        "versions": {"python": platform.python_version(), **versions},
        "directory": os.getcwd(),
    }


def locate(meta: Meta, files: str) -> str:
    """Find the data of a run from any directory.

    Args:
      meta: metadata of the run.
      files: its `config.data.files` or `config.data.tokens`; a relative one begins at the directory
        in which the run began.

    Returns:
      The path or pattern below that directory, or `files` itself if nothing is there.
    """
    there = os.path.join(str(meta.get("directory", "")), os.path.expanduser(files))
    return there if files and glob.glob(there, recursive=True) else files


def is_metadata(meta: Any) -> bool:
    """Whether a value read from JSON has the fields of metadata."""
    if not isinstance(meta, dict) or not {"data_fingerprint", "stream_version"} <= meta.keys():
        return False
    return all(isinstance(meta.get(name), dict) for name in ("config", "versions"))


def check_same_run(old: Meta, new: Meta, what: str, saved: Collection[int] = ()) -> None:
    """Raise InputError, naming the field, if two runs differ in more than their logging.

    Args:
      old, new: metadata of the run that took the steps, and of this one.
      what: the file or folder of the old one, for the message.
      saved: steps of the checkpoints of the old one.
    """
    may = saved_config.MAY_CHANGE
    if not _is_sweep(old) and not _is_sweep(new):
        may += ("steps.",)
    different = saved_config.differences(old["config"], new["config"], may)
    for name, fields in _FINGERPRINTS.items():
        if old.get(name, "") == new.get(name, ""):  # the files may have moved
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
    _check_steps(old, new, what, saved)


def _is_sweep(meta: Meta) -> bool:
    return "sweep" in meta["config"]


def _check_steps(old: Meta, new: Meta, what: str, saved: Collection[int]) -> None:
    """Raise InputError if a saved step would be another one with the new number of steps."""
    if not saved or _is_sweep(new) or old["config"].get("steps") == new["config"].get("steps"):
        return
    configs = [_read_config(meta) for meta in (old, new)]
    before, now = (config.steps for config in configs)
    fixed = min(map(count_fixed_steps, configs))
    if before == now or max(saved) <= fixed:
        return
    changed = f"{what}: config.steps was {before} and is {now}"
    schedule = configs[1].optimizer.schedule
    if schedule not in EXTENSIBLE:
        raise InputError(
            f"{changed}, which changes every step of config.optimizer.schedule={schedule!r}; give "
            f"another --workdir, or begin with the schedule {' or '.join(EXTENSIBLE)}"
        )
    remedy = "no earlier checkpoint is there, so give another --workdir"
    if usable := [step for step in saved if step <= fixed]:
        remedy = f"to go back to step {max(usable)}, move the newer ones out of the folder"
    raise InputError(
        f"{changed}, which changes the steps after {fixed}, and the newest checkpoint is of step "
        f"{max(saved)}; {remedy}"
    )


def _read_config(meta: Meta) -> RunConfig:
    return from_values(RunConfig, saved_config.completed(meta["config"]))


def changed_versions(old: Meta, new: Meta) -> str:
    """The packages whose versions differ, in words; "" if all are the same."""
    before, now = old["versions"], new["versions"]
    if not (changed := [name for name in now if before.get(name) != now[name]]):
        return ""
    names = ", ".join(f"{name} {now[name]}" for name in changed)
    return f"{names}; it was {', '.join(f'{before.get(name)}' for name in changed)} before"
