# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models with random weights, made without compiling a program for each parameter."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def make_abstract(cls, config, *args):
    """A model whose parameters have shapes and dtypes, but no values."""
    return nnx.eval_shape(lambda: cls(config, *args, rngs=nnx.Rngs(0)))


def make_random(cls, config, *args, seed=0):
    """A model with normal weights of standard deviation 0.1; scales of norms are near 1."""
    graph, shapes = nnx.split(make_abstract(cls, config, *args))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(mean + 0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, shapes))
