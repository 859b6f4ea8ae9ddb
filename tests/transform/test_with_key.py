# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`with_key` samples what calls the model itself; `require_key` refuses what forgot the key."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import Rule, pqt_transform, with_key

pytestmark = pytest.mark.jax_version

RULES = [Rule(".*kernel")]
X = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)

    def encode(self, x):
        return jnp.tanh(self.first(x))

    @nnx.jit
    def compiled(self, x):
        return self(x)

    @property
    def width(self):
        return 64

    def __call__(self, x):
        return self.second(self.encode(x))


def make_key():
    return jax.random.key(5)


def make_model(**options):
    return pqt_transform(Model(nnx.Rngs(0)), RULES, **options)


def forward(model, x):
    return model.second(model.encode(x)) + model(x)


CALLS = {
    "free function": forward,
    "method": lambda model, x: model.encode(x),
    "layer": lambda model, x: model.first(x),
    "compiled method": lambda model, x: model.compiled(x),
    "compiled function": nnx.jit(forward),
    "rematerialized function": nnx.remat(forward),
}


@pytest.mark.parametrize("name", CALLS)
def test_whatever_runs_inside_runs_on_the_samples_of_the_key(name):
    model, call = make_model(), CALLS[name]
    bare = call(model, X)
    with with_key(model, make_key()) as same:
        assert same is model
        sampled = call(model, X)
    with with_key(model, make_key()):
        # The variables hold ŵ: a bare model with these weights computes the same.
        weights = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    want = Model(nnx.Rngs(1))
    del weights["pqt_bits"]
    nnx.update(want, weights)
    np.testing.assert_array_equal(sampled, call(want, X))
    assert (sampled != bare).any()
    np.testing.assert_array_equal(call(model, X), bare)


def test_gradients_reach_weights_and_bits():
    @nnx.jit
    def gradient(model, key):
        def loss(model):
            with with_key(model, key):
                return jnp.sum(forward(model, X) ** 2)

        return nnx.grad(loss)(model)

    for leaf in jax.tree.leaves(gradient(make_model(), make_key())):
        assert np.isfinite(leaf).all() and (leaf != 0).any()


def test_errors_leave_the_weights_as_they_were():
    model = make_model()
    before = model(X)
    with pytest.raises(ZeroDivisionError), with_key(model, make_key()):
        _ = 1 / 0
    with pytest.raises(ValueError, match="one sampled call runs inside another"):
        with with_key(model, make_key()):
            model(X, pqt_key=make_key())
    np.testing.assert_array_equal(model(X), before)
    with pytest.raises(TypeError, match="Model is not wrapped; wrap it with pqt_transform"):
        with with_key(Model(nnx.Rngs(0)), make_key()):
            pass


@pytest.mark.parametrize("call", [lambda m: m(X), lambda m: m.encode(X), lambda m: m.compiled(X)])
def test_a_model_that_requires_a_key_runs_bare_in_evaluation_only(call):
    model = make_model(require_key=True)
    with pytest.raises(ValueError, match="Model was wrapped with require_key=True and is called w"):
        call(model)
    with with_key(model, make_key()):
        call(model)
    model.eval()
    np.testing.assert_array_equal(call(model), call(make_model()))
    model.train()
    with pytest.raises(ValueError, match="require_key=True"):
        call(model)
    assert model.width == 64


def test_a_model_that_requires_a_key_samples_by_it():
    model, free = make_model(require_key=True), make_model()
    np.testing.assert_array_equal(model(X, pqt_key=make_key()), free(X, pqt_key=make_key()))
    sampled = model(X, pqt_key=make_key(), pqt_method="encode")
    np.testing.assert_array_equal(sampled, free(X, pqt_key=make_key(), pqt_method="encode"))
    copy = pickle.loads(pickle.dumps(type(model)))
    assert copy is type(model)
    parent = nnx.Sequential(make_model(require_key=True))
    with pytest.raises(ValueError, match="require_key=True"):
        parent(X)
    parent.eval()
    parent(X)
