# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models that tests export: of each kind, every parameter random."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.models import build_model
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny

CONFIGS = {
    "gpt2": dataclasses.replace(tiny.GPT2, bias=True),
    "gpt2 without biases": tiny.GPT2,
    "gpt2 untied": dataclasses.replace(tiny.GPT2, bias=True, tie_embeddings=False, norm_eps=1e-3),
    "llama": tiny.LLAMA2,
    "llama of few kv heads": dataclasses.replace(
        tiny.LLAMA2, num_heads=4, num_kv_heads=2, norm_eps=1e-3, rope_theta=500.0
    ),
    "llama tied": dataclasses.replace(tiny.LLAMA2, tie_embeddings=True),
}
each = pytest.mark.parametrize("name", CONFIGS)


def make(config, rules=()):
    """A model whose every parameter is random, biases and scales included."""
    config = dataclasses.replace(config, max_length=64)
    model = build_model(config, rules, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)

    def add_noise(x):
        return x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype)

    nnx.update(model, jax.tree.map(add_noise, nnx.state(model, nnx.Param)))
    return config, model


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in paths_and_leaves(params).items()}
