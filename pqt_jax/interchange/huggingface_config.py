# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The config.json of Hugging Face ↔ our model configurations.

Only the shape and the arithmetic of a model are translated. Whatever would make another model of
the same weights (other activations, scaled rotary positions, …) is refused by name.
"""

import sys
from pathlib import Path
from typing import Any

from pqt_jax.console import shorten
from pqt_jax.errors import InputError
from pqt_jax.models import GPT2Config, Llama2Config

ModelConfig = Llama2Config | GPT2Config

_MISSING: Any = object()
# Ours → (theirs, what transformers takes where it is missing). The shape itself has to be there.
_GPT2: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", _MISSING),
    "d_model": ("n_embd", _MISSING),
    "num_layers": ("n_layer", _MISSING),
    "num_heads": ("n_head", _MISSING),
    "d_ff": ("n_inner", None),
    "max_length": ("n_positions", 1024),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tie_embeddings": ("tie_word_embeddings", True),
}
_LLAMA: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", _MISSING),
    "d_model": ("hidden_size", _MISSING),
    "num_layers": ("num_hidden_layers", _MISSING),
    "num_heads": ("num_attention_heads", _MISSING),
    "num_kv_heads": ("num_key_value_heads", None),
    "d_ff": ("intermediate_size", _MISSING),
    "max_length": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
# Theirs → values that our model computes, the first being what is meant where it is missing.
_GPT2_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
_LLAMA_FIXED = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
}
_ROPE_THETA = 10000.0


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model.

    Example:
      >>> config = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128)
      >>> to_json(config, "float32")["intermediate_size"]
      128

    Args:
      config: ours.
      dtype: of the weights beside it.

    Returns:
      What JSON can hold. Names that only older or only newer versions of transformers know are both
      there.
    """
    gpt2 = isinstance(config, GPT2Config)
    names, fixed = (_GPT2, _GPT2_FIXED) if gpt2 else (_LLAMA, _LLAMA_FIXED)
    content: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel" if gpt2 else "LlamaForCausalLM"],
        "model_type": "gpt2" if gpt2 else "llama",
        **{theirs: getattr(config, ours) for ours, (theirs, _) in names.items()},
        **{name: values[0] for name, values in fixed.items()},
        "torch_dtype": dtype,
        # Left to their defaults these would be tokens of the original's vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    del content["quantization_config"]
    if isinstance(config, GPT2Config):
        content |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    else:
        del content["partial_rotary_factor"]
        content |= {
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.d_model // config.num_heads,
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        }
    return content


def from_json(content: dict[str, Any], path: Path) -> ModelConfig:
    """Our configuration of the model that a config.json describes.

    Args:
      content: of the file.
      path: of the file, for messages.

    Returns:
      A GPT2Config with biases, or a Llama2Config. It computes in float32, as transformers does with
      float32 weights; other fields that say how to compute (`attention`, …) have their defaults.

    Raises:
      InputError: naming the first field that our models do not cover.
    """
    kind = content.get("model_type", _MISSING)
    if kind not in ("gpt2", "llama"):
        raise _wrong(path, "model_type", kind, "gpt2 or llama")
    gpt2 = kind == "gpt2"
    for name, values in (_GPT2_FIXED if gpt2 else _LLAMA_FIXED).items():
        if content.get(name, values[0]) not in values:
            shown = " or ".join(str(value) for value in values if value is not None)
            raise _wrong(path, name, content[name], shown or "absent")
    options: dict[str, Any] = {"dtype": "float32"}
    for ours, (theirs, default) in (_GPT2 if gpt2 else _LLAMA).items():
        value = content.get(theirs, default)
        if value is None and default is None:
            continue
        check, wanted = _checks(ours)
        if not check(value):
            raise _wrong(path, theirs, value, wanted)
        options[ours] = value
    options["norm_eps"] = float(options["norm_eps"])
    width, heads = options["d_model"], options["num_heads"]
    if width % heads or (not gpt2 and width // heads % 2):
        even = "" if gpt2 else " into heads of even size"
        name, other = ("n_head", "n_embd") if gpt2 else ("num_attention_heads", "hidden_size")
        raise _wrong(path, name, heads, f"a divisor of {other}={width}{even}")
    if gpt2:
        return GPT2Config(**{"d_ff": 4 * width, **options}, bias=True)
    if content.get("head_dim") not in (None, width // heads):
        raise _wrong(
            path, "head_dim", content["head_dim"], f"{width // heads}, hidden_size / heads"
        )
    kv_heads = options.get("num_kv_heads", heads)
    if heads % kv_heads:
        wanted = f"a divisor of num_attention_heads={heads}"
        raise _wrong(path, "num_key_value_heads", kv_heads, wanted)
    options["num_kv_heads"] = 0 if kv_heads == heads else kv_heads
    return Llama2Config(**options, rope_theta=_rope_theta(content, path))


def _rope_theta(content: dict[str, Any], path: Path) -> float:
    """The base of the wavelengths, at the top level or, since transformers 5, in a section."""
    theta = content.get("rope_theta", _ROPE_THETA)
    for name in ("rope_scaling", "rope_parameters"):
        section = content.get(name)
        if section is None:
            continue
        plain = isinstance(section, dict) and (
            section.get("rope_type", section.get("type", "default")) == "default"
            and "factor" not in section  # a kind that is not named
            and section.get("partial_rotary_factor", 1.0) in (1.0, None)
            and not any(isinstance(value, dict) for value in section.values())  # by kind of layer
        )
        if not plain:
            raise _wrong(path, name, section, "absent or of rope_type default")
        theta = section.get("rope_theta", theta)
    if not _is_positive(theta):
        raise _wrong(path, "rope_theta", theta, "a finite number above 0")
    return float(theta)


def _checks(ours: str) -> tuple[Any, str]:
    if ours == "tie_embeddings":
        return lambda v: isinstance(v, bool), "true or false"
    if ours == "norm_eps":
        return _is_positive, "a finite number above 0"
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 < v < 2**31  # noqa: E731
    return whole, "a whole number above 0 and below 2^31"


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= sys.float_info.max


def _wrong(path: Path, name: str, value: Any, wanted: str) -> InputError:
    found = f"{name} is missing" if value is _MISSING else f"{name}={shorten(repr(value), 200)}"
    return InputError(f"{path}: {found}; it must be {wanted}")
