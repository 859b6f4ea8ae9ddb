# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Whether the fields of any configuration are there, of their types, and in their ranges."""

import difflib
import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np

from pqt_jax.errors import InputError
from pqt_jax.training.config import schema
from pqt_jax.training.config.schema import Config, fields

Ranges = Mapping[str, tuple[Callable[[Any], bool], str]]

_SECTIONS = (
    "",
    "model",
    "data",
    "mesh",
    "optimizer",
    "pqt",
    "diffq",
    "watch",
    "log",
)  # the likelier meant, the earlier


def check_types(
    config: Config, default: Callable[[Any], Config] = schema.default
) -> dict[str, Any]:
    """Check that a config has the fields and types of its default.

    Args:
      config: of a run.
      default: the model's own configuration → every field with its default.

    Returns:
      The default of each field, of a model of size one. Where that is a number or a tuple, the
      config may have a whole number or a list.

    Raises:
      InputError: if it has not.
    """
    found = dict(fields(config))
    name = found.get("model.name")
    if name not in tuple(schema.MODELS):
        raise InputError(
            f"config.model.name={name!r}; it must be one of {', '.join(schema.MODELS)}"
        )
    cls, _ = schema.MODELS[name]
    known = dict(fields(default(cls(**dict.fromkeys(schema.shape_fields(cls), 1)))))
    for field, value in found.items():
        if field in known:
            continue
        if inside := [other for other in known if other.startswith(f"{field}.")]:
            raise InputError(f"config.{field}={value!r}; it must be a section: {', '.join(inside)}")
        raise InputError(f"config.{field}: no such field; {hint(field, list(known))}")
    for field, like in known.items():
        if field not in found:
            start = f"{default.__module__}.default"
            raise InputError(f"config.{field} is missing; start from {start}")
        value = found[field]
        good = isinstance(value, type(like)) and isinstance(value, bool) == isinstance(like, bool)
        good |= isinstance(like, float) and type(value) is int
        good |= isinstance(like, tuple) and isinstance(value, list)
        parts = value if isinstance(value, tuple | list) else (value,)
        bits = max((part.bit_length() for part in parts if isinstance(part, int)), default=0)
        if bits > 1000:
            raise InputError(f"config.{field}: a whole number of {bits} bits; give a smaller one")
        if not good:
            raise InputError(f"config.{field}={value!r}; it must be {wanted(like)}")
    return known


def wanted(like: Any) -> str:
    """What a field of this default takes, in words."""
    kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return kind.get(type(like), f"something like {like!r}")


def hint(name: str, known: Sequence[str]) -> str:
    """Which field was meant by a name that is none; or which fields there are, or its section has.

    Args:
      name: dotted, as given.
      known: the fields.
    """
    ratio = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()  # noqa: E731
    section, _, last = name.lower().rpartition(".")
    inside = [field for field in known if section and field.startswith(f"{section}.")] or known
    by_section = sorted(inside, key=_section)
    near = difflib.get_close_matches(last, {f.rpartition(".")[2] for f in inside})
    if candidates := [f for f in by_section if f.rpartition(".")[2] in near]:
        parts = lambda f: zip((last, section), f.rpartition(".")[::-2], strict=True)  # noqa: E731
        likest = max(candidates, key=lambda f: [ratio(a, b) for a, b in parts(f)])
        return f"did you mean config.{likest}?"
    return f"there are {', '.join(sorted(inside))}"


def _section(field: str) -> int:
    name = field.rpartition(".")[0]
    return _SECTIONS.index(name) if name in _SECTIONS else len(_SECTIONS)  # as of a sweep


def check_ranges(config: Config, ranges: Ranges, may_be_zero: Container[str] = ()) -> None:
    """Raise InputError for the first field whose value is out of its range.

    Args:
      config: whose fields have their types.
      ranges: dotted field → (whether a value can be used, what can, in words).
      may_be_zero: numbers among the other fields that may be 0; the rest must be more.
    """
    for name, value in fields(config):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in ranges:
            good, range_ = ranges[name]
        elif number:
            lowest = "0 or more" if name in may_be_zero else "more than 0"
            good, range_ = _above_zero(name in may_be_zero), f"finite and {lowest}"
            if isinstance(value, int):  # JAX counts in int32
                range_ = f"{lowest} and below 2^31"
        else:
            continue
        if not good(value):
            raise InputError(f"config.{name}={shown(value)}; it must be {range_}")
        if isinstance(value, float) and not good(as_float32(value)):
            raise InputError(
                f"config.{name}={value!r}; it must be {range_}, and in float32 it is "
                f"{as_float32(value):g}"
            )


def shown(value: Any) -> str:
    """A value as a message has it: 1e30, which became a whole number, without its 31 digits."""
    short = lambda digits: f"{float(digits[0]):g}"  # noqa: E731
    text = repr(value)
    return text if isinstance(value, str) else re.sub(r"(?<![.\d])\d{16,}", short, text)


def _above_zero(or_zero: bool) -> Callable[[Any], bool]:
    def good(value: int | float) -> bool:
        small = value < 2**31 if isinstance(value, int) else value < math.inf
        return small and (value > 0 or (or_zero and value == 0))

    return good


def as_float32(value: float) -> float:
    """The value as training has it; XLA takes what is below the smallest normal number for 0."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded
