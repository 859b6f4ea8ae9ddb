# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The weights that a run starts from if `config.init_from` names a Hugging Face folder."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface
from pqt_jax.models import GPT2Config, ModelConfig, get_spec
from pqt_jax.models.registry import model_config
from pqt_jax.training.config.field_table import as_text
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.transform.tree_paths import paths_and_leaves

# Fields that say how the model is computed; they may differ from the folder's.
_COMPUTATION = {"dtype", "param_dtype", "attention", "remat"}


class Start(NamedTuple):
    """Weights to start from.

    Attributes:
      params: float32 arrays, nested by paths; None for new weights.
      fingerprint: SHA-256 of names, shapes and values; "" for new weights.
    """

    params: Any = None
    fingerprint: str = ""


def read(config: RunConfig, known: str = "") -> Start:
    """The weights that `config.init_from` names.

    A GPT2 of Hugging Face always has biases. If the run's model has none, biases that are zero are
    dropped.

    Args:
      config: the run's configuration.
      known: fingerprint of these weights in a run that has checkpoints, which needs the folder no
        more; "" for other runs.

    Raises:
      InputError: if they cannot be read, or belong to another model than `config.model`.
    """
    if not config.init_from:
        return Start()
    if known and not Path(config.init_from).exists():
        return Start(fingerprint=known)
    try:
        there, params = huggingface.load(config.init_from)
    except InputError as error:
        raise InputError(f"config.init_from: {error}") from None
    leaves, here = paths_and_leaves(params), model_config(config)
    biases = {path for path in leaves if path.endswith("/bias")}
    dropped = isinstance(there, GPT2Config) and not getattr(here, "bias", False)
    if dropped and not any(leaves[path].any() for path in biases):
        there = dataclasses.replace(there, bias=False)
        leaves = {path: leaf for path, leaf in leaves.items() if path not in biases}
    _check_same(config, here, there)
    return Start(huggingface.nest_by_path(leaves), _fingerprint(leaves))


def _check_same(config: RunConfig, here: ModelConfig, there: ModelConfig) -> None:
    """Raise InputError, naming all fields that differ, unless both are the same model."""
    pairs: dict[str, tuple[Any, Any]] = {"name": (here.name, there.name)}
    if here.name == there.name:
        for field in dataclasses.fields(here):
            pairs[field.name] = getattr(here, field.name), getattr(there, field.name)
        # With rotary positions no weight depends on the length.
        skipped = {*_COMPUTATION, *(["max_length"] if get_spec(here).rotary else [])}
        pairs = {name: pair for name, pair in pairs.items() if name not in skipped}
        if "head_dim" in pairs:  # 0 stands for what other fields give
            pairs["head_dim"] = here.head_width, there.head_width
            pairs["num_kv_heads"] = here.kv_heads, there.kv_heads
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if not differing:
        return
    (field, (ours, theirs)), *others = differing.items()
    more = ", ".join(f"{name}={as_text(value)}" for name, (_, value) in others)
    raise InputError(
        f"config.model.{field}={ours!r}; config.init_from={config.init_from} has {theirs!r}, and "
        f"both must be the same{f'; it also has {more}' if more else ''}"
    )


def _fingerprint(leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
