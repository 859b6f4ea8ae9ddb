# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The metadata of GGUF files ↔ our model configurations.

Metadata that would make a different model of the same weights (scaled rotary positions, experts, …)
are refused by their name.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from pqt_jax.console import shorten
from pqt_jax.errors import InputError
from pqt_jax.interchange.gguf_reader import GGUF, Value
from pqt_jax.models import GPT2Config, Llama2Config, ModelConfig

_COUNTS = {  # our field → its name after that of the architecture
    "d_model": "embedding_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "d_ff": "feed_forward_length",
    "max_length": "context_length",
}
_ROPE_THETA = 10000.0  # of llama.cpp, where a file does not say it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one model is described in GGUF.

    Attributes:
      name: general.architecture, which also begins the names below.
      norm_eps: the name of the field norm_eps.
      make_extra: our configuration → metadata that only GGUF has.
      fixed: our configuration → values that metadata may have, where a file has them.
      build: (values of our fields, the file) → our configuration.
    """

    name: str
    norm_eps: str
    make_extra: Callable[[Any], dict[str, Value]]
    fixed: Callable[[Any], dict[str, tuple[Value, ...]]]
    build: Callable[[dict[str, Any], GGUF], ModelConfig]


def to_metadata(config: ModelConfig) -> dict[str, Value]:
    """The metadata that llama.cpp needs of a model, without those of its tokenizer.

    Example:
      >>> config = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128)
      >>> to_metadata(config)["llama.feed_forward_length"]
      128

    Raises:
      InputError: for a model that differs from Llama 2, which would be read as another one.
    """
    for field in ("head_dim", "attention_bias", "qk_norm", "rope_scaling"):
        plain = getattr(Llama2Config, field)
        if (value := getattr(config, field, plain)) != plain:
            raise InputError(
                f"config.model.{field}={value!r}; in GGUF it must be {plain!r}, give another layout"
            )
    of = ARCHITECTURES[config.name]
    values: dict[str, Value] = {"vocab_size": config.vocab_size}
    values |= {theirs: getattr(config, ours) for ours, theirs in _COUNTS.items()}
    values |= {of.norm_eps: config.norm_eps, **of.make_extra(config)}
    prefixed = {f"{of.name}.{name}": value for name, value in values.items()}
    return {"general.architecture": of.name, **prefixed}


def from_metadata(file: GGUF, vocab_size: int, tie_embeddings: bool) -> ModelConfig:
    """Our configuration of the model that a file describes.

    Args:
      file: from `gguf_reader.read`, of an architecture in `ARCHITECTURES`.
      vocab_size: the number of embeddings in it.
      tie_embeddings: whether it has no weights of the head.

    Returns:
      A GPT2Config with biases, or a Llama2Config, with dtype float32.

    Raises:
      InputError: naming the first metadata that our models do not support.
    """
    of = find_architecture(file)
    options: dict[str, Any] = {"vocab_size": vocab_size, "tie_embeddings": tie_embeddings}
    options["dtype"] = "float32"
    for ours, theirs in _COUNTS.items():
        options[ours] = _find_count(file, f"{of.name}.{theirs}")

    options["norm_eps"] = _find_number(file, f"{of.name}.{of.norm_eps}")
    even = of.name == "llama"
    width, heads = options["d_model"], options["num_heads"]
    if width % heads or (even and width // heads % 2):
        wanted = (
            f"a divisor of {of.name}.embedding_length={width}{' into heads of even size' * even}"
        )
        raise _wrong(file, f"{of.name}.attention.head_count", wanted)
    config = of.build(options, file)
    for name, values in of.fixed(config).items():
        if file.metadata.get(f"{of.name}.{name}", values[0]) not in values:
            raise _wrong(file, f"{of.name}.{name}", f"absent or {values[0]}")
    return config


def find_architecture(file: GGUF) -> Architecture:
    """The architecture of a file.

    Raises:
      InputError: if it is not one of ours.
    """
    for of in ARCHITECTURES.values():
        if file.metadata.get("general.architecture") == of.name:
            return of
    known = " or ".join(of.name for of in ARCHITECTURES.values())
    raise _wrong(file, "general.architecture", known)


def _find_count(file: GGUF, name: str, default: int | None = None) -> int:
    value = file.metadata.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise _wrong(file, name, "a whole number above 0 and below 2^31")
    return value


def _find_number(file: GGUF, name: str, default: float | None = None) -> float:
    """A float32, as the shortest decimal fraction that stands for it: 1e-5 is stored inexactly."""
    value = file.metadata.get(name, default)
    if not isinstance(value, float) or not 0 < value <= sys.float_info.max:
        raise _wrong(file, name, "a finite number above 0")
    return float(str(np.float32(value)))


def _wrong(file: GGUF, name: str, wanted: str) -> InputError:
    stated = f"{name} is missing"
    if name in file.metadata:
        stated = f"{name}={shorten(repr(file.metadata[name]), 200)}"
    return InputError(f"{file.path}: {stated}; it must be {wanted}")


def _build_llama(options: dict[str, Any], file: GGUF) -> Llama2Config:
    heads = options["num_heads"]
    kv_heads = _find_count(file, "llama.attention.head_count_kv", heads)
    if heads % kv_heads:
        wanted = f"a divisor of llama.attention.head_count={heads}"
        raise _wrong(file, "llama.attention.head_count_kv", wanted)
    options["num_kv_heads"] = 0 if kv_heads == heads else kv_heads
    theta = _find_number(file, "llama.rope.freq_base", _ROPE_THETA)
    return Llama2Config(**options, rope_theta=theta)


def _extra_llama(config: Llama2Config) -> dict[str, Value]:
    return {
        "attention.head_count_kv": config.kv_heads,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.d_model // config.num_heads,
    }


def _fixed_llama(config: Llama2Config) -> dict[str, tuple[Value, ...]]:
    size = config.d_model // config.num_heads
    sizes = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    return {
        **dict.fromkeys(sizes, (size,)),
        "rope.scaling.type": ("none",),
        "rope.scale_linear": (1.0,),
        "expert_count": (0,),
    }


ARCHITECTURES = {  # by `ModelSpec.name`
    "gpt2": Architecture(
        name="gpt2",
        norm_eps="attention.layer_norm_epsilon",
        make_extra=lambda config: {},
        fixed=lambda config: {},
        build=lambda options, file: GPT2Config(**options, bias=True),
    ),
    "llama2": Architecture(
        name="llama",
        norm_eps="attention.layer_norm_rms_epsilon",
        make_extra=_extra_llama,
        fixed=_fixed_llama,
        build=_build_llama,
    ),
}
