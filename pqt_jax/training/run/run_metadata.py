# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The metadata of a run: what must be unchanged to resume it, versions, and where it began.

    config, text, starting weights → metadata → `run.json`, and every checkpoint

Two runs are the same if their configurations agree, apart from `saved_config.MAY_CHANGE`, and if
text, starting weights and noise stream have the same fingerprints.
"""

import glob
import importlib.metadata
import json
import os
import platform
from typing import Any

from pqt_jax.data.source import Text
from pqt_jax.errors import InputError
from pqt_jax.numerics import philox
from pqt_jax.training.config import saved_config
from pqt_jax.training.config.schema import RunConfig

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


def check_same_run(old: Meta, new: Meta, what: str) -> None:
    """Raise InputError, naming the field, if two runs differ in more than their logging."""
    different = saved_config.differences(old["config"], new["config"])
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


def changed_versions(old: Meta, new: Meta) -> str:
    """The packages whose versions differ, in words; "" if all are the same."""
    before, now = old["versions"], new["versions"]
    if not (changed := [name for name in now if before.get(name) != now[name]]):
        return ""
    names = ", ".join(f"{name} {now[name]}" for name in changed)
    return f"{names}; it was {', '.join(f'{before.get(name)}' for name in changed)} before"
