# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The config.json of Hugging Face ↔ our model configurations.

Only the fields for shape and arithmetic are translated. A field that would make a different model
of the same weights (another activation, a sliding window, …) is refused by its name.
"""

from pathlib import Path
from typing import Any

from pqt_jax.interchange import huggingface_llama
from pqt_jax.interchange.huggingface_fields import (
    MISSING,
    ConfigTable,
    check_heads,
    check_value,
    wrong,
)
from pqt_jax.models import GPT2Config, ModelConfig

_GPT2: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", MISSING),
    "d_model": ("n_embd", MISSING),
    "num_layers": ("n_layer", MISSING),
    "num_heads": ("n_head", MISSING),
    "d_ff": ("n_inner", None),
    "max_length": ("n_positions", 1024),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tie_embeddings": ("tie_word_embeddings", True),
}
_GPT2_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}


def to_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model.

    Example:
      >>> from pqt_jax.models import Llama2Config
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
    kind = "gpt2" if isinstance(config, GPT2Config) else huggingface_llama.model_type(config)
    table = TABLES[kind]
    content: dict[str, Any] = {
        "architectures": [table.architecture],
        "model_type": kind,
        **{theirs: getattr(config, ours) for ours, (theirs, _) in table.fields.items()},
        **{name: values[0] for name, values in table.fixed.items()},
        "torch_dtype": dtype,
        # The defaults would be tokens of the original vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    content.pop("partial_rotary_factor", None)  # what is computed without it
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
    kind, (*kinds, last) = content.get("model_type", MISSING), TABLES
    if kind not in (*kinds, last):
        raise wrong(path, "model_type", kind, f"{', '.join(kinds)} or {last}")
    table = TABLES[kind]
    content = {**table.defaults, **content}
    for name, values in table.fixed.items():
        if content.get(name, values[0]) not in values:
            shown = " or ".join(str(value) for value in values if value is not None)
            none = "null" if name in table.defaults else "absent"
            raise wrong(path, name, content[name], shown or none)
    options: dict[str, Any] = {"dtype": "float32"}
    for ours, (theirs, default) in table.fields.items():
        value = content.get(theirs, default)
        if value is None and default is None:
            continue
        check_value(path, ours, theirs, value)
        options[ours] = value
    options["norm_eps"] = float(options["norm_eps"])
    return table.build(options, content, path)


def _build_gpt2(options: dict[str, Any], content: dict[str, Any], path: Path) -> GPT2Config:
    del content
    check_heads(options, TABLES["gpt2"], path, even=False)
    return GPT2Config(**{"d_ff": 4 * options["d_model"], **options}, bias=True)


def _extra_gpt2(_: GPT2Config) -> dict[str, Any]:
    return {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


TABLES = {  # by `model_type`
    "gpt2": ConfigTable(
        architecture="GPT2LMHeadModel",
        fields=_GPT2,
        fixed=_GPT2_FIXED,
        make_extra=_extra_gpt2,
        build=_build_gpt2,
    ),
    **huggingface_llama.TABLES,
}
