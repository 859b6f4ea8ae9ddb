# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` on NNX models that were not written for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import BitParam, Rule, param_transform, pqt_transform

pytestmark = pytest.mark.jax_version


def make_key():
    return jax.random.key(5)


class Convolutional(nnx.Module):
    """Two convolutions, batch statistics and dropout."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.layers = nnx.List([nnx.Conv(32, 40, (3, 3), rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(40, 10, rngs=rngs)

    def __call__(self, x):
        x = self.norm(nnx.relu(self.first(x)))
        x = self.dropout(self.layers[0](x))
        return self.head(jnp.mean(x, axis=(1, 2)))


class Attention(nnx.Module):
    """Kernels of three axes, under a residual."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(
            num_heads=4, in_features=64, qkv_features=64, decode=False, rngs=rngs
        )

    def __call__(self, x):
        return x + self.attention(x)


class Tied(nnx.Module):
    """One embedding table, used for input and output."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(50, 64, rngs=rngs)
        self.dense = nnx.Linear(64, 64, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(self.dense(self.embed(tokens)))


class Stack(nnx.Module):
    """Layers stacked by vmap and scanned, wrapped or not, with a remat around each."""

    def __init__(self, rngs, rules=()):
        def layer(rngs):
            block = nnx.Linear(64, 64, rngs=rngs)
            return pqt_transform(block, rules, prefix="h") if rules else block

        self.h = nnx.vmap(layer)(rngs.split(3))
        self.wrapped = bool(rules)

    def __call__(self, x, key=None):
        graphdef, layers = nnx.split(self.h)

        @jax.checkpoint
        def body(x, layer):
            index, state = layer
            block = nnx.merge(graphdef, state)
            options = {"pqt_key": key, "pqt_lead": index} if self.wrapped else {}
            return jnp.tanh(block(x, **options)), None

        return jax.lax.scan(body, x, (jnp.arange(3), layers))[0]


IMAGES = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
TOKENS = np.arange(12).reshape(2, 6)
ACTIVATIONS = np.random.default_rng(2).normal(size=(2, 6, 64)).astype(np.float32)
CASES = {
    "convolutional": (Convolutional, IMAGES, [Rule("layers/.*kernel|head/kernel")], 2),
    "flattened convolution": (Convolutional, IMAGES, [Rule(".*/0/kernel", matrix_axes=(3, 1))], 1),
    "attention": (
        Attention,
        ACTIVATIONS,
        [
            Rule("attention/out/kernel", matrix_axes=(2, 1)),
            Rule("attention/.*kernel", matrix_axes=(1, 2)),
        ],
        4,
    ),
    "tied": (Tied, TOKENS, [Rule("embed/embedding", dtype=jnp.float32), Rule("dense/kernel")], 2),
}


def cases(*quick):
    """Parametrize a test over `CASES`; those that are not quick are slow."""
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in CASES}
    values = [pytest.param(name, marks=marks[name]) for name in CASES]
    return pytest.mark.parametrize("case", values, indirect=True)


@pytest.fixture
def case(request):
    cls, x, rules, sampled = CASES[request.param]
    return lambda: cls(nnx.Rngs(0)), x, rules, sampled


def params_of(model):
    return nnx.state(model, nnx.All(nnx.Param, nnx.Not(BitParam)))


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


@cases("attention", "tied")
def test_without_a_key_the_bare_model_runs_bit_for_bit(case):
    make, x, rules, _ = case
    np.testing.assert_array_equal(pqt_transform(make(), rules)(x), make()(x))
    np.testing.assert_array_equal(pqt_transform(make(), rules)(x, pqt_key=None), make()(x))


@cases("flattened convolution", "attention", "tied")
def test_with_a_key_it_runs_on_the_sampled_parameters(case):
    make, x, rules, _ = case
    model, bare = pqt_transform(make(), rules), make()
    transform = param_transform(rules)
    params = params_of(bare)
    nnx.update(bare, transform.sample(params, transform.init(params), make_key()))
    np.testing.assert_array_equal(model(x, pqt_key=make_key()), bare(x))
    assert (model(x, pqt_key=make_key()) != make()(x)).any()


@cases(*CASES)
def test_paths_and_dtypes_stay_and_checkpoints_interchange(case):
    make, x, rules, sampled = case
    model, bare = pqt_transform(make(), rules), make()
    assert isinstance(model, type(bare))
    assert len(jax.tree.leaves(nnx.state(model, BitParam))) == sampled

    def shapes(tree):
        return jax.tree.map(lambda a: (a.shape, a.dtype), nnx.to_pure_dict(tree))

    assert shapes(params_of(model)) == shapes(params_of(bare))
    doubled = jax.tree.map(lambda a: 2 * a, params_of(bare))
    nnx.update(model, doubled)  # bare → wrapped
    assert same(params_of(model), doubled)
    nnx.update(bare, params_of(model))  # and back
    assert same(params_of(bare), doubled)


@cases("attention")
def test_gradients_under_jit_reach_weights_and_bits(case):
    make, x, rules, _ = case

    @nnx.jit
    def gradient(model, key):
        return nnx.grad(lambda m: jnp.mean(m(x, pqt_key=key).astype(jnp.float32) ** 2))(model)

    model = pqt_transform(make(), rules)
    grads = gradient(model, make_key())
    assert jax.tree.structure(grads) == jax.tree.structure(nnx.state(model, nnx.Param))
    for path, leaf in nnx.to_flat_state(grads):
        assert np.isfinite(leaf[...]).all()
        if isinstance(leaf, BitParam) or path[-1] in ("kernel", "embedding"):
            assert (leaf[...] != 0).any(), path


def data(state):
    """Leaves as plain arrays; keys of rng streams as their words."""
    leaves = jax.tree.leaves(state)
    return [jax.random.key_data(v) if "key" in str(v.dtype) else v for v in leaves]


def test_statistics_and_dropout_advance_as_in_the_bare_model():
    model = pqt_transform(Convolutional(nnx.Rngs(0)), [Rule("head/kernel")])
    bare = Convolutional(nnx.Rngs(0))
    for key in (make_key(), None):
        model(IMAGES, pqt_key=key)
        bare(IMAGES)
    mine, others = nnx.state(model, nnx.Not(nnx.Param)), nnx.state(bare, nnx.Not(nnx.Param))
    assert same(data(mine), data(others))
    assert (bare.norm.mean[...] != 0).any()


def test_vmap_over_keys_gives_each_its_noise():
    model = pqt_transform(Tied(nnx.Rngs(0)), [Rule(".*kernel|.*embedding")])
    graphdef, state = nnx.split(model)
    ks = jax.random.split(make_key(), 3)

    def run(key):
        return nnx.merge(graphdef, state)(TOKENS, pqt_key=key)

    together = jax.vmap(run)(ks)
    for k, out in zip(ks, together, strict=True):
        np.testing.assert_allclose(out.astype(jnp.float32), run(k).astype(jnp.float32), rtol=2e-2)
    assert (together[0] != together[1]).any()


def test_blocks_wrapped_inside_a_scan_get_the_noise_of_the_stacked_tree():
    rules = [Rule("h/kernel")]
    model, bare = Stack(nnx.Rngs(0), rules), Stack(nnx.Rngs(0))
    assert model.h.pqt_bits["kernel"].shape == (3, 2, 2)
    np.testing.assert_array_equal(model(ACTIVATIONS), bare(ACTIVATIONS))
    transform = param_transform(rules)
    params = params_of(bare)
    nnx.update(bare, transform.sample(params, transform.init(params), make_key()))
    np.testing.assert_array_equal(model(ACTIVATIONS, make_key()), bare(ACTIVATIONS))


def test_scanned_blocks_differentiate_under_remat():
    model = Stack(nnx.Rngs(0), [Rule("h/kernel")])
    grads = nnx.jit(nnx.grad(lambda m: jnp.sum(m(ACTIVATIONS, make_key()) ** 2)))(model)
    assert (grads.h.kernel[...] != 0).any(axis=(1, 2)).all()
    assert (grads.h.pqt_bits["kernel"][...] != 0).all()


def test_another_method_can_be_called_sampled():
    model = pqt_transform(nnx.Embed(50, 64, rngs=nnx.Rngs(0)), [Rule("embedding")])
    bare = nnx.Embed(50, 64, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 64))
    np.testing.assert_array_equal(model(x, pqt_method="attend"), bare.attend(x))
    assert (model(x, pqt_method="attend", pqt_key=make_key()) != bare.attend(x)).any()


def test_errors():
    with pytest.raises(ValueError, match="wrapped already"):
        pqt_transform(pqt_transform(Tied(nnx.Rngs(0)), [Rule(".*kernel")]), [Rule(".*kernel")])
    with pytest.raises(ValueError, match="a part of it is"):
        pqt_transform(Stack(nnx.Rngs(0), [Rule("h/kernel")]), [Rule("h/kernel")])
    with pytest.raises(ValueError, match="matches no parameter"):
        pqt_transform(Tied(nnx.Rngs(0)), [Rule("nothing")])
    with pytest.raises(ValueError, match="no rule decides about 'embed/embedding'"):
        pqt_transform(Tied(nnx.Rngs(0)), [Rule("dense/.*")], strict=True)
    with pytest.raises(TypeError, match="give a Linen or an NNX module"):
        pqt_transform(lambda x: x, [Rule(".*")])
    with pytest.raises(TypeError, match="key is of type int"):
        pqt_transform(Tied(nnx.Rngs(0)), [Rule("dense/kernel")])(TOKENS, pqt_key=0)
