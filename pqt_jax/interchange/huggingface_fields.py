# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How one model is described in a config.json of Hugging Face, and the checks of its values."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pqt_jax.console import shorten
from pqt_jax.errors import InputError
from pqt_jax.models import ModelConfig

MISSING: Any = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigTable:
    """How one model is described in a config.json.

    Attributes:
      architecture: the name of its class in transformers.
      fields: our field → (the field in config.json, the value where that is missing). Fields of
        the shape are required.
      fixed: field in config.json → values that our model supports; the first one is the default.
      defaults: values of other missing fields, where they are not the first of `fixed`.
      make_extra: our configuration → fields that only config.json has.
      build: (values of our fields, config.json, its path) → our configuration.
    """

    architecture: str
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, tuple[Any, ...]]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    make_extra: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any], dict[str, Any], Path], ModelConfig]


def check_heads(options: dict[str, Any], table: ConfigTable, path: Path, *, even: bool) -> None:
    """Raise InputError unless the heads divide the width (evenly sized, for rotary positions)."""
    width, heads = options["d_model"], options["num_heads"]
    if width % heads or (even and width // heads % 2):
        names = {ours: theirs for ours, (theirs, _) in table.fields.items()}
        wanted = f"a divisor of {names['d_model']}={width}{' into heads of even size' * even}"
        raise wrong(path, names["num_heads"], heads, wanted)


def check_value(path: Path, ours: str, theirs: str, value: Any) -> None:
    """Raise InputError unless the value is one of our field's kind.

    Args:
      path: the file, for the message.
      ours: the name of our field.
      theirs: its name in the file.
      value: what the file says.
    """
    if ours == "tie_embeddings":
        accepted, wanted = isinstance(value, bool), "true or false"
    elif ours in ("norm_eps", "rope_theta", "rope_factor"):
        accepted, wanted = is_number(value) and value > 0, "a finite number above 0"
    else:
        accepted = isinstance(value, int) and is_number(value) and 0 < value < 2**31
        wanted = "a whole number above 0 and below 2^31"
    if not accepted:
        raise wrong(path, theirs, value, wanted)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float holds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def wrong(path: Path, name: str, value: Any, wanted: str) -> InputError:
    """The error of a field whose value cannot be used; `MISSING` for one that is not there."""
    stated = f"{name} is missing" if value is MISSING else f"{name}={shorten(repr(value), 200)}"
    return InputError(f"{path}: {stated}; it must be {wanted}")
