# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Language models in Flax NNX: layers stacked and scanned, ŵ made for one layer at a time."""

from pqt_jax.models.gpt2 import GPT2 as GPT2
from pqt_jax.models.gpt2 import GPT2Config as GPT2Config
from pqt_jax.models.llama2 import Llama2 as Llama2
from pqt_jax.models.llama2 import Llama2Config as Llama2Config
from pqt_jax.models.registry import MODELS as MODELS
from pqt_jax.models.registry import ModelConfig as ModelConfig
from pqt_jax.models.registry import ModelSpec as ModelSpec
from pqt_jax.models.registry import build_model as build_model
from pqt_jax.models.registry import get_spec as get_spec
