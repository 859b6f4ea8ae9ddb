# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The choice between XLA's attention and kernels, made once before a model is built.

    config.attention    implementation
    "auto"              cuDNN's on GPUs and splash on TPUs, if they support the model and the
                        devices, else XLA's
    "xla"               XLA's
    "cudnn"             cuDNN's, or an error with the reason
    "splash"            JAX's kernel for TPUs, or an error with the reason; see `splash`

The choice is not left to JAX, which would fall back to XLA's without a message.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax

from pqt_jax.errors import InputError
from pqt_jax.models import partitioning

Implementation = Literal["xla", "cudnn", "splash"]
Attend = Literal["auto", "xla", "cudnn", "splash"]
_AMPERE, _HOPPER = (8, 0), (9, 0)


class Choice(NamedTuple):
    """An implementation and the reason for it.

    Attributes:
      implementation: "xla", "cudnn" or "splash".
      reason: one phrase, to be printed.
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
      devices: all devices that the model runs on, in one process or several.

    Returns:
      A `Choice`, which depends on nothing but the arguments and, for several TPUs, on whether a
      mesh of the trainer is active.

    Raises:
      InputError: if the config demands a kernel that does not support the model or the devices.
    """
    asked = model.attention
    if asked == "xla":
        return Choice("xla", "the config says so")
    on_tpus = all(device.platform == "tpu" for device in devices)
    is_splash = asked == "splash" or (asked == "auto" and on_tpus)
    kernel: Implementation = "splash" if is_splash else "cudnn"
    obstacle = (_obstacle_of_splash if is_splash else _obstacle_of_cudnn)(model, devices)
    if asked == kernel:
        if obstacle:
            raise InputError(
                f"config.model.attention={kernel!r}; it {obstacle.removeprefix(f'{kernel} ')}; "
                "give auto or xla"
            )
        return Choice(kernel, "the config says so")
    if obstacle:
        return Choice("xla", obstacle)
    if is_splash:
        return Choice("splash", f"a TPU and {model.dtype} allow it")
    return Choice("cudnn", f"a GPU, {model.dtype} and heads of {model.head_width} allow it")


def resolved(model: Any) -> Any:
    """The configuration with "auto" replaced by the choice for the devices of JAX."""
    if model.attention != "auto":
        return model
    return dataclasses.replace(model, attention=choose(model, jax.devices()).implementation)


def _obstacle_of_splash(model: Any, devices: Sequence[Any]) -> str | None:
    """Why splash attention cannot be used; None if it can."""
    if any(device.platform != "tpu" for device in devices):
        return "splash needs a TPU, and JAX finds none"
    if model.dtype not in ("bfloat16", "float32"):
        return f"splash needs config.model.dtype=bfloat16 or float32, and it is {model.dtype}"
    if len(devices) > 1 and partitioning.attention_sharding(1, 1, 1) is None:
        return "splash needs the mesh of the trainer on several devices"
    return None


def _obstacle_of_cudnn(model: Any, devices: Sequence[Any]) -> str | None:
    """Why cuDNN's attention cannot be used; None if it can."""
    if any(device.platform != "gpu" for device in devices):
        return "cudnn needs a GPU, and JAX finds none"
    capability, kind = min((_capability(device), device.device_kind) for device in devices)
    if capability < _AMPERE:
        return f"cudnn needs an NVIDIA GPU of compute capability 8.0, and there is {kind}"
    if model.dtype not in ("bfloat16", "float16"):
        return f"cudnn needs config.model.dtype=bfloat16 or float16, and it is {model.dtype}"
    # Hopper and newer support wider heads. They may be slower there, so "auto" does not use them.
    widest = 256 if model.attention == "cudnn" and capability >= _HOPPER else 128
    if (width := model.head_width) % 8 or width > widest:
        given = getattr(model, "head_dim", 0)
        field = "head_dim" if given else "d_model / config.model.num_heads"
        return (
            f"cudnn needs heads of a width that 8 divides, {widest} at most, and config.model."
            f"{field} is {width}"
        )
    return None


def _capability(device: Any) -> tuple[int, ...]:
    """The compute capability, (8, 0) for "8.0"; () if there is none, as on GPUs of other makers."""
    numbers = str(getattr(device, "compute_capability", "")).split(".")
    return tuple(map(int, numbers)) if all(number.isdecimal() for number in numbers) else ()
