# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The config.json of Llama and its kin, which our Llama2 computes with a few options.

    model_type   what it adds to Llama 2
    llama        scaled rotary positions, biases of the whole attention, heads of any width
    mistral      nothing; its sliding window is not supported
    qwen2        biases of q, k and v
    qwen3        RMSNorm of queries and keys

Positions are described by `rope_theta` and `rope_scaling`, and since transformers 5 by
`rope_parameters`, which has both. Written are all three.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqt_jax.interchange.huggingface_fields import (
    MISSING,
    ConfigTable,
    check_heads,
    check_value,
    is_number,
    wrong,
)
from pqt_jax.models import Llama2Config

_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", MISSING),
    "d_model": ("hidden_size", MISSING),
    "num_layers": ("num_hidden_layers", MISSING),
    "num_heads": ("num_attention_heads", MISSING),
    "num_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "d_ff": ("intermediate_size", MISSING),
    "max_length": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
_FIXED = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0, None),
}
_NO_WINDOW = _FIXED | {"use_sliding_window": (False,)}
_KINDS = ("default", "linear", "llama3")
_LLAMA3 = {  # our field → its name among the rotary positions
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_length": "original_max_position_embeddings",
}


def model_type(config: Llama2Config) -> str:
    """The kind of model in transformers that computes what ours does.

    Example:
      >>> model_type(Llama2Config(256, 64, 2, 4, 128, attention_bias="qkv"))
      'qwen2'
    """
    if config.qk_norm:
        return "qwen3"
    if config.attention_bias == "qkv":
        return "qwen2"
    plain = config.attention_bias == "none"
    return "mistral" if plain and config.d_model % config.num_heads else "llama"


def _table(architecture: str, fixed: Mapping[str, Any] = _FIXED, **defaults: Any) -> ConfigTable:
    return ConfigTable(
        architecture=architecture,
        fields=_FIELDS,
        fixed=fixed,
        defaults=defaults,
        make_extra=_extra,
        build=_build,
    )


def _extra(config: Llama2Config) -> dict[str, Any]:
    extra = {"num_key_value_heads": config.kv_heads, "head_dim": config.head_width}
    if model_type(config) in ("llama", "qwen3"):
        extra["attention_bias"] = config.attention_bias != "none"
    return extra | _write_rotary(config)


def _write_rotary(config: Llama2Config) -> dict[str, Any]:
    plain = config.rope_scaling == "none"
    section: dict[str, Any] = {"rope_type": "default" if plain else config.rope_scaling}
    if not plain:
        section["factor"] = config.rope_factor
    if config.rope_scaling == "llama3":
        section |= {theirs: getattr(config, ours) for ours, theirs in _LLAMA3.items()}
    theta = {"rope_theta": config.rope_theta}
    return {
        **theta,
        "rope_parameters": section | theta,
        **({} if plain else {"rope_scaling": section}),
    }


def _build(options: dict[str, Any], content: dict[str, Any], path: Path) -> Llama2Config:
    kind = content["model_type"]
    width, heads = options["d_model"], options["num_heads"]
    head_dim = options.pop("head_dim", None)
    if head_dim is None:
        check_heads(options, TABLES[kind], path, even=True)
    elif head_dim % 2:
        raise wrong(path, "head_dim", head_dim, "an even number")
    elif head_dim * heads != width:
        options["head_dim"] = head_dim
    kv_heads = options.get("num_kv_heads", heads)
    if heads % kv_heads:
        wanted = f"a divisor of num_attention_heads={heads}"
        raise wrong(path, "num_key_value_heads", kv_heads, wanted)
    options["num_kv_heads"] = 0 if kv_heads == heads else kv_heads
    kinds = content.get("layer_types") or []
    if not isinstance(kinds, list) or any(one != "full_attention" for one in kinds):
        raise wrong(path, "layer_types", kinds, "full_attention in every layer")
    return Llama2Config(
        **options,
        attention_bias=_read_bias(content, path),
        qk_norm=kind == "qwen3",
        **_read_rotary(content, path, options["max_length"]),
    )


def _read_bias(content: dict[str, Any], path: Path) -> Any:
    if content["model_type"] in ("mistral", "qwen2"):  # a field that they do not have
        return "qkv" if content["model_type"] == "qwen2" else "none"
    biased = content.get("attention_bias", False)
    if not isinstance(biased, bool):
        raise wrong(path, "attention_bias", biased, "true or false")
    return "all" if biased else "none"


def _read_rotary(content: dict[str, Any], path: Path, length: int) -> dict[str, Any]:
    """Read our fields of the rotary positions.

    Of two sections `rope_scaling` counts, as in transformers.
    """
    name = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    section, factor = content.get(name) or {}, MISSING
    kind = None
    if _is_plain(section):
        kind = section.get("rope_type", section.get("type", "default"))
        factor = section.get("factor", 1 if kind == "default" else MISSING)
    if kind not in _KINDS or (kind == "default" and factor != 1):
        raise wrong(path, name, section, "absent or of rope_type default, linear or llama3")
    theta = section.get("rope_theta", content.get("rope_theta", 10000.0))
    check_value(path, "rope_theta", "rope_theta", theta)
    check_value(path, "rope_factor", f"{name}.factor", factor)
    options: dict[str, Any] = {"rope_theta": float(theta)}
    if factor == 1:
        return options
    options |= {"rope_scaling": kind, "rope_factor": float(factor)}
    if kind == "linear":
        return options
    low, high = (section.get(key, MISSING) for key in ("low_freq_factor", "high_freq_factor"))
    if not is_number(low) or low < 0:
        raise wrong(path, f"{name}.low_freq_factor", low, "a finite number, 0 or more")
    if not is_number(high) or high <= low:
        wanted = f"a finite number above low_freq_factor={low}"
        raise wrong(path, f"{name}.high_freq_factor", high, wanted)
    original = _LLAMA3["rope_original_length"]
    trained = content.get(original, section.get(original, length))
    check_value(path, "rope_original_length", f"{name}.{original}", trained)
    limits = {"rope_low_freq_factor": float(low), "rope_high_freq_factor": float(high)}
    return options | limits | {"rope_original_length": trained}


def _is_plain(section: Any) -> bool:
    """Whether it describes the whole width of the heads, alike in all layers."""
    return (
        isinstance(section, dict)
        and section.get("partial_rotary_factor", 1.0) in (1.0, None)
        and not any(isinstance(value, dict) for value in section.values())
    )


TABLES = {  # by `model_type`; the defaults are those of transformers where they differ from Llama's
    "llama": _table("LlamaForCausalLM"),
    "mistral": _table(
        "MistralForCausalLM",
        _FIXED | {"sliding_window": (None,)},
        num_key_value_heads=8,
        max_position_embeddings=131072,
        sliding_window=4096,
    ),
    "qwen2": _table(
        "Qwen2ForCausalLM", _NO_WINDOW, num_key_value_heads=32, max_position_embeddings=32768
    ),
    "qwen3": _table(
        "Qwen3ForCausalLM",
        _NO_WINDOW,
        num_key_value_heads=32,
        max_position_embeddings=32768,
        head_dim=128,
    ),
}
