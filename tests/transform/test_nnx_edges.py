# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` on NNX modules that do unusual things."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from pqt_jax import BitParam, Rule, pqt_transform

X = np.ones((4, 16), np.float32)
KERNELS = [Rule(".*kernel")]


def make_key():
    return jax.random.key(5)


def layer():
    return nnx.Linear(16, 16, rngs=nnx.Rngs(0))


def paths(model):
    return [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Not(BitParam)))]


class Stateful(nnx.Module):
    """Has variables that are written in training only."""

    def __init__(self):
        self.layer, rngs = layer(), nnx.Rngs(0)
        self.dropout, self.norm = nnx.Dropout(0.1, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)

    def __call__(self, x, train=False):
        x = self.dropout(self.layer(x), deterministic=not train)
        return self.norm(x, use_running_average=not train)


def test_a_model_from_outside_runs_inside_transforms():
    model = pqt_transform(Stateful(), KERNELS)
    want = model(X, pqt_key=make_key())

    def call(x, key):
        return model(x, pqt_key=key)

    for function in (jax.jit(call), jax.checkpoint(call)):
        np.testing.assert_allclose(function(X, make_key()), want, rtol=1e-6)
    keys = jax.random.split(make_key(), 3)
    assert jax.vmap(lambda key: model(X, pqt_key=key))(keys).shape == (3, 4, 16)
    assert jax.grad(lambda x: call(x, make_key()).sum())(X).shape == X.shape


def test_what_a_sampled_call_writes_is_carried_over():
    model = pqt_transform(Stateful(), KERNELS)
    before = np.asarray(model.norm.mean[...])
    model(X, pqt_key=make_key())
    np.testing.assert_array_equal(model.norm.mean[...], before)
    model(X, train=True, pqt_key=make_key())
    first = np.asarray(model.norm.mean[...])
    nnx.jit(lambda model: model(X, train=True, pqt_key=make_key()))(model)
    assert (before != first).any() and (first != model.norm.mean[...]).any()


class Counting(nnx.Module):
    def __init__(self):
        self.layer, self.count = layer(), nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        self.count[...] = self.count[...] + 1
        return self.layer(x)


class Overwriting(nnx.Module):
    def __init__(self):
        self.layer = layer()

    def __call__(self, x):
        self.layer.kernel[...] = self.layer.kernel[...] * 2
        return self.layer(x)


def test_a_parameter_may_be_written_if_it_is_not_sampled():
    model = pqt_transform(Counting(), KERNELS)
    model(X), model(X, pqt_key=make_key())
    assert model.count[...] == 2
    model = pqt_transform(Overwriting(), KERNELS)
    with pytest.raises(ValueError, match="layer/kernel: the call writes to a parameter that is s"):
        model(X, pqt_key=make_key())
    np.testing.assert_array_equal(model.layer.kernel[...], layer().kernel[...])
    nnx.jit(lambda model: model(X, pqt_key=make_key()))(
        model
    )  # under a trace, the write is undone without an error
    np.testing.assert_array_equal(model.layer.kernel[...], layer().kernel[...])


class Replacing(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([layer()])

    def __call__(self, x):
        self.layers[0].kernel = nnx.Param(self.layers[0].kernel[...] * 2)
        return self.layers[0](x)


class Deleting(Replacing):
    def __call__(self, x):
        del self.layers[0].kernel
        return x


@pytest.mark.parametrize("cls", [Replacing, Deleting])
def test_a_parameter_that_a_call_replaces_is_put_back(cls):
    model = pqt_transform(cls(), KERNELS)
    kernel = model.layers[0].kernel
    with pytest.raises(ValueError, match="layers/0/kernel: the call writes to a parameter that is"):
        model(X, pqt_key=make_key())
    assert model.layers[0].kernel is kernel
    np.testing.assert_array_equal(kernel[...], layer().kernel[...])


class Calling(nnx.Module):
    def __init__(self):
        self.layer = layer()

    def __call__(self, x, other=None):
        return self.layer(x) if other is None else other(x, pqt_key=make_key())


def test_a_sampled_call_within_another_on_the_same_weights_is_refused():
    outer, inner = (pqt_transform(Calling(), KERNELS) for _ in range(2))
    want = inner(X, pqt_key=make_key())
    np.testing.assert_array_equal(
        outer(X, inner, pqt_key=make_key()), want
    )  # it has weights of its own
    inner.layer.kernel = outer.layer.kernel
    with pytest.raises(ValueError, match="layer/kernel holds sampled weights already"):
        outer(X, inner, pqt_key=make_key())
    np.testing.assert_array_equal(inner(X, pqt_key=make_key()), want)  # the weights are restored


class Making(nnx.Module):
    """Creates and sets attributes in its call."""

    def __init__(self):
        self.layer, self.norm, self.calls = layer(), nnx.data(None), 0
        self.cache = nnx.data(None)

    def __call__(self, x, fail=False):
        self.calls += 1
        if self.norm is None:
            self.norm = nnx.LayerNorm(16, rngs=nnx.Rngs(0))
        x = self.norm(self.layer(x))
        self.cache = nnx.Cache(x)
        self.layer.last = nnx.Intermediate(x)
        if fail:
            raise RuntimeError("fails")
        return x


@pytest.mark.parametrize(
    "call", [lambda m: m(X, pqt_key=make_key()), nnx.jit(lambda m: m(X, pqt_key=make_key()))]
)
def test_what_a_sampled_call_makes_or_sets_is_kept(call):
    model, bare = pqt_transform(Making(), KERNELS), Making()
    out = call(model)
    np.testing.assert_array_equal(model.cache[...], out)
    np.testing.assert_array_equal(model.layer.last[...], out)
    bare(X)
    assert paths(model) == paths(bare) and model.calls == 1
    assert (model(X) != model(X, pqt_key=make_key())).any() and model.calls == 3


def test_after_a_sampled_call_that_fails_the_weights_are_back():
    model = pqt_transform(Making(), KERNELS)
    weights = model.layer.kernel.get_raw_value()
    with pytest.raises(RuntimeError, match="fails"):
        model(X, fail=True, pqt_key=make_key())
    assert model.layer.kernel.get_raw_value() is weights
    with pytest.raises(RuntimeError, match="fails"):
        nnx.jit(lambda model: model(X, fail=True, pqt_key=make_key()))(model)
    assert model.layer.kernel.get_raw_value() is weights


class Transforming(nnx.Module):
    """Transforms inside the call return parameters as new arrays."""

    def __init__(self):
        self.layer, self.dropout = layer(), nnx.Dropout(0.1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = nnx.remat(lambda layer, x: layer(x))(self.layer, x)
        return nnx.jit(lambda model, x: model.dropout(model.layer(x)))(self, x)


@pytest.mark.slow
def test_a_call_may_hold_transforms():
    model = pqt_transform(Transforming(), KERNELS)
    weights = np.asarray(model.layer.kernel[...])

    def loss(model):
        return model(X, pqt_key=make_key()).sum()

    for function in (loss, nnx.jit(loss), nnx.grad(loss), nnx.jit(nnx.grad(loss))):
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(function(model)))
    np.testing.assert_array_equal(model.layer.kernel[...], weights)
    assert model.dropout.rngs.count[...] == 4


class NoPytree(nnx.Module, pytree=False):
    def __init__(self):
        self.layers = [layer()]

    def __call__(self, x):
        return self.layers[0](x)


class Iterating(nnx.Module):
    def __init__(self):
        self.items, self.other = layer(), layer()

    def __call__(self, x):
        for _, child in nnx.iter_children(self):
            x = child(x)
        return x


@pytest.mark.parametrize("cls", [NoPytree, Iterating])
def test_what_a_model_sees_of_itself_is_unchanged(cls):
    bare, model = cls(), pqt_transform(cls(), KERNELS)
    assert paths(bare) == paths(model) and len(paths(bare)) in (2, 4)
    np.testing.assert_array_equal(bare(X), model(X))
    assert (model(X, pqt_key=make_key()) != bare(X)).any()
    assert repr(model)


def test_a_wrapped_module_can_be_pickled():
    model = pqt_transform(Counting(), KERNELS)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    np.testing.assert_array_equal(again(X, pqt_key=make_key()), model(X, pqt_key=make_key()))
    graph, _ = nnx.split(model)
    assert pickle.loads(pickle.dumps(graph)) == graph


class Callless(nnx.Module):
    def __init__(self):
        self.layer = layer()

    def encode(self, x):
        return self.layer(x)

    @staticmethod
    def alone(x):
        return x


class Handing(Callless):
    def __call__(self, x, *, pqt_key=None):
        return self.layer(x)


def test_methods_and_signatures():
    model = pqt_transform(Callless(), KERNELS)
    assert (model(X, pqt_method="encode", pqt_key=make_key()) != model.encode(X)).any()
    with pytest.raises(TypeError, match="Callless has no __call__; name one of its methods"):
        model(X)
    with pytest.raises(AttributeError, match="pqt_method='decode': Callless has no such method"):
        model(X, pqt_method="decode")
    with pytest.raises(TypeError, match="pqt_method='alone' takes no module, so it samples nothin"):
        model(X, pqt_method="alone", pqt_key=make_key())
    signature = inspect.signature(pqt_transform(Stateful(), KERNELS).__call__)
    assert list(signature.parameters) == ["x", "train", "pqt_key", "pqt_lead", "pqt_method"]


class Chain(nnx.List):
    def __call__(self, x):
        return self[0](x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: pqt_transform(layer(), [Rule("kernel", noise="none")]), "wrapped already"),
        (lambda: nnx.Sequential(pqt_transform(layer(), KERNELS)), "a part of it is"),
        (lambda: Chain([layer()]), "Chain is a container"),
        (Handing, "Handing takes pqt_key itself; wrap the parts that it hands the key to"),
        (lambda: nnx.with_vars(layer(), ref=True), "'bias' holds a reference and no array"),
        (lambda: nnx.with_vars(layer(), hijax=True), "'bias' holds a reference and no array"),
        (lambda: nnx.bridge.ToNNX(nn.Dense(4), rngs=nnx.Rngs(0)), "ToNNX holds a Linen module"),
        (lambda: nnx.Linear, "is of type"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(model, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pqt_transform(model(), KERNELS)


class PlainArray(nnx.Module):
    def __init__(self):
        self.layer, self.scale = layer(), jnp.ones(16)

    def __call__(self, x):
        return self.layer(x * self.scale)


def test_a_model_may_hold_plain_arrays():
    model = pqt_transform(PlainArray(), KERNELS)
    assert (model(X, pqt_key=make_key()) != model(X)).any()


class Boxed(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(nn.Partitioned(layer().kernel[...], names=(None, "model")))

    def __call__(self, x):
        return x @ self.kernel.get_value().value


def test_a_variable_may_hold_a_box():
    model = pqt_transform(Boxed(), [Rule("kernel")])
    assert (model(X, pqt_key=make_key()) != model(X)).any()
    np.testing.assert_array_equal(model(X), Boxed()(X))
