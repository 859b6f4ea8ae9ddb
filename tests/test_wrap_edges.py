# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` on modules that do unusual things, in NNX and in Linen."""

import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from pqt_jax import BitParam, Rule, pqt_transform

KEY, X = jax.random.key(5), jnp.ones((4, 16))
KERNELS = [Rule(".*kernel")]


def layer():
    return nnx.Linear(16, 16, rngs=nnx.Rngs(0))


def paths(model):
    return [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Not(BitParam)))]


# NNX.


class Stateful(nnx.Module):
    """Has variables that are written in training, and not in evaluation."""

    def __init__(self):
        self.layer, rngs = layer(), nnx.Rngs(0)
        self.dropout, self.norm = nnx.Dropout(0.1, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)

    def __call__(self, x, train=False):
        x = self.dropout(self.layer(x), deterministic=not train)
        return self.norm(x, use_running_average=not train)


def test_a_model_from_outside_runs_inside_transforms():
    model = pqt_transform(Stateful(), KERNELS)
    want = model(X, pqt_key=KEY)
    call = lambda x, key: model(x, pqt_key=key)  # noqa: E731
    for function in (jax.jit(call), jax.checkpoint(call)):
        np.testing.assert_allclose(function(X, KEY), want, rtol=1e-6)
    keys = jax.random.split(KEY, 3)
    assert jax.vmap(lambda key: model(X, pqt_key=key))(keys).shape == (3, 4, 16)
    assert jax.grad(lambda x: call(x, KEY).sum())(X).shape == X.shape


def test_what_a_sampled_call_writes_is_carried_over():
    model = pqt_transform(Stateful(), KERNELS)
    before = np.asarray(model.norm.mean[...])
    model(X, pqt_key=KEY)
    np.testing.assert_array_equal(model.norm.mean[...], before)
    model(X, train=True, pqt_key=KEY)
    first = np.asarray(model.norm.mean[...])
    nnx.jit(lambda model: model(X, train=True, pqt_key=KEY))(model)
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
    model(X), model(X, pqt_key=KEY)
    assert model.count[...] == 2
    model = pqt_transform(Overwriting(), KERNELS)
    with pytest.raises(ValueError, match="layer/kernel: the call writes to a parameter that is s"):
        model(X, pqt_key=KEY)
    np.testing.assert_array_equal(model.layer.kernel[...], layer().kernel[...])
    nnx.jit(lambda model: model(X, pqt_key=KEY))(model)  # undone, where it cannot be told
    np.testing.assert_array_equal(model.layer.kernel[...], layer().kernel[...])


class Making(nnx.Module):
    """Makes and sets in its call what was not there before."""

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
    "call", [lambda m: m(X, pqt_key=KEY), nnx.jit(lambda m: m(X, pqt_key=KEY))]
)
def test_what_a_sampled_call_makes_or_sets_is_kept(call):
    model, bare = pqt_transform(Making(), KERNELS), Making()
    out = call(model)
    np.testing.assert_array_equal(model.cache[...], out)
    np.testing.assert_array_equal(model.layer.last[...], out)
    bare(X)
    assert paths(model) == paths(bare) and model.calls == 1
    assert (model(X) != model(X, pqt_key=KEY)).any() and model.calls == 3


def test_after_a_sampled_call_that_fails_the_weights_are_back():
    model = pqt_transform(Making(), KERNELS)
    weights = model.layer.kernel.get_raw_value()
    with pytest.raises(RuntimeError, match="fails"):
        model(X, fail=True, pqt_key=KEY)
    assert model.layer.kernel.get_raw_value() is weights
    with pytest.raises(RuntimeError, match="fails"):
        nnx.jit(lambda model: model(X, fail=True, pqt_key=KEY))(model)
    assert model.layer.kernel.get_raw_value() is weights


class Transforming(nnx.Module):
    """Transforms within the call hand parameters back to it as new arrays."""

    def __init__(self):
        self.layer, self.dropout = layer(), nnx.Dropout(0.1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = nnx.remat(lambda layer, x: layer(x))(self.layer, x)
        return nnx.jit(lambda model, x: model.dropout(model.layer(x)))(self, x)


def test_a_call_may_hold_transforms():
    model = pqt_transform(Transforming(), KERNELS)
    weights = np.asarray(model.layer.kernel[...])
    loss = lambda model: model(X, pqt_key=KEY).sum()  # noqa: E731
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
    assert (model(X, pqt_key=KEY) != bare(X)).any()
    assert repr(model)


def test_a_wrapped_module_can_be_pickled():
    model = pqt_transform(Counting(), KERNELS)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    np.testing.assert_array_equal(again(X, pqt_key=KEY), model(X, pqt_key=KEY))
    graph, _ = nnx.split(model)
    assert pickle.loads(pickle.dumps(graph)) == graph


class Callless(nnx.Module):
    def __init__(self):
        self.layer = layer()

    def encode(self, x):
        return self.layer(x)


def test_methods_and_signatures():
    model = pqt_transform(Callless(), KERNELS)
    assert (model(X, pqt_method="encode", pqt_key=KEY) != model.encode(X)).any()
    with pytest.raises(TypeError, match="Callless has no __call__; name one of its methods"):
        model(X)
    with pytest.raises(AttributeError, match="pqt_method='decode': Callless has no such method"):
        model(X, pqt_method="decode")
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
        (lambda: nnx.with_vars(layer(), ref=True), "'bias' holds a reference and no array"),
        (lambda: nnx.with_vars(layer(), hijax=True), "'bias' holds a reference and no array"),
        (lambda: nnx.bridge.ToNNX(nn.Dense(4), rngs=nnx.Rngs(0)), "ToNNX holds a Linen module"),
        (lambda: nnx.bridge.to_linen(nnx.Linear, 4, 4), "ToLinen holds an NNX module"),
        (lambda: nnx.Linear, "is of type"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(model, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pqt_transform(model(), KERNELS)


# Linen.


class Decoder(nn.Module):
    embed: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.embed.attend(nn.Dense(16)(x))


class Tied(nn.Module):
    """Hands its own embedding to a wrapped part."""

    def setup(self):
        self.embed = nn.Embed(10, 16)
        self.decoder = pqt_transform(Decoder(self.embed), [Rule("Dense_0/kernel")])

    def __call__(self, tokens):
        return self.decoder(self.embed(tokens))


class TiedCompact(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(10, 16)
        return pqt_transform(Decoder(embed), [Rule("Dense_0/kernel")])(embed(tokens))


@pytest.mark.parametrize(("cls", "name"), [(Tied, "decoder"), (TiedCompact, "Decoder_0")])
def test_a_module_from_outside_stays_bare(cls, name):
    model, tokens = cls(), jnp.arange(4)
    variables = model.init(KEY, tokens)
    assert list(variables["pqt"][name]["bits"]) == ["Dense_0"]
    params, rngs = variables["params"], {"pqt": jax.random.key(1)}
    sampled = model.apply(variables, tokens, rngs=rngs)
    assert (sampled != model.apply(variables, tokens)).any()
    # Without its kernel the wrapped part gives its bias alone: all that is left is bare.
    kernel = params[name]["Dense_0"]["kernel"]
    params = {**params, name: {"Dense_0": {**params[name]["Dense_0"], "kernel": kernel * 0}}}
    variables = {**variables, "params": params}
    bare = model.apply(variables, tokens)
    np.testing.assert_array_equal(model.apply(variables, tokens, rngs=rngs), bare)


class Twice(nn.Module):
    def setup(self):
        self.layer = pqt_transform(nn.Dense(16, use_bias=False), [Rule("kernel")])

    def __call__(self, x):
        return self.layer(x), self.layer(x)


def test_one_step_has_one_sample_of_a_layer_that_is_called_twice():
    variables = Twice().init(KEY, X)
    first, second = Twice().apply(variables, X, rngs={"pqt": KEY})
    np.testing.assert_array_equal(first, second)
    assert (first != Twice().apply(variables, X)[0]).any()


class BareToo(nn.Module):
    bare_first: bool

    @nn.compact
    def __call__(self, x):
        bare = Block()
        sampled = pqt_transform(bare, [Rule("inner/kernel")])
        first, second = (bare, sampled) if self.bare_first else (sampled, bare)
        first, second = first(x), second(x)
        return (second, first) if self.bare_first else (first, second)


@pytest.mark.parametrize("bare_first", [True, False])
def test_a_layer_may_be_called_wrapped_and_bare(bare_first):
    model = BareToo(bare_first)
    variables = model.init(KEY, X)
    assert list(variables["params"]) == ["Block_0"] == list(variables["pqt"])
    sampled, bare = model.apply(variables, X, rngs={"pqt": KEY})
    want = Block().apply({"params": variables["params"]["Block_0"]}, X)
    np.testing.assert_array_equal(bare, want)
    assert (sampled != want).any()
    np.testing.assert_array_equal(model.apply(variables, X)[0], want)


class WrapsLate(nn.Module):
    def setup(self):
        self.layer = nn.Dense(16)
        self.sampled = pqt_transform(self.layer, [Rule("kernel")])

    def __call__(self, x):
        return self.sampled(x)


def test_wrapping_a_part_that_has_its_place_says_what_to_do():
    with pytest.raises(ValueError, match=r"'layer' is part.*self.layer = pqt_transform\(Dense"):
        WrapsLate().init(KEY, X)


def test_intermediates_are_those_of_the_bare_model():
    model = pqt_transform(Block(), [Rule("inner/kernel")])
    variables = model.init(KEY, X)
    options = {"capture_intermediates": True, "mutable": ["intermediates"]}
    want = Block().apply({"params": variables["params"]}, X, **options)
    chex.assert_trees_all_equal(model.apply(variables, X, **options), want)
    _, sampled = model.apply(variables, X, rngs={"pqt": KEY}, **options)
    chex.assert_trees_all_equal_shapes(sampled, want[1])


class Holder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return pqt_transform(nn.Dense(16, name="inner"), [Rule("kernel")])(x)


def test_a_model_with_a_wrapped_part_is_not_wrapped_again():
    model = pqt_transform(Holder(), [Rule("inner/kernel")])
    with pytest.raises(ValueError, match=r"a part of Holder is wrapped already.*\['inner'\]"):
        model.init(KEY, X)


class Block(nn.Module):
    width: int = 16

    def setup(self):
        self.inner = nn.Dense(self.width)

    def encode(self, x):
        return self.inner(x)

    def __call__(self, x):
        return self.encode(x) + 1

    @nn.nowrap
    def twice_the_width(self):
        return self.width * 2


class User(nn.Module):
    def setup(self):
        self.block = pqt_transform(Block(), [Rule("inner/kernel")])

    def __call__(self, x):
        return self.block.encode(x) * self.block.width


def test_fields_and_methods_of_the_bare_module_are_there():
    rngs = {"pqt": KEY}
    block = pqt_transform(Block(), [Rule("inner/kernel")])
    assert block.width == 16 and block.twice_the_width() == 32
    variables = block.init(KEY, X)
    sampled = block.apply(variables, X, rngs=rngs)
    for method in ("encode", block.encode):
        encoded = block.apply(variables, X, rngs=rngs, method=method)
        np.testing.assert_array_equal(encoded + 1, sampled)
        bare = Block().apply({"params": variables["params"]}, X, method="encode")
        np.testing.assert_array_equal(block.apply(variables, X, method=method), bare)
    with pytest.raises(AttributeError, match="Block has no field or method 'nothing'"):
        _ = block.nothing
    user, variables = User(), User().init(KEY, X)
    assert (user.apply(variables, X, rngs=rngs) != user.apply(variables, X)).any()


def test_a_wrapped_cell_runs_in_a_recurrent_network():
    cell = pqt_transform(nn.LSTMCell(8), KERNELS)
    model = nn.RNN(
        cell, variable_broadcast=("params", "pqt"), split_rngs={"params": False, "pqt": False}
    )
    x = jnp.ones((2, 5, 4))
    variables = model.init(KEY, x)
    bare = nn.RNN(nn.LSTMCell(8)).apply({"params": variables["params"]}, x)
    np.testing.assert_array_equal(model.apply(variables, x), bare)
    assert (model.apply(variables, x, rngs={"pqt": KEY}) != bare).any()


class Plain(nn.Module):
    def __call__(self, x):
        return x + 1


def test_a_module_without_parameters_can_be_wrapped():
    model = pqt_transform(Plain(), [])
    variables = model.init(KEY, X)
    np.testing.assert_array_equal(model.apply(variables, X, rngs={"pqt": KEY}), X + 1)


class Scanned(nn.Module):
    """A scan over layers, each on the same input, that names the collection and the rng."""

    rules: tuple[Rule, ...] = ()

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(16)
        if self.rules:
            layer = pqt_transform(layer, self.rules)
        scan = nn.scan(
            lambda layer, x, _: (x, layer(x)),
            variable_axes={"params": 0, "pqt": 0},
            split_rngs={"params": True, "pqt": True},
            length=3,
        )
        return scan(layer, x, None)[1]


def test_a_scan_over_wrapped_layers_gives_each_its_noise():
    bare, model = Scanned(), Scanned((Rule("kernel"),))
    variables = model.init(KEY, X)
    chex.assert_trees_all_equal(variables["params"], bare.init(KEY, X)["params"])
    shapes = jax.tree.map(jnp.shape, variables["pqt"])
    assert shapes == {"Dense_0": {"bits": {"kernel": (3, 1, 1)}}}
    params = {"Dense_0": {"kernel": jnp.stack([jnp.eye(16)] * 3), "bias": jnp.zeros((3, 16))}}
    sampled = model.apply({**variables, "params": params}, jnp.eye(16), rngs={"pqt": KEY})
    noise = sampled - jnp.eye(16)
    assert all((noise[i] != noise[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert set(np.unique(noise)) <= {n / 32 for n in (-2, -1, 0, 1, 2)}


class PlainArray(nnx.Module):
    def __init__(self):
        self.layer, self.scale = layer(), jnp.ones(16)

    def __call__(self, x):
        return self.layer(x * self.scale)


def test_a_model_may_hold_plain_arrays():
    model = pqt_transform(PlainArray(), KERNELS)
    assert (model(X, pqt_key=KEY) != model(X)).any()


class Boxed(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(nn.Partitioned(layer().kernel[...], names=(None, "model")))

    def __call__(self, x):
        return x @ self.kernel.get_value().value


def test_a_variable_may_hold_a_box():
    model = pqt_transform(Boxed(), [Rule("kernel")])
    assert (model(X, pqt_key=KEY) != model(X)).any()
    np.testing.assert_array_equal(model(X), Boxed()(X))
