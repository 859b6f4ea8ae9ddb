# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Configurations in `run.json`: as JSON, read by a later version, and compared."""

import hashlib
import json
from typing import Any

from pqt_jax.console import format_quantity
from pqt_jax.models import MODELS, Llama2Config
from pqt_jax.training.config.field_table import as_text
from pqt_jax.training.config.fields import flatten, list_fields, to_dict
from pqt_jax.training.config.schema import (
    MAY_CHANGE,
    LogConfig,
    OptimizerConfig,
    PqtConfig,
    RunConfig,
    default,
)

# Later fields with their defaults, which a digest leaves out, so that those of older runs stay.
_ADDED = {
    "recipe": RunConfig.recipe,
    "optimizer.decay_share": OptimizerConfig.decay_share,
    "pqt.granularity": PqtConfig.granularity,
    "pqt.round_all_at": PqtConfig.round_all_at,
    "pqt.round_share": PqtConfig.round_share,
    "pqt.sample_once": PqtConfig.sample_once,
    "pqt.scale": PqtConfig.scale,
    "pqt.schedule": PqtConfig.schedule,
    "pqt.begin_at": PqtConfig.begin_at,
    "pqt.round_at": PqtConfig.round_at,
    "pqt.round_to": PqtConfig.round_to,
    "log.store": LogConfig.store,
    "model.head_dim": Llama2Config.head_dim,
    "model.attention_bias": Llama2Config.attention_bias,
    "model.qk_norm": Llama2Config.qk_norm,
    "model.rope_scaling": Llama2Config.rope_scaling,
    "model.rope_factor": Llama2Config.rope_factor,
    "model.rope_low_freq_factor": Llama2Config.rope_low_freq_factor,
    "model.rope_high_freq_factor": Llama2Config.rope_high_freq_factor,
    "model.rope_original_length": Llama2Config.rope_original_length,
}


def as_json(config: RunConfig) -> str:
    """The configuration as JSON, with its fields sorted by name."""
    return json.dumps(to_dict(config), indent=2)


def digest(config: RunConfig) -> str:
    """A digest of the configuration without `MAY_CHANGE`, twelve hexadecimal digits."""
    relevant = {k: v for k, v in flatten(config) if not f"{k}.".startswith(MAY_CHANGE)}
    relevant = {k: v for k, v in relevant.items() if v != _ADDED.get(k)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]


def describe(config: RunConfig) -> str:
    """The fields that differ from their defaults, one on each line, as on the command line.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> from pqt_jax.training.config.fields import from_values
      >>> config = default(Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128))
      >>> config.pqt.block = (16, 16)
      >>> describe(from_values(RunConfig, config.to_dict())).splitlines()[-2]
      'config.pqt.block=16,16'
    """
    fields, values = list_fields(type(config), config.model.name), dict(flatten(config))
    changed = {n: value for n, value in values.items() if value != fields[n].default}
    lines = [f"config.{name}={as_text(value)}" for name, value in changed.items()]
    others = format_quantity(len(values) - len(changed), "other field")
    return "\n".join([*lines, f"{others} have their defaults; run.json in the workdir has all"])


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Add to a saved configuration the defaults of fields that its version did not have.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> saved = default(Llama2Config(256, 64, 2, 4, 128)).to_dict()
      >>> del saved["model"]["remat"], saved["mesh"]
      >>> completed(saved)["model"]["remat"], completed(saved)["mesh"]["data"]
      (False, 0)

    Args:
      saved: the configuration as read from JSON.

    Returns:
      A configuration with all fields, as JSON values; `saved` itself if it lacks a model's shape.
    """
    model = saved.get("model")
    if not isinstance(model, dict) or model.get("name") not in tuple(MODELS):
        return saved
    spec = MODELS[model["name"]]
    if not set(spec.shape_fields) <= model.keys():
        return saved
    like = default(spec.config_class(**{name: model[name] for name in spec.shape_fields}))
    return _over(json.loads(json.dumps(like.to_dict())), saved)


def _over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values, and the defaults where there are none, section by section."""
    merged = {**defaults, **values}
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(merged[name], dict):
            merged[name] = _over(value, merged[name])
    return merged


def differences(
    old: dict[str, Any], new: dict[str, Any], may: tuple[str, ...] = MAY_CHANGE
) -> list[str]:
    """Fields that differ between two saved configurations, one description each.

    A field that one of the two lacks counts as having its default there.

    Args:
      old, new: the configurations.
      may: sections and fields that may differ, as in `MAY_CHANGE`.
    """
    old, new = dict(flatten(completed(old))), dict(flatten(completed(new)))
    return [
        f"config.{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name) and not f"{name}.".startswith(may)
    ]
