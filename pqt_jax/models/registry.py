# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The models that can be trained: one `ModelSpec` each, by the name in `config.model.name`.

`interchange` has the tensor names and config fields of Hugging Face, under the same names.
"""

import dataclasses
from typing import Any, Union

from flax import nnx

from pqt_jax.models.decoder import LanguageModel
from pqt_jax.models.gpt2 import GPT2, GPT2Config
from pqt_jax.models.llama2 import Llama2, Llama2Config

ModelConfig = Union[Llama2Config, GPT2Config]  # noqa: UP007


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What other packages need to know about a model.

    Attributes:
      config_class: the model's own configuration; its class attribute `name` is the model's name.
      model_class: built by `model_class(config, rules, rngs=rngs)`.
      mlp_kernels: number of [d_model, d_ff] kernels in a layer, for the count of FLOPs.
      rotary: whether positions are rotary. Heads then have even width, and no parameter depends on
        `max_length`.
    """

    config_class: type
    model_class: type[LanguageModel]
    mlp_kernels: int
    rotary: bool

    @property
    def name(self) -> str:
        """The name in `config.model.name`."""
        return self.config_class.name

    @property
    def shape_fields(self) -> list[str]:
        """The fields of the configuration that have no default."""
        fields = dataclasses.fields(self.config_class)
        return [field.name for field in fields if field.default is dataclasses.MISSING]


_SPECS = (
    ModelSpec(config_class=Llama2Config, model_class=Llama2, mlp_kernels=3, rotary=True),
    ModelSpec(config_class=GPT2Config, model_class=GPT2, mlp_kernels=2, rotary=False),
)
MODELS = {spec.name: spec for spec in _SPECS}


def get_spec(config: ModelConfig) -> ModelSpec:
    """The `ModelSpec` of a model's configuration.

    Example:
      >>> get_spec(GPT2Config(256, 64, num_layers=2, num_heads=4, d_ff=256)).name
      'gpt2'
    """
    return MODELS[config.name]


def build_model(config: ModelConfig, rules: Any = (), *, rngs: nnx.Rngs) -> LanguageModel:
    """Build the model that a configuration describes.

    Args:
      config: shape and arithmetic.
      rules: which parameters are sampled; without rules the model is a bare one.
      rngs: randomness of the initial values.
    """
    make: Any = get_spec(config).model_class
    return make(config, rules, rngs=rngs)


def model_config(config: Any) -> ModelConfig:
    """Return the model's own configuration of a run.

    Args:
      config: of a run. `config.model` is the model's configuration, or a mapping of its fields with
        "name" among them, as a config file sets it.
    """
    if dataclasses.is_dataclass(config.model):
        return config.model  # pyright: ignore[reportReturnType]
    options: dict[str, Any] = dict(config.model)
    return MODELS[options.pop("name")].config_class(**options)
