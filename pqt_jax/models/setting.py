# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`Setting`: the range and the meaning of a configuration field, kept in its dataclass metadata.

The checks, the command line, `--help` and the table of fields in the documentation are all made
from it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_KEY = "setting"
_INT32 = 2**31  # JAX counts in int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The values that a field accepts, and its meaning.

    Attributes:
      help: one sentence for `--help` and the documentation.
      choices: the accepted texts; empty to accept any.
      minimum, above: the lowest number, or the number that it must exceed.
      maximum, below: the highest number, or the number that it must stay under. Whole numbers stay
        under 2^31 if neither is set.
      words: the range in words, if the bounds alone do not explain it.
      check: a function that raises ValueError or TypeError for a value that is not accepted.
    """

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    words: str = ""
    check: Callable[[Any], object] | None = None

    def accepts(self, value: Any) -> bool:
        """Whether a value of the field's type is a choice, or within the bounds."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        below = self.below
        if below is None and self.maximum is None:
            below = _INT32 if isinstance(value, int) else math.inf
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (below is None or value < below)
        )

    def describe_range(self, kind: type, *, brief: bool = False) -> str:
        """The accepted values in words; "" if all values of the type are accepted.

        With `brief`, the limits that apply to every number are left out.

        Example:
          >>> Setting(help="", minimum=1).describe_range(int)
          '1 or more and below 2^31'
          >>> Setting(help="", minimum=1).describe_range(int, brief=True)
          '1 or more'
          >>> Setting(help="", above=0).describe_range(float)
          'finite and more than 0'
          >>> Setting(help="", choices=("token", "mask")).describe_range(str)
          'token or mask'
        """
        if self.words:
            return self.words
        if len(self.choices) > 2:
            return f"one of {', '.join(self.choices)}"
        if self.choices:
            return " or ".join(self.choices)
        if kind not in (int, float):
            return ""
        if self.minimum is not None and self.maximum is not None:
            return f"from {_number(self.minimum)} to {_number(self.maximum)}"
        limits = []
        if self.minimum is not None:
            limits.append(f"{_number(self.minimum)} or more")
        if self.above is not None:
            limits.append(f"more than {_number(self.above)}")
        if self.maximum is not None:
            limits.append(f"at most {_number(self.maximum)}")
        elif self.below is not None:
            limits.append(f"below {_number(self.below)}")
        elif not brief:
            limits = [*limits, f"below {_number(_INT32)}"] if kind is int else ["finite", *limits]
        return " and ".join(limits)


def _number(value: float) -> str:
    power = math.log2(value) if value >= _INT32 else 0
    return f"2^{power:g}" if power and power.is_integer() else f"{value:g}"


def about(help: str, **options: Any) -> Mapping[str, Setting]:
    """The metadata of a field without a default: `dataclasses.field(metadata=about("…"))`.

    Args:
      help: one sentence.
      options: other attributes of `Setting`.
    """
    return {_KEY: Setting(help=help, **options)}


def setting(default: T, help: str, **options: Any) -> T:
    """A dataclass field with a default and a `Setting`.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Oven:
      ...     degrees: int = setting(180, "Temperature, in degrees Celsius.", minimum=30, below=300)
      >>> Oven().degrees, of_field(dataclasses.fields(Oven)[0]).describe_range(int)
      (180, '30 or more and below 300')

    Args:
      default: the field's default.
      help: one sentence.
      options: other attributes of `Setting`.
    """
    field: Any = dataclasses.field(default=default, metadata=about(help, **options))
    return field


def of_field(field: dataclasses.Field[Any]) -> Setting:
    """The `Setting` of a dataclass field; one without bounds if the field has none."""
    return field.metadata.get(_KEY, Setting(help=""))


# Fields that all models have.
DTYPES = ("float32", "bfloat16")
VOCAB_SIZE = about("Number of tokens in the vocabulary; of bytes, 256 or more.", minimum=1)
D_MODEL = about("Width of the residual stream.", minimum=1)
NUM_LAYERS = about("Number of layers.", minimum=1)
NUM_HEADS = about("Attention heads in a layer; they divide d_model.", minimum=1)
ATTENTION = "Implementation of the attention; auto takes cuDNN's or splash where it can be used."
