# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""∂L/∂b_i from ∂L/∂w: what differentiating the sampled weights gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.transform.bit_gradients import bit_gradients
from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.perturb import perturb_tree
from pqt_jax.transform.rules import Rule

SHAPES = {"a": {"kernel": (2, 64, 96)}, "b": {"kernel": (33, 70)}, "norm": (64,)}


def key():
    return jax.random.key(3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise": "uniform"},
        {"dtype": "float4_e2m1fn"},
        {"block": (1, 32)},
        {"block": (2**15, 2**15)},
    ],
    ids=str,
)
def test_they_are_those_of_the_sampled_weights(options):
    rules = [Rule(".*kernel", **options)]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    bits = param_transform(rules).init(params)
    bits = jax.tree.map(lambda b: b * jnp.asarray(rng.uniform(0, 1, b.shape), jnp.float32), bits)

    def loss(params, bits):
        w_hat = perturb_tree(params, bits, key(), rules)
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in jax.tree.leaves(w_hat))

    of_weights, want = jax.jit(jax.grad(loss, (0, 1)))(params, bits)
    got = jax.jit(lambda *args: bit_gradients(*args[:2], key(), rules, args[2]))(
        params, bits, of_weights
    )
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
        assert np.abs(y).max() > 1e-3
