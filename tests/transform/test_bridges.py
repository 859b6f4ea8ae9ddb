# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Wrapped Linen models inside NNX, and NNX models inside Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from pqt_jax import (
    BitParam,
    Rule,
    optim,
    param_transform,
    pqt_transform,
    quantize_model,
    summary,
)

pytestmark = pytest.mark.jax_version

RULES = [Rule(".*kernel")]
X = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)


class Encoder(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(64)(jnp.tanh(linen.Dense(64)(x)))

    def encode(self, x):
        return self(x) + 1


def make_key():
    return jax.random.key(5)


def to_nnx():
    linen_model = pqt_transform(Encoder(), RULES)
    return nnx.bridge.ToNNX(linen_model, rngs=nnx.Rngs(0)).lazy_init(X)


def test_bits_of_a_linen_model_inside_nnx_are_bit_params():
    model = to_nnx()
    assert {type(v) for _, v in nnx.to_flat_state(nnx.state(model.bits))} == {BitParam}
    bits = jax.tree.map(lambda b_i: b_i[...], nnx.to_pure_dict(nnx.state(model, BitParam)))["bits"]
    params = nnx.to_pure_dict(nnx.state(model, nnx.All(nnx.Param, nnx.Not(BitParam))))
    key = make_key()
    for method in (None, "encode"):
        sampled = model(X, rngs=nnx.Rngs(pqt=key), method=method)
        stream = nnx.Rngs(pqt=key).pqt()  # the key that NNX draws from the stream
        w_hat = param_transform(RULES).sample(params, bits, stream)
        bare = Encoder().apply({"params": w_hat}, X, method=method)
        np.testing.assert_array_equal(sampled, bare)
        assert (model(X, method=method) != sampled).any()


class Holder(nnx.Module):
    def __init__(self, part):
        self.part = part


def test_a_linen_model_inside_nnx_is_summed_up_and_rounded():
    model = to_nnx()
    table = summary(model)
    assert "Dense_0/kernel  64x64       4      6.00  BF16 + gauss" in table
    assert summary(Holder(model)) == f"part\n{table}"
    for rounded in (quantize_model(model), quantize_model(Holder(model)).part):
        assert type(rounded.to_nnx__module) is Encoder and not nnx.state(rounded, BitParam)
        params = nnx.to_pure_dict(nnx.state(model, nnx.All(nnx.Param, nnx.Not(BitParam))))
        transform = param_transform(RULES)
        want = transform.quantize(params, transform.init(params))
        np.testing.assert_array_equal(rounded(X), Encoder().apply({"params": want}, X))
    assert nnx.state(model, BitParam)  # the model itself is as it was
    empty = nnx.bridge.ToNNX(pqt_transform(Encoder(), RULES), rngs=nnx.Rngs(0))
    bare = nnx.bridge.ToNNX(Encoder(), rngs=nnx.Rngs(0)).lazy_init(X)
    for function in (summary, quantize_model):
        with pytest.raises(ValueError, match="has no variables yet; call its lazy_init"):
            function(empty)
        with pytest.raises(TypeError, match="nothing in ToNNX is wrapped"):
            function(bare)


def test_an_optimizer_of_nnx_moves_the_bits_of_a_linen_model_apart():
    model = to_nnx()
    optimizer = nnx.Optimizer(
        model, optim.adamw(1e-3, weight_decay=0.0, bits_learning_rate=0.5), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer, key):
        def loss(model):
            return jnp.sum(model(X, rngs=nnx.Rngs(pqt=key)) ** 2)

        optimizer.update(model, nnx.grad(loss)(model))

    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    step(model, optimizer, make_key())
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), before, after)
    assert moved["Dense_0"]["kernel"] < 2e-3
    assert moved["bits"]["Dense_0"]["kernel"] > 0.4  # the first step of Adam, and decay
    with pytest.raises(ValueError, match="2 bit-widths have no optimizer of their own"):
        nnx.Optimizer(model, optim.adamw(1e-3), wrt=nnx.Param)


def test_a_dict_of_keys_which_the_bridge_ignores_is_refused_where_a_key_is_required():
    linen_model = pqt_transform(Encoder(), RULES, require_key=True)
    model = nnx.bridge.ToNNX(linen_model, rngs=nnx.Rngs(0)).lazy_init(X)
    with pytest.raises(ValueError, match="require_key=True and is called without a key"):
        model(X, rngs={"pqt": make_key()})
    model(X, rngs=nnx.Rngs(pqt=make_key()))


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def test_an_nnx_model_inside_linen_is_wrapped_as_a_linen_model():
    bare = nnx.bridge.to_linen(Layers)
    model = pqt_transform(bare, RULES)
    variables = model.init(make_key(), X)
    bits = variables["pqt"]["bits"]
    assert bits["first"]["kernel"].shape == (2, 2)
    w_hat = param_transform(RULES).sample(variables["params"], bits, make_key())
    rest = {k: v for k, v in variables.items() if k != "pqt"}
    np.testing.assert_array_equal(
        model.apply(variables, X, rngs={"pqt": make_key()}),
        bare.apply({**rest, "params": w_hat}, X),
    )
    np.testing.assert_array_equal(model.apply(variables, X), bare.apply(rest, X))


def test_optax_alone_takes_bits_for_weights_and_the_labels_part_them():
    model = pqt_transform(Layers(nnx.Rngs(0)), RULES)
    params = nnx.state(model, nnx.Param)
    labels = optim.labels(params)
    tx = optax.multi_transform({"weights": optax.sgd(0.0), "bits": optax.sgd(1.0)}, labels)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert float(jnp.max(jnp.abs(updates["first"]["kernel"][...]))) == 0
    assert float(updates["pqt_bits"]["first"]["kernel"][...][0, 0]) == -1
