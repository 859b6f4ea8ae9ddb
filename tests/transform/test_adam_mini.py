# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Adam-mini against the algorithm of its paper in plain loops, and the blocks of both models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pqt_jax.models import GPT2, Llama2
from pqt_jax.transform import adam_mini
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny

B1, B2, EPS, RATE, DECAY = 0.9, 0.95, 1e-8, 0.01, 0.1


def reference(w, gradients, blocks):
    """Algorithm 1 of the paper on one parameter, in float64; a block is a list of flat indices."""
    w = w.astype(np.float64).ravel()
    for block in blocks:
        m, v = np.zeros(len(block)), 0.0
        for t, g in enumerate(gradients, 1):
            g = g.astype(np.float64).ravel()[block]
            m = (1 - B1) * g + B1 * m
            v = (1 - B2) * np.mean(g * g) + B2 * v
            m_hat, v_hat = m / (1 - B1**t), v / (1 - B2**t)
            w[block] = w[block] - RATE * DECAY * w[block]
            w[block] = w[block] - RATE * m_hat / (np.sqrt(v_hat) + EPS)
    return w


def flat(shape, *choices):
    """Flat indices of the elements that one slice per axis selects."""
    return np.arange(np.prod(shape)).reshape(shape)[choices].ravel()


def by_name(path, shape):
    """The blocks of a parameter. In the tiny models 16 columns are one head."""
    whole_axis = slice(None)
    *_, layer, name = path.split("/")
    if name == "bias":
        return [[i] for i in range(np.prod(shape))]
    if name == "scale":
        return np.arange(np.prod(shape)).reshape(-1, shape[-1])  # one per layer
    if name == "embedding":
        return [flat(shape, token) for token in range(shape[0])]
    if path == "head/kernel":
        return [flat(shape, whole_axis, token) for token in range(shape[1])]
    width = 16 if layer in ("q", "k") else 1
    return [
        flat(shape, i, whole_axis, slice(j, j + width))
        for i in range(shape[0])
        for j in range(0, shape[2], width)
    ]


@pytest.mark.parametrize(
    "cls, config",
    [(GPT2, tiny.GPT2), pytest.param(Llama2, tiny.LLAMA2, marks=pytest.mark.slow)],
)
def test_it_is_the_algorithm_of_the_paper_on_both_models(cls, config):
    params = nnx.to_pure_dict(nnx.state(cls(config, rngs=nnx.Rngs(0)), nnx.Param))
    transform = optax.chain(
        adam_mini.scale_by_adam_mini(adam_mini.model_blocks(16), B1, B2, EPS),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(RATE),
    )
    rng, leaves = np.random.default_rng(0), paths_and_leaves(params)
    history = {path: [] for path in leaves}
    state, found, step = transform.init(params), params, jax.jit(transform.update)
    for _ in range(3):
        gradients = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(0, rng.uniform(0.1, 3, x.shape)), x.dtype), params
        )
        for path, g in paths_and_leaves(gradients).items():
            history[path].append(np.asarray(g))
        updates, state = step(gradients, state, found)
        found = optax.apply_updates(found, updates)
    for path, leaf in paths_and_leaves(found).items():
        blocks = by_name(path, leaf.shape)
        assert sorted(np.concatenate(blocks).tolist()) == list(range(leaf.size)), path
        expected = reference(np.asarray(leaves[path]), history[path], blocks)
        np.testing.assert_allclose(leaf.ravel(), expected, rtol=2e-5, atol=1e-6, err_msg=path)
        assert paths_and_leaves(state[0].nu)[path].size == len(blocks)


def test_blocks_of_one_are_adam():
    params = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(3)}

    def ones(path, shape):
        return (1,) * len(shape)

    ours, adam = adam_mini.scale_by_adam_mini(ones), optax.scale_by_adam(0.9, 0.95, 1e-8)
    a, b = ours.init(params), adam.init(params)
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
        (x, a), (y, b) = ours.update(gradients, a), adam.update(gradients, b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), x, y)


def test_second_moments_take_little_memory():
    params = nnx.to_pure_dict(nnx.state(Llama2(tiny.LLAMA2, rngs=nnx.Rngs(0)), nnx.Param))
    nu = adam_mini.scale_by_adam_mini(adam_mini.model_blocks(16)).init(params).nu

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert size(nu) < 0.04 * size(params)  # about 1/32, where 32 is the width


def test_blocks_that_do_not_divide_are_named():
    transform = adam_mini.scale_by_adam_mini(adam_mini.model_blocks(5))
    with pytest.raises(ValueError, match=r"h/q/kernel is \(2, 8, 8\), which blocks of \(1, 8, 5\)"):
        transform.init({"h": {"q": {"kernel": jnp.ones((2, 8, 8))}}})
