# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The config.json of Hugging Face ↔ our model configurations.

Only the fields for shape and arithmetic are translated. A field that would make a different model
of the same weights (another activation, scaled rotary positions, …) is refused by its name.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pqt_jax.console import shorten
from pqt_jax.errors import InputError
from pqt_jax.models import GPT2Config, Llama2Config, ModelConfig

_MISSING: Any = object()
# Our field → (field in config.json, the default of transformers). Fields of the shape are required.
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
# Field in config.json → values that our model supports; the first one is the default.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigTable:
    """How one model is described in a config.json.

    Attributes:
      architecture, model_type: the names in transformers.
      fields: our field → (the field in config.json, the value where that is missing).
      fixed: field in config.json → values that our model computes, see above.
      make_extra: our configuration → fields that only config.json has.
      build: (values of our fields, config.json, its path) → our configuration.
    """

    architecture: str
    model_type: str
    fields: dict[str, tuple[str, Any]]
    fixed: dict[str, tuple[Any, ...]]
    make_extra: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any], dict[str, Any], Path], ModelConfig]


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model.

    Example:
      >>> config = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128)
      >>> to_json(config, "float32")["intermediate_size"]
      128

    Args:
      config: our configuration of the model.
      dtype: the dtype of the weights in the same folder.

    Returns:
      The content of the file. It has the field names of older and of newer versions of
      transformers.
    """
    table = TABLES[config.name]
    content: dict[str, Any] = {
        "architectures": [table.architecture],
        "model_type": table.model_type,
        **{theirs: getattr(config, ours) for ours, (theirs, _) in table.fields.items()},
        **{name: values[0] for name, values in table.fixed.items()},
        "torch_dtype": dtype,
        # The defaults would be tokens of the original vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    for name in ("quantization_config", "partial_rotary_factor"):  # what is computed without them
        content.pop(name, None)
    return content | table.make_extra(config)


def from_json(content: dict[str, Any], path: Path) -> ModelConfig:
    """Our configuration of the model that a config.json describes.

    Args:
      content: the file's content.
      path: the file's path, for messages.

    Returns:
      A GPT2Config with biases, or a Llama2Config. Its dtype is float32, as in transformers with
      float32 weights. Fields that have no counterpart there (`attention`, …) have their defaults.

    Raises:
      InputError: naming the first field that our models do not support.
    """
    kind, by_type = content.get("model_type", _MISSING), {t.model_type: t for t in TABLES.values()}
    if kind not in tuple(by_type):
        raise _wrong(path, "model_type", kind, " or ".join(by_type))
    table = by_type[kind]
    for name, values in table.fixed.items():
        if content.get(name, values[0]) not in values:
            shown = " or ".join(str(value) for value in values if value is not None)
            raise _wrong(path, name, content[name], shown or "absent")
    options: dict[str, Any] = {"dtype": "float32"}
    for ours, (theirs, default) in table.fields.items():
        value = content.get(theirs, default)
        if value is None and default is None:
            continue
        check, wanted = _checks(ours)
        if not check(value):
            raise _wrong(path, theirs, value, wanted)
        options[ours] = value
    options["norm_eps"] = float(options["norm_eps"])
    return table.build(options, content, path)


def _check_heads(options: dict[str, Any], table: "ConfigTable", path: Path, even: bool) -> None:
    width, heads = options["d_model"], options["num_heads"]
    if width % heads or (even and width // heads % 2):
        names = {ours: theirs for ours, (theirs, _) in table.fields.items()}
        wanted = f"a divisor of {names['d_model']}={width}{' into heads of even size' * even}"
        raise _wrong(path, names["num_heads"], heads, wanted)


def _build_gpt2(options: dict[str, Any], content: dict[str, Any], path: Path) -> GPT2Config:
    _check_heads(options, TABLES["gpt2"], path, even=False)
    return GPT2Config(**{"d_ff": 4 * options["d_model"], **options}, bias=True)


def _extra_gpt2(config: GPT2Config) -> dict[str, Any]:
    return {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def _build_llama(options: dict[str, Any], content: dict[str, Any], path: Path) -> Llama2Config:
    _check_heads(options, TABLES["llama2"], path, even=True)
    width, heads = options["d_model"], options["num_heads"]
    if content.get("head_dim") not in (None, width // heads):
        wanted = f"{width // heads}, hidden_size / heads"
        raise _wrong(path, "head_dim", content["head_dim"], wanted)
    kv_heads = options.get("num_kv_heads", heads)
    if heads % kv_heads:
        wanted = f"a divisor of num_attention_heads={heads}"
        raise _wrong(path, "num_key_value_heads", kv_heads, wanted)
    options["num_kv_heads"] = 0 if kv_heads == heads else kv_heads
    return Llama2Config(**options, rope_theta=_rope_theta(content, path))


def _extra_llama(config: Llama2Config) -> dict[str, Any]:
    return {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_model // config.num_heads,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }


def _rope_theta(content: dict[str, Any], path: Path) -> float:
    """Read the base of the rotary wavelengths. Since transformers 5 it is in a section."""
    theta = content.get("rope_theta", _ROPE_THETA)
    for name in ("rope_scaling", "rope_parameters"):
        section = content.get(name)
        if section is None:
            continue
        plain = isinstance(section, dict) and (
            section.get("rope_type", section.get("type", "default")) == "default"
            and "factor" not in section  # scaled positions without a type
            and section.get("partial_rotary_factor", 1.0) in (1.0, None)
            and not any(
                isinstance(value, dict) for value in section.values()
            )  # one section for each type of layer
        )
        if not plain:
            raise _wrong(path, name, section, "absent or of rope_type default")
        theta = section.get("rope_theta", theta)
    if not _is_positive(theta):
        raise _wrong(path, "rope_theta", theta, "a finite number above 0")
    return float(theta)


def _checks(ours: str) -> tuple[Any, str]:
    if ours == "tie_embeddings":
        return _is_bool, "true or false"
    if ours == "norm_eps":
        return _is_positive, "a finite number above 0"
    return _is_count, "a whole number above 0 and below 2^31"


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= sys.float_info.max


def _wrong(path: Path, name: str, value: Any, wanted: str) -> InputError:
    stated = f"{name} is missing" if value is _MISSING else f"{name}={shorten(repr(value), 200)}"
    return InputError(f"{path}: {stated}; it must be {wanted}")


TABLES = {  # by `ModelSpec.name`
    "gpt2": ConfigTable(
        architecture="GPT2LMHeadModel",
        model_type="gpt2",
        fields=_GPT2,
        fixed=_GPT2_FIXED,
        make_extra=_extra_gpt2,
        build=_build_gpt2,
    ),
    "llama2": ConfigTable(
        architecture="LlamaForCausalLM",
        model_type="llama",
        fields=_LLAMA,
        fixed=_LLAMA_FIXED,
        make_extra=_extra_llama,
        build=_build_llama,
    ),
}
