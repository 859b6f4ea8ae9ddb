# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The value of one field: converted, parsed from text, and compared with its range."""

import dataclasses
import re
from typing import Any

import numpy as np

from pqt_jax.console import whole_number
from pqt_jax.errors import InputError
from pqt_jax.models.setting import Setting

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a configuration.

    Attributes:
      name: dotted, such as "data.batch".
      kind: bool, int, float, str or tuple.
      member: the type of a tuple's members; str for other fields.
      default: the default; `dataclasses.MISSING` if the config file must set the field.
      setting: the field's range and meaning.
    """

    name: str
    kind: type
    member: type = str
    default: Any
    setting: Setting

    @property
    def kind_in_words(self) -> str:
        """The type in words, such as "a whole number"."""
        return _KINDS.get(self.kind, f"something like {self.default!r}")


def convert(field: Field, value: Any) -> Any:
    """Convert a value to the field's type: whole numbers to numbers, and lists to tuples.

    Raises:
      InputError: for a value of another type.
    """
    if isinstance(value, field.kind) and isinstance(value, bool) == (field.kind is bool):
        return field.kind(value)  # plain, also where it is a float of NumPy
    if field.kind is tuple and isinstance(value, list):
        return tuple(value)
    if field.kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    raise InputError(f"config.{field.name}={shown(value)}; it must be {field.kind_in_words}")


def parse(field: Field, text: str) -> Any:
    """Parse the text of a value into the field's type.

    Raises:
      InputError: for a text that is not of this type.
    """
    try:
        return _parse(text, field.kind, field.member)
    except (ValueError, OverflowError):
        raise InputError(
            f"config.{field.name}={text!r}; it must be {field.kind_in_words}"
        ) from None


def _parse(text: str, kind: type, member: type = str) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]
    if kind is int:
        return whole_number(text)
    if kind is tuple:
        inside = re.fullmatch(r"\s*(?:\(([^()]*)\)|\[([^][]*)\]|([^][()]*))\s*", text)
        if inside is None:
            raise ValueError(text)
        members = next(group for group in inside.groups() if group is not None).split(",")
        return tuple(_parse(one, member) for one in members if one.strip())
    return kind(text)


def check_range(field: Field, value: Any) -> None:
    """Raise InputError if a value of the field's type is out of its range, also in float32."""
    if reason := _range_error(field, value):
        raise InputError(f"config.{reason}")


def _range_error(field: Field, value: Any) -> str:
    setting, range_ = field.setting, field.setting.describe_range(field.kind)
    if not setting.accepts(value):
        return f"{field.name}={shown(value)}; it must be {range_}"
    if field.kind is float and not setting.accepts(as_float32(value)):
        in_float32 = f"{as_float32(value):g}"
        return f"{field.name}={value!r}; it must be {range_}, and in float32 it is {in_float32}"
    if setting.check is None:
        return ""
    try:
        setting.check(value)
    except (ValueError, TypeError, OverflowError) as error:
        section, _, last = field.name.rpartition(".")
        reason = " ".join(str(error).split())
        if not reason.startswith(f"{last}="):
            reason = f"{last}={shown(value)}; {reason}"
        return f"{section}.{reason}" if section else reason
    return ""


def shown(value: Any) -> str:
    """A value as text for a message. Long whole numbers are shortened, such as 1e+30."""

    def shorten(digits: re.Match[str]) -> str:
        return f"{int(digits[0][:4]) / 1000:g}e+{len(digits[0]) - 1}"

    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "(a number of thousands of digits)"
    return text if isinstance(value, str) else re.sub(r"(?<![.\d])\d{16,}", shorten, text)


def as_float32(value: float) -> float:
    """The value as float32, as training uses it. XLA replaces subnormal numbers by 0."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded
