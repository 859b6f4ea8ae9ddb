# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The two groups of the optimizer, against plain optax on each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pqt_jax import Rule, pqt_transform
from pqt_jax.transform import optim


def trees(layout):
    """Weights and bits in the layout of `param_transform`, of Linen or of NNX."""
    weights = {
        "h": {"kernel": jnp.ones((2, 3, 3)), "scale": jnp.ones((2, 3))},
        "head": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)},
    }
    bits = {"h": {"kernel": jnp.ones((2, 1, 1))}}
    if layout == "transform":
        return {"params": weights, "bits": bits}
    if layout == "linen":
        return {"params": weights, "pqt": {"bits": bits}}
    return {**weights, "pqt_bits": bits}


@pytest.mark.parametrize("layout", ["transform", "linen", "nnx"])
def test_weights_and_bits_move_as_two_optimizers(layout):
    params = trees(layout)
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    tx = optim.adamw(
        1e-2, weight_decay=0.3, bits_learning_rate=0.1, bits_weight_decay=0.7, clip_norm=None
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)

    def moved(learning_rate, decay):  # the first step of Adam is the sign of the gradient
        return 1 - learning_rate * (1 + decay)

    weights = new.get("params", new)
    np.testing.assert_allclose(weights["h"]["kernel"], moved(1e-2, 0.3), rtol=1e-5)
    np.testing.assert_allclose(weights["head"]["kernel"], moved(1e-2, 0.3), rtol=1e-5)
    np.testing.assert_allclose(weights["h"]["scale"], moved(1e-2, 0.0), rtol=1e-5)
    np.testing.assert_allclose(weights["head"]["bias"], moved(1e-2, 0.0), rtol=1e-5)
    bits = {"transform": lambda: new["bits"], "linen": lambda: new["pqt"]["bits"]}
    bits = bits.get(layout, lambda: new["pqt_bits"])()
    np.testing.assert_allclose(bits["h"]["kernel"], moved(0.1, 0.7), rtol=1e-5)


@pytest.mark.parametrize("layout", ["transform", "linen", "nnx"])
def test_with_one_bit_width_for_each_matrix_its_blocks_follow_their_mean_gradient(layout):
    params = trees(layout)
    bits = {"transform": ["bits"], "linen": ["pqt", "bits"], "nnx": ["pqt_bits"]}[layout]
    grads = jax.tree.map(jnp.zeros_like, params)
    of_blocks = jnp.array([[[1.0, 5.0, -3.0]], [[-1.0, 0.0, -2.0]]])  # two matrices, three blocks

    def bits_of(tree):
        for name in bits:
            tree = tree[name]
        return tree["h"]

    bits_of(params)["kernel"], bits_of(grads)["kernel"] = jnp.ones((2, 1, 3)), of_blocks
    options = {"bits_learning_rate": 0.1, "bits_weight_decay": 0.0, "eps": 1.0}
    tx = optim.adamw(1e-2, **options, bits_granularity="tensor")
    updates, _ = tx.update(grads, tx.init(params), params)
    # The first step of Adam with eps 1 is g / (|g| + 1); the means are 1 and -1.
    expected = np.broadcast_to([[[-0.05]], [[0.05]]], (2, 1, 3))
    np.testing.assert_allclose(bits_of(updates)["kernel"], expected, rtol=1e-6)


def test_another_granularity_is_refused():
    with pytest.raises(ValueError, match="bits_granularity='matrix'; it must be block or tensor"):
        optim.adamw(1e-2, bits_granularity="matrix")


def test_clipping_uses_the_norm_of_the_weights_only():
    params = {"params": jnp.zeros((2, 2)), "bits": jnp.zeros((1, 1))}
    tx = optim.with_bits(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), optax.sgd(1.0)
    )
    grads = {"params": jnp.full((2, 2), 2.0), "bits": jnp.full((1, 1), 100.0)}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["params"], -0.5)
    np.testing.assert_allclose(updates["bits"], -100.0)


def test_decay_takes_the_bits_to_their_target():
    params = {"params": jnp.ones((2, 2)), "bits": jnp.ones((1, 1))}
    tx = optim.adamw(1e-2, bits_learning_rate=0.1, bits_weight_decay=1.0)
    state, grads = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(60):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["bits"], 0.9**60, rtol=1e-4)


def test_bits_left_without_an_optimizer_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"1 bit-widths have no optimizer.*bits/h/kernel.*bits_le"):
        optim.adamw(1e-2).init(trees("transform"))
    optim.adamw(1e-2).init(trees("transform")["params"])  # without bits, none is needed


def test_bits_without_their_weights_are_an_error_that_says_what_to_do():
    bits = trees("transform")["bits"]
    for collection in ({"bits": bits}, {"h": {"bits": bits}, "head": {"bits": bits}}):
        with pytest.raises(ValueError, match='every leaf lies under "bits".*with their weights'):
            optim.adamw(1e-2, bits_learning_rate=1e-2).init(collection)
    optim.adamw(1e-2).init({"params": {"bits": bits}})  # a module called "bits"
    optim.adamw(1e-2).init({})


@pytest.mark.parametrize("tree", [dict, lambda: trees("linen")["params"]])
def test_a_rate_of_bits_that_are_not_there_is_an_error(tree):
    with pytest.raises(ValueError, match="a transformation of bit-widths .* the tree has none"):
        optim.adamw(1e-2, bits_learning_rate=1e-2).init(tree())


def test_bits_below_a_key_of_their_own_are_known_by_the_paths_of_their_weights():
    ones = jnp.ones((2, 2))
    tree = {"enc": {"bits": {"kernel": ones}, "kernel": ones}, "bits": {"head": ones}}
    assert optim.bit_paths(tree) == {"enc/bits/kernel"}


def test_it_trains_a_wrapped_nnx_module_under_jit():
    model = pqt_transform(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), [Rule("kernel")])
    graphdef, state = nnx.split(model)
    tx = optim.adamw(1e-2, bits_learning_rate=optax.constant_schedule(1e-2))
    x = jax.random.normal(jax.random.key(0), (16, 64))

    @jax.jit
    def step(state, opt_state, key):
        def loss(state):
            return jnp.mean((nnx.merge(graphdef, state)(x, pqt_key=key) - x) ** 2)

        value, grads = jax.value_and_grad(loss)(state)
        updates, opt_state = tx.update(grads, opt_state, state)
        return optax.apply_updates(state, updates), opt_state, value

    opt_state, losses = tx.init(state), []
    for i in range(60):
        state, opt_state, value = step(state, opt_state, jax.random.key(i))
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]
    assert (state["pqt_bits"]["kernel"][...] < 1).all()


def test_weights_that_are_called_bits_are_weights():
    params = {"bits": {"kernel": jnp.ones((2, 2))}, "pqt": {"kernel": jnp.ones((2, 2))}}
    tx = optim.adamw(1e-2, weight_decay=0.1)  # no group of bits is needed
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["bits"]["kernel"], -1e-3, rtol=1e-5)
