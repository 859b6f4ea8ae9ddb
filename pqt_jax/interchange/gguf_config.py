# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The metadata of GGUF files ↔ our model configurations.

    gpt2           GPT2 with biases
    llama          Llama2 with all its options but norms of queries and keys
    qwen2          the same with biases of q, k and v, if positions are not scaled as in Llama 3
    qwen3          Llama2 with norms of queries and keys, if the attention's output has no bias and
                   positions are not scaled as in Llama 3

Which biases and norms a model has is seen by its tensors. Metadata that would make another model
of the same weights (experts, a sliding window, …) are refused by their name.
"""

import sys
from typing import Any

import numpy as np

from pqt_jax.console import shorten
from pqt_jax.errors import InputError
from pqt_jax.interchange.gguf_reader import GGUF, Value
from pqt_jax.models import GPT2Config, Llama2Config, ModelConfig

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
_COUNTS = {  # our field → its name after that of the architecture
    "d_model": "embedding_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "d_ff": "feed_forward_length",
    "max_length": "context_length",
}
_HEAD_SIZES = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_BIASES = ("blk.0.attn_q.bias", "blk.0.attn_output.bias")
# Fields that are metadata of our own: llama.cpp takes of them what `gguf_rotary` says.
LLAMA3 = ("rope_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_length")
_FIXED = {  # what metadata may be, where a file has them
    "rope.scale_linear": (1.0,),
    "expert_count": (0,),
    "attention.sliding_window": (0,),
}
_ROPE_THETA = 10000.0  # of llama.cpp, where a file does not say it


def choose_architecture(config: ModelConfig) -> str:
    """The architecture of llama.cpp that computes what our model does.

    Raises:
      InputError: if there is none.
    """
    if isinstance(config, GPT2Config):
        return "gpt2"
    if not config.qk_norm:
        if config.attention_bias != "qkv" or config.rope_scaling == "llama3":
            return "llama"
        if config.head_width * config.num_heads != config.d_model:
            raise InputError(
                f"config.model.head_dim={config.head_dim}, other than d_model / num_heads, "
                "together with attention_bias=qkv; llama.cpp has no such model, so give another "
                "layout than gguf"
            )
        return "qwen2"
    for name, lacks in (("attention_bias", "all"), ("rope_scaling", "llama3")):
        if getattr(config, name) == lacks:
            raise InputError(
                f"config.model.{name}={lacks} together with config.model.qk_norm=True; llama.cpp "
                "has no such model, so give another layout than gguf"
            )
    return "qwen3"


def to_metadata(config: ModelConfig) -> dict[str, Value]:
    """The metadata that llama.cpp needs of a model, without those of its tokenizer.

    Example:
      >>> config = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128)
      >>> to_metadata(config)["llama.feed_forward_length"]
      128
    """
    architecture = choose_architecture(config)
    values: dict[str, Value] = {"vocab_size": config.vocab_size}
    values |= {theirs: getattr(config, ours) for ours, theirs in _COUNTS.items()}
    values[_norm_eps(architecture)] = config.norm_eps
    own: dict[str, Value] = {}
    if isinstance(config, Llama2Config):
        values["attention.head_count_kv"] = config.kv_heads
        values |= dict.fromkeys(_HEAD_SIZES, config.head_width)
        values["rope.freq_base"] = config.rope_theta
        if config.rope_scaling == "linear":
            values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
        elif config.rope_scaling == "llama3":
            own = {f"pqt_jax.{name}": float(getattr(config, name)) for name in LLAMA3}
    prefixed = {f"{architecture}.{name}": value for name, value in values.items()}
    return {"general.architecture": architecture, **prefixed, **own}


def from_metadata(file: GGUF) -> ModelConfig:
    """Our configuration of the model that a file describes.

    Args:
      file: from `gguf_reader.read`; it has the tensor token_embd.weight.

    Returns:
      A GPT2Config with biases, or a Llama2Config, with dtype float32.

    Raises:
      InputError: naming the first metadata that our models do not support.
    """
    architecture = find_architecture(file)
    options: dict[str, Any] = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
    }
    for ours, theirs in _COUNTS.items():
        options[ours] = _find_count(file, f"{architecture}.{theirs}")
    options["norm_eps"] = _find_number(file, f"{architecture}.{_norm_eps(architecture)}")
    for name, values in _FIXED.items():
        name = f"{architecture}.{name}"
        if file.metadata.get(name, values[0]) not in values:
            raise _wrong(file, name, f"absent or {values[0]}")
    if architecture == "gpt2":
        heads = options["num_heads"]
        if options["d_model"] % heads:
            wanted = f"a divisor of gpt2.embedding_length={options['d_model']}"
            raise _wrong(file, "gpt2.attention.head_count", wanted)
        return GPT2Config(**options, bias=True)
    return _build_llama(file, architecture, options)


def find_architecture(file: GGUF) -> str:
    """The architecture of a file.

    Raises:
      InputError: if it is not one of ours.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        *most, last = ARCHITECTURES
        raise _wrong(file, "general.architecture", f"{', '.join(most)} or {last}")
    return str(architecture)


def _norm_eps(architecture: str) -> str:
    kind = "layer_norm" if architecture == "gpt2" else "layer_norm_rms"
    return f"attention.{kind}_epsilon"


def _build_llama(file: GGUF, architecture: str, options: dict[str, Any]) -> Llama2Config:
    heads, width = options["num_heads"], options["d_model"]
    size = _head_size(file, architecture, heads, width)
    name = f"{architecture}.attention.head_count_kv"
    kv_heads = _find_count(file, name, heads)
    if heads % kv_heads:
        raise _wrong(file, name, f"a divisor of {architecture}.attention.head_count={heads}")
    biased = {bias for bias in _BIASES if bias in file.tensors}
    return Llama2Config(
        **options,
        num_kv_heads=0 if kv_heads == heads else kv_heads,
        head_dim=0 if size * heads == width else size,
        attention_bias="none" if not biased else "all" if _BIASES[1] in biased else "qkv",
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        rope_theta=_find_number(file, f"{architecture}.rope.freq_base", _ROPE_THETA),
        **_find_scaling(file, architecture),
    )


def _head_size(file: GGUF, architecture: str, heads: int, width: int) -> int:
    name = f"{architecture}.{_HEAD_SIZES[0]}"
    if name not in file.metadata:
        name = f"{architecture}.attention.head_count"
        if width % heads or width // heads % 2:
            wanted = f"a divisor of {architecture}.embedding_length={width} into heads of even size"
            raise _wrong(file, name, wanted)
        size = width // heads
    elif (size := _find_count(file, name)) % 2:
        raise _wrong(file, name, "an even number")
    for name in _HEAD_SIZES:
        name = f"{architecture}.{name}"
        if file.metadata.get(name, size) != size:
            raise _wrong(file, name, f"absent or {size}, the size of a head")
    return size


def _find_scaling(file: GGUF, architecture: str) -> dict[str, Any]:
    """The scaling of positions, but for that of Llama 3, which `gguf_rotary` reads."""
    section = f"{architecture}.rope.scaling"
    factor = _find_number(file, f"{section}.factor", 1.0)
    kind = file.metadata.get(f"{section}.type", "linear")
    if kind not in ("none", "linear"):
        raise _wrong(file, f"{section}.type", "absent, none or linear")
    if kind == "none" or factor == 1:
        return {}
    return {"rope_scaling": "linear", "rope_factor": factor}


def find_own(file: GGUF) -> dict[str, Any]:
    """The fields of our configuration that only files of ours have."""
    names = {name: f"pqt_jax.{name}" for name in LLAMA3 if f"pqt_jax.{name}" in file.metadata}
    return {
        ours: _find_number(file, name) if file.metadata[name] != 0 else 0.0  # of low_freq_factor
        for ours, name in names.items()
    }


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
