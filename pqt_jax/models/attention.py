# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which implementation of attention a model has, and why: chosen once, before it is built.

    config.attention    taken
    "auto"              cuDNN's where it can work, else XLA's
    "xla"               XLA's
    "cudnn"             cuDNN's, or an error with the reason

JAX chooses nothing: left to itself it falls back to XLA's without a word.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax

from pqt_jax.errors import InputError

Implementation = Literal["xla", "cudnn"]
Attend = Literal["auto", "xla", "cudnn"]
_AMPERE, _HOPPER = (8, 0), (9, 0)


class Choice(NamedTuple):
    """An implementation and what it was taken for.

    Attributes:
      implementation: "xla" or "cudnn", as `jax.nn.dot_product_attention` takes them.
      reason: for people.
    """

    implementation: Implementation
    reason: str


def choose(model: Any, devices: Sequence[Any]) -> Choice:
    """The implementation for a model on some devices.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> choose(Llama2Config(256, 64, 2, 4, 128), jax.devices("cpu"))
      Choice(implementation='xla', reason='cudnn needs a GPU, and JAX finds none')

    Args:
      model: a GPT2Config or a Llama2Config.
      devices: that it runs on, of one process or of many.

    Returns:
      A `Choice`. Two calls with the same arguments return the same.

    Raises:
      InputError: if it has to be cuDNN's, and cannot.
    """
    if model.attention == "xla":
        return Choice("xla", "the config says so")
    obstacle = _obstacle(model, devices)
    if model.attention == "cudnn":
        if obstacle:
            raise InputError(
                f"config.model.attention='cudnn'; it {obstacle.removeprefix('cudnn ')}; "
                "give auto or xla"
            )
        return Choice("cudnn", "the config says so")
    if obstacle:
        return Choice("xla", obstacle)
    return Choice("cudnn", f"a GPU, {model.dtype} and heads of {_head_width(model)} allow it")


def resolved(model: Any) -> Any:
    """The configuration with "auto" replaced by what it stands for on the devices of JAX."""
    if model.attention != "auto":
        return model
    return dataclasses.replace(model, attention=choose(model, jax.devices()).implementation)


def _head_width(model: Any) -> int:
    return model.d_model // model.num_heads


def _obstacle(model: Any, devices: Sequence[Any]) -> str | None:
    """Why cuDNN's attention cannot do it; None where it can."""
    if any(device.platform != "gpu" for device in devices):
        return "cudnn needs a GPU, and JAX finds none"
    capability, kind = min((_capability(device), device.device_kind) for device in devices)
    if capability < _AMPERE:
        return f"cudnn needs an NVIDIA GPU of compute capability 8.0, and there is {kind}"
    if model.dtype not in ("bfloat16", "float16"):
        return f"cudnn needs config.model.dtype=bfloat16 or float16, and it is {model.dtype}"
    # Wider heads work on Hopper and newer; whether they are faster there is for the user to say.
    widest = 256 if model.attention == "cudnn" and capability >= _HOPPER else 128
    if (width := _head_width(model)) % 8 or width > widest:
        return (
            f"cudnn needs heads of a width that 8 divides, {widest} at most, and config.model."
            f"d_model / config.model.num_heads is {width}"
        )
    return None


def _capability(device: Any) -> tuple[int, ...]:
    """(8, 0) of "8.0"; () where there is no such number, as of GPUs of others."""
    parts = str(getattr(device, "compute_capability", "")).split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()
