# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` on Linen modules that do unusual things."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pqt_jax import Rule, pqt_transform

X = np.ones((4, 16), np.float32)
KERNELS = [Rule(".*kernel")]


def make_key():
    return jax.random.key(5)


class Decoder(nn.Module):
    embed: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.embed.attend(nn.Dense(16)(x))


class Tied(nn.Module):
    """Passes its embedding to a wrapped part."""

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
    variables = model.init(make_key(), tokens)
    assert list(variables["pqt"][name]["bits"]) == ["Dense_0"]
    params, rngs = variables["params"], {"pqt": jax.random.key(1)}
    sampled = model.apply(variables, tokens, rngs=rngs)
    assert (sampled != model.apply(variables, tokens)).any()
    # Without its kernel the wrapped part returns its bias only; the rest is the bare model.
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
    variables = Twice().init(make_key(), X)
    first, second = Twice().apply(variables, X, rngs={"pqt": make_key()})
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
    variables = model.init(make_key(), X)
    assert list(variables["params"]) == ["Block_0"] == list(variables["pqt"])
    sampled, bare = model.apply(variables, X, rngs={"pqt": make_key()})
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


def test_a_part_that_has_its_place_is_wrapped_there():
    variables = WrapsLate().init(make_key(), X)
    assert list(variables["params"]) == ["layer"] == list(variables["pqt"])
    sampled = WrapsLate().apply(variables, X, rngs={"pqt": make_key()})
    want = nn.Dense(16).apply({"params": variables["params"]["layer"]}, X)
    np.testing.assert_array_equal(WrapsLate().apply(variables, X), want)
    assert (sampled != want).any()


def test_intermediates_are_those_of_the_bare_model():
    model = pqt_transform(Block(), [Rule("inner/kernel")])
    variables = model.init(make_key(), X)
    options = {"capture_intermediates": True, "mutable": ["intermediates"]}
    want = Block().apply({"params": variables["params"]}, X, **options)
    chex.assert_trees_all_equal(model.apply(variables, X, **options), want)
    _, sampled = model.apply(variables, X, rngs={"pqt": make_key()}, **options)
    chex.assert_trees_all_equal_shapes(sampled, want[1])


class Holder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return pqt_transform(nn.Dense(16, name="inner"), [Rule("kernel")])(x)


def test_a_model_with_a_wrapped_part_is_not_wrapped_again():
    model = pqt_transform(Holder(), [Rule("inner/kernel")])
    with pytest.raises(ValueError, match=r"a part of Holder is wrapped already.*\['inner'\]"):
        model.init(make_key(), X)


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
    rngs = {"pqt": make_key()}
    block = pqt_transform(Block(), [Rule("inner/kernel")])
    assert block.width == 16 and block.twice_the_width() == 32
    variables = block.init(make_key(), X)
    sampled = block.apply(variables, X, rngs=rngs)
    for method in ("encode", block.encode):
        encoded = block.apply(variables, X, rngs=rngs, method=method)
        np.testing.assert_array_equal(encoded + 1, sampled)
        bare = Block().apply({"params": variables["params"]}, X, method="encode")
        np.testing.assert_array_equal(block.apply(variables, X, method=method), bare)
    user, variables = User(), User().init(make_key(), X)
    assert (user.apply(variables, X, rngs=rngs) != user.apply(variables, X)).any()


@pytest.mark.slow
def test_a_wrapped_cell_runs_in_a_recurrent_network():
    cell = pqt_transform(nn.LSTMCell(8), KERNELS)
    model = nn.RNN(
        cell, variable_broadcast=("params", "pqt"), split_rngs={"params": False, "pqt": False}
    )
    x = jnp.ones((2, 5, 4))
    variables = model.init(make_key(), x)
    bare = nn.RNN(nn.LSTMCell(8)).apply({"params": variables["params"]}, x)
    np.testing.assert_array_equal(model.apply(variables, x), bare)
    assert (model.apply(variables, x, rngs={"pqt": make_key()}) != bare).any()


class Plain(nn.Module):
    def __call__(self, x):
        return x + 1


def test_a_module_without_parameters_can_be_wrapped():
    model = pqt_transform(Plain(), [])
    variables = model.init(make_key(), X)
    np.testing.assert_array_equal(model.apply(variables, X), X + 1)
    with pytest.raises(ValueError, match="a key is given, and no rule samples a parameter"):
        model.apply(variables, X, rngs={"pqt": make_key()})


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
    variables = model.init(make_key(), X)
    chex.assert_trees_all_equal(variables["params"], bare.init(make_key(), X)["params"])
    shapes = jax.tree.map(jnp.shape, variables["pqt"])
    assert shapes == {"Dense_0": {"bits": {"kernel": (3, 1, 1)}}}
    params = {"Dense_0": {"kernel": jnp.stack([jnp.eye(16)] * 3), "bias": jnp.zeros((3, 16))}}
    sampled = model.apply({**variables, "params": params}, jnp.eye(16), rngs={"pqt": make_key()})
    noise = sampled - jnp.eye(16)
    assert all((noise[i] != noise[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert set(np.unique(noise)) <= {n / 32 for n in (-2, -1, 0, 1, 2)}


def test_init_with_output_gives_the_output_of_the_bare_model():
    model, rngs = pqt_transform(nn.Dense(16), KERNELS), {"params": make_key(), "pqt": make_key()}
    out, variables = model.init_with_output(rngs, X)
    np.testing.assert_array_equal(out, model.apply(variables, X))
    assert (out != model.apply(variables, X, rngs={"pqt": make_key()})).any()
