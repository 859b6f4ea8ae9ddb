# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` on Linen models that were not written for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pqt_jax import Rule, param_transform, pqt_transform

pytestmark = pytest.mark.jax_version


def make_key():
    return jax.random.key(5)


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(10, name="head")(jnp.mean(nn.Conv(40, (3, 3))(x), axis=(1, 2)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(x)


class Tied(nn.Module):
    def setup(self):
        self.embed = nn.Embed(50, 64)
        self.dense = nn.Dense(64)

    def __call__(self, tokens):
        return self.embed.attend(self.dense(self.embed(tokens)))

    def encode(self, tokens):
        return self.dense(self.embed(tokens))


class Layer(nn.Module):
    rules: tuple = ()

    @nn.compact
    def __call__(self, x, _):
        dense = nn.Dense(64, name="dense")
        return jnp.tanh((pqt_transform(dense, self.rules) if self.rules else dense)(x)), None


class Scanned(nn.Module):
    """Three layers under scan and remat, the block inside wrapped or not."""

    rules: tuple = ()

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0, "pqt": 0},
            split_rngs={"params": True, "pqt": True},
            length=3,
        )
        return stack(self.rules, name="h")(x, None)[0]


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(64, kernel_init=init)(x)


IMAGES = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
TOKENS = np.arange(12).reshape(2, 6)
ACTIVATIONS = np.random.default_rng(2).normal(size=(2, 6, 64)).astype(np.float32)


class Holder(nn.Module):
    """A submodule passed as an attribute, and one that has the name of an attribute of `PQT`."""

    inner: nn.Module

    def setup(self):
        self.model = nn.Dense(64)

    def __call__(self, x):
        return self.inner(self.model(x))


CASES = {
    "sequential": (
        nn.Sequential([nn.Dense(64), nn.gelu, nn.Dense(64)]),
        ACTIVATIONS,
        [Rule(".*kernel")],
        2,
    ),
    "holder": (Holder(nn.Dense(64)), ACTIVATIONS, [Rule(".*kernel")], 2),
    "convolutional": (Convolutional(), IMAGES, [Rule("Conv_1/kernel|head/kernel")], 2),
    "attention": (
        Attention(),
        ACTIVATIONS,
        [
            Rule("attention/out/kernel", matrix_axes=(2, 1)),
            Rule("attention/.*kernel", matrix_axes=(1, 2)),
        ],
        4,
    ),
    "tied": (Tied(), TOKENS, [Rule("embed/embedding", dtype=jnp.float32), Rule("dense/kernel")], 2),
    "scanned": (Scanned(), ACTIVATIONS, [Rule("h/dense/kernel")], 1),
    "partitioned": (Partitioned(), ACTIVATIONS, [Rule(".*kernel")], 1),
}


def cases(*quick):
    """Parametrize a test over `CASES`; those that are not quick are slow."""
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in CASES}
    values = [pytest.param(name, marks=marks[name]) for name in CASES]
    return pytest.mark.parametrize("case", values, indirect=True)


@pytest.fixture
def case(request):
    return CASES[request.param]


def run(model, variables, x, **options):
    out, _ = model.apply(variables, x, mutable=["batch_stats"], **options)
    return out


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


@cases("sequential", "holder", "tied", "scanned", "partitioned")
def test_parameters_and_paths_are_those_of_the_bare_model(case):
    bare, x, rules, sampled = case
    variables, wanted = pqt_transform(bare, rules).init(make_key(), x), bare.init(make_key(), x)
    bits = variables.pop("pqt")["bits"]
    assert len(jax.tree.leaves(bits)) == sampled
    assert jax.tree.structure(variables) == jax.tree.structure(wanted)
    assert same(variables, wanted)


@cases("holder", "tied", "partitioned")
def test_without_the_rng_the_bare_model_runs_bit_for_bit(case):
    bare, x, rules, _ = case
    wrapped = pqt_transform(bare, rules)
    variables = wrapped.init(make_key(), x)
    checkpoint = {k: v for k, v in variables.items() if k != "pqt"}
    want = run(bare, checkpoint, x)
    np.testing.assert_array_equal(run(wrapped, variables, x), want)
    np.testing.assert_array_equal(run(wrapped, checkpoint, x), want)  # a bare checkpoint works


@cases("sequential", "holder", "attention", "tied", "partitioned")
def test_with_the_rng_it_runs_on_sampled_parameters(case):
    bare, x, rules, _ = case
    wrapped = pqt_transform(bare, rules)
    variables = bare.init(make_key(), x)
    transform = param_transform(rules)
    bits = transform.init(variables["params"])
    variables = {**variables, "pqt": {"bits": bits}}  # a bare checkpoint with new bits
    eager = run(wrapped, variables, x, rngs={"pqt": make_key()})
    assert (eager != run(wrapped, variables, x)).any()
    np.testing.assert_array_equal(eager, run(wrapped, variables, x, rngs={"pqt": make_key()}))
    assert (eager != run(wrapped, variables, x, rngs={"pqt": jax.random.key(6)})).any()
    # param_transform samples the same ŵ from the key of the rng stream.
    params = transform.sample(variables["params"], bits, make_key())
    np.testing.assert_array_equal(run(bare, {**variables, "params": params}, x), eager)


@cases("scanned")
def test_gradients_under_jit_reach_weights_and_bits(case):
    bare, x, rules, _ = case
    wrapped = pqt_transform(bare, rules)
    variables = wrapped.init(make_key(), x)
    rest = {k: v for k, v in variables.items() if k not in ("params", "pqt")}

    @jax.jit
    def gradient(trained, key):
        def loss(trained):
            out = run(wrapped, {**trained, **rest}, x, rngs={"pqt": key})
            return jnp.mean(out.astype(jnp.float32) ** 2)

        return jax.grad(loss)(trained)

    grads = gradient({k: variables[k] for k in ("params", "pqt")}, make_key())
    for entries, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all()
        path = jax.tree_util.keystr(entries)
        if "pqt" in path or "head" in path or "dense" in path:
            assert (leaf != 0).any(), path


def test_a_wrapped_block_inside_scan_and_remat():
    rules = (Rule("kernel"),)
    model, bare = Scanned(rules), Scanned()
    variables, plain = model.init(make_key(), ACTIVATIONS), bare.init(make_key(), ACTIVATIONS)
    assert same(variables["params"], plain["params"])
    assert variables["pqt"]["h"]["dense"]["bits"]["kernel"].shape == (3, 2, 2)
    np.testing.assert_array_equal(
        model.apply(variables, ACTIVATIONS), bare.apply(plain, ACTIVATIONS)
    )

    def loss(variables, key):
        return jnp.sum(model.apply(variables, ACTIVATIONS, rngs={"pqt": key}) ** 2)

    value, grads = jax.jit(jax.value_and_grad(loss))(variables, make_key())
    np.testing.assert_allclose(value, loss(variables, make_key()), rtol=1e-5)
    assert value != loss(variables, jax.random.key(6))
    assert (grads["pqt"]["h"]["dense"]["bits"]["kernel"] != 0).all()
    # Each layer has its own noise: equal layers give different gradients of the bits.
    assert len(np.unique(grads["pqt"]["h"]["dense"]["bits"]["kernel"])) == 12


def test_two_blocks_of_one_parent_keep_their_names():
    class Parent(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = pqt_transform(nn.Dense(64), [Rule("kernel")])(x)
            return pqt_transform(nn.Dense(64, name="second"), [Rule("kernel", 3)])(x)

    variables = Parent().init(make_key(), ACTIVATIONS)
    assert set(variables["params"]) == {"Dense_0", "second"} == set(variables["pqt"])
    both = Parent().apply(variables, ACTIVATIONS, rngs={"pqt": make_key()})
    assert (both != Parent().apply(variables, ACTIVATIONS)).any()


def test_vmap_over_keys_gives_each_its_noise():
    model = pqt_transform(Tied(), [Rule("dense/kernel")])
    variables = model.init(make_key(), TOKENS)
    ks = jax.random.split(make_key(), 3)
    out = jax.vmap(lambda k: model.apply(variables, TOKENS, rngs={"pqt": k}))(ks)
    for k, row in zip(ks, out, strict=True):
        alone = model.apply(variables, TOKENS, rngs={"pqt": k})
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5)
    assert (out[0] != out[1]).any()


def test_another_method_can_be_called_sampled():
    model = pqt_transform(Tied(), [Rule("dense/kernel")])
    variables = model.init(make_key(), TOKENS)
    bare = Tied().apply({"params": variables["params"]}, TOKENS, method="encode")
    got = model.apply(variables, TOKENS, method="encode")
    np.testing.assert_array_equal(got, bare)
    assert (model.apply(variables, TOKENS, method="encode", rngs={"pqt": make_key()}) != bare).any()


def test_random_streams_are_those_of_the_bare_model():
    bare = nn.Sequential([nn.Dense(64), nn.Dropout(0.5, deterministic=False), nn.Dense(64)])
    rngs = {"params": make_key(), "dropout": jax.random.key(1)}
    wrapped = pqt_transform(bare, [Rule(".*kernel")])
    assert same(wrapped.init(rngs, ACTIVATIONS)["params"], bare.init(rngs, ACTIVATIONS)["params"])
    variables = bare.init(rngs, ACTIVATIONS)
    del rngs["params"]
    want = bare.apply(variables, ACTIVATIONS, rngs=rngs)
    np.testing.assert_array_equal(wrapped.apply(variables, ACTIVATIONS, rngs=rngs), want)
    zeros = want == 0  # dropout must not depend on the noise
    variables = wrapped.init({**rngs, "params": make_key()}, ACTIVATIONS)
    sampled = wrapped.apply(variables, ACTIVATIONS, rngs={**rngs, "pqt": make_key()})
    assert ((sampled == 0) == zeros).all() and (sampled != want).any()


def test_a_wrapped_attribute_of_setup_keeps_its_name():
    class Parent(nn.Module):
        def setup(self):
            self.block = pqt_transform(nn.Dense(64), [Rule("kernel")])

        def __call__(self, x):
            return self.block(x)

    variables = Parent().init(make_key(), ACTIVATIONS)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "block": {"kernel": (64, 64), "bias": (64,)}
    }
    out = Parent().apply(variables, ACTIVATIONS, rngs={"pqt": make_key()})
    assert (out != Parent().apply(variables, ACTIVATIONS)).any()


def test_errors():
    model = pqt_transform(Tied(), [Rule("dense/kernel")])
    params = Tied().init(make_key(), TOKENS)
    with pytest.raises(ValueError, match='no "pqt" collection'):
        model.apply(params, TOKENS, rngs={"pqt": make_key()})
    with pytest.raises(ValueError, match="Tied is wrapped already"):
        pqt_transform(model, [Rule("dense/kernel")])
    with pytest.raises(ValueError, match="matches no parameter"):
        pqt_transform(Tied(), [Rule("nothing")]).init(make_key(), TOKENS)
    with pytest.raises(ValueError, match="no rule decides about 'embed/embedding'"):
        pqt_transform(Tied(), [Rule("dense/.*")], strict=True).init(make_key(), TOKENS)
