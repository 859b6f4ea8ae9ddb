# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Every way in which Flax lets a Linen model be called: each samples, and each runs bare.

The right value is always that of the bare model on the ŵ of `param_transform`.
"""

import copy
import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pqt_jax import Rule, param_transform, pqt_transform

pytestmark = pytest.mark.jax_version

RULES = [Rule(".*kernel")]
X = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)


def make_key():
    return jax.random.key(5)


class Compact(nn.Module):
    width: int = 64

    @nn.compact
    def __call__(self, x):
        return nn.Dense(64)(jnp.tanh(nn.Dense(self.width)(x)))

    def init_cache(self, batch):
        return jnp.zeros((batch, self.width))

    @nn.nowrap
    def twice_the_width(self):
        return self.width * 2


class SetUp(nn.Module):
    """An encoder and a decoder, called in every way that a user's function might."""

    width: int = 64

    def setup(self):
        self.encoder = nn.Dense(self.width)
        self.decoder = Compact()
        self.layers = [nn.Dense(64), nn.Dense(64)]
        self.scale = self.param("scale", nn.initializers.ones, (64,))

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z, gain=1.0):
        return self.decoder(z) * gain

    twice = functools.partialmethod(decode, gain=2.0)

    @property
    def head(self):
        return self.layers[1]

    @nn.remat
    def rematerialized(self, x):
        return self.decode(self.encode(x))

    @nn.jit
    def compiled(self, x):
        return self.decode(self.encode(x))

    @nn.nowrap
    def unwrapped(self, x):
        return self.encoder(x)

    def __call__(self, x):
        z = self.decode(self.encode(x))
        return self.head(self.layers[0](z)) * self.scale


class Fields(nn.Module):
    """A module that holds modules from outside, also in a dict and below another module."""

    first: nn.Module
    others: dict

    def __call__(self, x):
        return self.others["second"](self.first(x))


MODELS = {
    "compact": Compact(),
    "setup": SetUp(),
    "fields": Fields(
        nn.Sequential([nn.Dense(64), nn.tanh]), {"second": nn.Dense(64), "none": None}
    ),
    "sequential": nn.Sequential([nn.Dense(64), Compact()]),
}

CALLS = {
    "compact": {
        "by name": "__call__",
        "function of the bare class": Compact.__call__,
        "lambda": lambda m, x: m(x) + 1,
        "lambda on the bare class": lambda m, x: Compact.__call__(m, x),
        "remat": nn.remat(Compact.__call__),
        "bound method of another object": Compact().__call__,
    },
    "setup": {
        "by name": "encode",
        "function of the bare class": SetUp.encode,
        "lambda": lambda m, x: m.decode(m.encode(x)),
        "layer of setup": lambda m, x: m.encoder(x),
        "element of a list of setup": lambda m, x: m.layers[0](x),
        "layer of a layer": lambda m, x: m.decoder(m.encoder(x)),
        "property": lambda m, x: m.head(x),
        "method without a scope": SetUp.unwrapped,
        "partialmethod": lambda m, x: m.twice(x),
        "decorated by remat": SetUp.rematerialized,
        "decorated by jit": "compiled",
        "lambda on one decorated by jit": lambda m, x: m.compiled(x),
        "two methods in turn": lambda m, x: (m.encode(x), m(x), m.head(x)),
    },
    "fields": {
        "by name": "__call__",
        "field": lambda m, x: m.first(x),
        "field in a dict": lambda m, x: m.others["second"](x),
    },
    "sequential": {"element of a field": lambda m, x: m.layers[1](m.layers[0](x))},
}
EVERY_CALL = [(model, call) for model, calls in CALLS.items() for call in calls]


@functools.cache
def variables_of(name):
    """The wrapped model, its variables, and those with ŵ."""
    model = pqt_transform(MODELS[name], RULES)
    variables = model.init(make_key(), X)
    transform = param_transform(RULES)
    w_hat = transform.sample(variables["params"], variables["pqt"]["bits"], jax.random.key(9))
    return model, variables, {"params": w_hat}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("name", "call"), EVERY_CALL)
def test_every_call_samples_and_runs_bare(name, call):
    model, variables, w_hat = variables_of(name)
    method, rngs = CALLS[name][call], {"pqt": jax.random.key(9)}
    sampled = model.apply(variables, X, rngs=rngs, method=method)
    same(sampled, MODELS[name].apply(w_hat, X, method=method))
    bare = MODELS[name].apply({"params": variables["params"]}, X, method=method)
    same(model.apply(variables, X, method=method), bare)
    assert not jax.tree.all(jax.tree.map(np.array_equal, sampled, bare))


@pytest.mark.parametrize(("name", "call"), EVERY_CALL)
def test_every_call_has_gradients_of_the_bits(name, call):
    model, variables, _ = variables_of(name)

    def loss(variables):
        rngs = {"pqt": jax.random.key(9)}
        out = model.apply(variables, X, rngs=rngs, method=CALLS[name][call])
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(out))

    gradients = jax.tree.leaves(jax.grad(loss)(variables)["pqt"])
    assert any((leaf != 0).any() for leaf in gradients)
    assert all(np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize("name", MODELS)
def test_a_function_under_nn_apply_and_a_bound_module(name):
    model, variables, w_hat = variables_of(name)
    want, rngs = MODELS[name].apply(w_hat, X), {"pqt": jax.random.key(9)}
    same(nn.apply(lambda m, x: m(x), model)(variables, X, rngs=rngs), want)
    same(model.bind(variables, rngs=rngs)(X), want)
    same(model.bind(variables)(X), MODELS[name].apply({"params": variables["params"]}, X))
    module, unbound = model.bind(variables, rngs=rngs).unbind()
    assert unbound is variables or jax.tree.all(jax.tree.map(np.array_equal, unbound, variables))
    same(module.apply(unbound, X, rngs=rngs), want)


def test_attributes_of_a_bound_module():
    model, variables, w_hat = variables_of("setup")
    bound = model.bind(variables, rngs={"pqt": jax.random.key(9)})
    want = MODELS["setup"].bind(w_hat)
    same(bound.decoder(bound.encoder(X)), want.decoder(want.encoder(X)))
    same(bound.head(X), want.head(X))
    same(bound.twice(X), want.twice(X))


@pytest.mark.parametrize("method", ["__call__", Compact.__call__, lambda m, x: m(x)])
def test_init_by_any_method_makes_the_bits(method):
    variables = pqt_transform(Compact(), RULES).init(make_key(), X, method=method)
    assert len(jax.tree.leaves(variables["pqt"]["bits"])) == 2
    assert variables["params"].keys() == variables["pqt"]["bits"].keys()


def test_init_through_layers_alone_makes_their_bits():
    model = pqt_transform(SetUp(), RULES)
    variables = model.init(make_key(), X, method=lambda m, x: m.decoder(m.encoder(x)))
    assert variables["pqt"]["bits"].keys() == {"encoder", "decoder"}
    # Two methods in turn, of which only the second makes what the last rule is for.
    model = pqt_transform(SetUp(), [Rule("encoder/kernel"), Rule("decoder/.*/kernel")])
    variables = model.init(make_key(), X, method=lambda m, x: m.decode(m.encode(x)))
    assert variables["pqt"]["bits"].keys() == {"encoder", "decoder"}


def test_init_keeps_to_the_collections_that_were_asked_for():
    variables = pqt_transform(Compact(), RULES).init(make_key(), X, mutable=["params"])
    assert variables.keys() == {"params"}


class Parent(nn.Module):
    """Reads layers of a wrapped child."""

    def setup(self):
        self.child = pqt_transform(SetUp(), RULES)

    def __call__(self, x):
        return self.child.decoder(self.child.encoder(x))


def test_a_parent_that_uses_a_layer_of_a_wrapped_child():
    variables = Parent().init(make_key(), X)
    child = variables["params"]["child"]
    _, full, _ = variables_of("setup")
    variables = {"params": {"child": full["params"]}, "pqt": {"child": full["pqt"]}}
    assert child["encoder"]["kernel"].shape == (64, 64)
    sampled = Parent().apply(variables, X, rngs={"pqt": make_key()})
    bare = SetUp().apply({"params": full["params"]}, X, method=lambda m, x: m.decoder(m.encoder(x)))
    same(Parent().apply(variables, X), bare)
    assert (sampled != bare).any()


def test_methods_and_fields_need_no_scope():
    model = pqt_transform(Compact(), RULES)
    np.testing.assert_array_equal(model.init_cache(3), np.zeros((3, 64)))
    assert model.twice_the_width() == 128 and model.width == 64
    assert isinstance(model, Compact) and type(model).__name__ == "Compact"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.clone(width=16),
        lambda m: m.copy(width=16),
        lambda m: dataclasses.replace(m, width=16),
        lambda m: pickle.loads(pickle.dumps(m)).clone(width=16),
        lambda m: copy.deepcopy(m).clone(width=16),
    ],
)
def test_a_changed_copy_is_wrapped_too(change):
    model = change(pqt_transform(Compact(), RULES))
    variables = model.init(make_key(), X)
    assert variables["params"]["Dense_1"]["kernel"].shape == (64, 16)
    sampled = model.apply(variables, X, rngs={"pqt": make_key()})
    assert (sampled != model.apply(variables, X)).any()


def test_equal_wrappers_are_equal_and_compile_once():
    first, second = pqt_transform(Compact(), RULES), pqt_transform(Compact(), RULES)
    assert first == second and hash(first) == hash(second)
    assert first != pqt_transform(Compact(), [Rule(".*kernel", 3)]) and first != Compact()


def test_a_call_that_samples_nothing_is_an_error():
    model, variables, _ = variables_of("compact")
    reads = lambda m, x: x @ m.variables["params"]["Dense_0"]["kernel"]  # noqa: E731
    with pytest.raises(ValueError, match='"pqt" rng is given, and this call of Compact sampled no'):
        model.apply(variables, X, rngs={"pqt": make_key()}, method=reads)
    model.apply(variables, X, method=reads)


def test_a_key_can_be_required():
    model, variables, _ = variables_of("setup")
    strict = pqt_transform(SetUp(), RULES, require_key=True)
    for method in ("__call__", "encode", lambda m, x: m.encoder(x)):
        with pytest.raises(ValueError, match="require_key=True and is called without a key"):
            strict.apply(variables, X, method=method)
    rngs = {"pqt": jax.random.key(9)}
    same(strict.apply(variables, X, rngs=rngs), model.apply(variables, X, rngs=rngs))
    bare = {"params": variables["params"]}  # on purpose
    same(strict.apply(bare, X), model.apply(bare, X))
    assert strict.init(make_key(), X).keys() == {"params", "pqt"}


class Stateful(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(64)(x))
        self.sow("intermediates", "x", x)
        count = self.variable("new", "count", lambda: jnp.zeros(()))
        count.value += 1
        return x


@pytest.mark.parametrize("mutable", [["batch_stats", "intermediates", "new"], True])
def test_what_a_call_writes_comes_back_and_weights_stay(mutable):
    model = pqt_transform(Stateful(), RULES)
    variables = model.init(make_key(), X)
    del variables["new"]
    rngs = {"pqt": make_key()}
    _, after = model.apply(variables, X, rngs=rngs, mutable=mutable)
    w_hat = param_transform(RULES).sample(variables["params"], variables["pqt"]["bits"], make_key())
    bare = {"params": w_hat, "batch_stats": variables["batch_stats"]}
    _, want = Stateful().apply(bare, X, mutable=mutable)
    for name in ("batch_stats", "intermediates", "new"):
        same(after[name], want[name])
    if mutable is True:
        same(after["params"], variables["params"])
        same(after["pqt"], variables["pqt"])


class Scaled(nn.Module):
    """Lifts over the layer that holds the weights, twice in one call."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(64, name="layer")
        double = nn.vmap(
            lambda m, x: m(x), variable_axes={"params": None}, split_rngs={"params": False}
        )
        return double(layer, jnp.stack([x, x])) + nn.remat(lambda m, x: m(x))(layer, x)


def test_lifted_transforms_inside_run_on_the_same_samples():
    model = pqt_transform(Scaled(), RULES)
    variables = model.init(make_key(), X)
    w_hat = param_transform(RULES).sample(variables["params"], variables["pqt"]["bits"], make_key())
    got = model.apply(variables, X, rngs={"pqt": make_key()})
    same(got, Scaled().apply({"params": w_hat}, X))


@pytest.mark.parametrize("method", [SetUp.compiled, nn.jit(SetUp.__call__)])
def test_a_compiled_function_of_the_bare_class_samples_by_the_key_that_flax_gives_it(method):
    # `nn.jit` hands its function other keys than those outside, so the noise is another.
    model, variables, _ = variables_of("setup")
    bare = SetUp().apply({"params": variables["params"]}, X, method=method)
    for seed in (9, 9, 8):
        sampled = model.apply(variables, X, method=method, rngs={"pqt": jax.random.key(seed)})
        assert (sampled != bare).any()
    same(model.apply(variables, X, method=method), bare)


class Lifts(nn.Module):
    lift: str

    @nn.compact
    def __call__(self, x):
        layer = pqt_transform(SetUp(), RULES)
        if self.lift == "none":
            return layer(x)
        return getattr(nn, self.lift)(lambda layer, x: layer(x))(layer, x)


@pytest.mark.parametrize("lift", ["none", "remat", "jit"])
def test_a_wrapped_module_inside_a_lifted_function(lift):
    _, full, _ = variables_of("setup")
    variables = {kind: {"SetUp_0": full[kind]} for kind in ("params", "pqt")}
    shapes = jax.tree.map(jnp.shape, Lifts(lift).init(make_key(), X))
    assert shapes == jax.tree.map(jnp.shape, variables)
    sampled = Lifts(lift).apply(variables, X, rngs={"pqt": make_key()})
    bare = SetUp().apply({"params": full["params"]}, X)
    plain = Lifts(lift).apply(variables, X)
    if lift == "jit":  # compiled, the sums have other last bits
        np.testing.assert_allclose(plain, bare, rtol=1e-3, atol=1e-5)
    else:
        same(plain, bare)
    assert (jnp.abs(sampled - bare) > 1e-3).any()
    if lift == "remat":  # `nn.jit` hands its function other keys
        same(sampled, Lifts("none").apply(variables, X, rngs={"pqt": make_key()}))


def test_interceptors_and_tabulate_see_the_bare_model():
    model, variables, w_hat = variables_of("setup")

    def add_one(call, args, kwargs, context):
        is_layer = context.module.name == "encoder" and context.method_name == "__call__"
        return call(*args, **kwargs) + 1 if is_layer else call(*args, **kwargs)

    with nn.intercept_methods(add_one):
        got = model.apply(variables, X, rngs={"pqt": jax.random.key(9)})
        same(got, MODELS["setup"].apply(w_hat, X))
    table = model.tabulate(make_key(), X, console_kwargs={"width": 200})
    assert "encoder" in table and "SetUp" in table


class Body(nn.Module):
    options: tuple = ()

    @nn.compact
    def __call__(self, carry, _):
        return pqt_transform(nn.Dense(8), [Rule("kernel")], **dict(self.options))(carry), None


@pytest.mark.parametrize("options", [(), (("require_key", True),)], ids=["", "require_key"])
@pytest.mark.parametrize(
    "axes, rngs, message",
    [
        (("params", "pqt"), ("params",), "Dense does not get it: name it in the scan or vmap"),
        (("params",), ("params", "pqt"), "Dense is wrapped, and can keep no bits: name their coll"),
        (("params",), ("params",), "Dense is wrapped, and can keep no bits: name their collection"),
    ],
)
def test_a_scan_that_drops_bits_or_key_of_a_wrapped_layer_is_an_error(axes, rngs, message, options):
    axes, rngs = dict.fromkeys(axes, 0), dict.fromkeys(rngs, True)

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(Body, variable_axes=axes, split_rngs=rngs, length=2)
            return scan(options)(x, None)[0]

    x = jnp.ones((2, 8))
    with pytest.raises(ValueError, match=message):
        variables = Scanned().init(jax.random.key(0), x)
        Scanned().apply(variables, x, rngs={"pqt": jax.random.key(1)})
    if "pqt" not in axes:  # on purpose
        assert set(Scanned().init(jax.random.key(0), x, mutable=["params"])) == {"params"}
