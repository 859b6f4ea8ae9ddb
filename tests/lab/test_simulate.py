# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Reduced operands: every bfloat16 in every format, the three products, and whole models."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from pqt_jax import Rule, pqt_transform
from pqt_jax.lab.gemms import Gemm, gemm
from pqt_jax.lab.operands import Operand, reduce, truncate
from pqt_jax.lab.simulate import simulate
from pqt_jax.models import GPT2Config, Llama2, Llama2Config
from pqt_jax.models.gpt2 import GPT2
from pqt_jax.numerics import cast
from pqt_jax.numerics.formats import BF16, E2M1, E4M3, E5M2, FloatFormat
from support.random_model import make_abstract, make_random

FORMATS = [E5M2, E4M3, E2M1, *(FloatFormat(*em) for em in ((8, 5), (8, 3), (8, 1), (7, 7), (1, 2)))]
NUMBERS = (((1,), (0,)), ((), ()))


def all_bfloat16():
    return jnp.asarray(np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16))


def non_negative_values(fmt):
    """The finite values of a format that are 0 or larger, in ascending order."""
    if fmt.exponent_bits < 8:
        return np.unique(fmt.decode(np.arange(fmt.max_code + 1)).astype(np.float64))
    words = np.arange(0, 0x7F80, 1 << (7 - fmt.mantissa_bits), dtype=np.uint32) << 16
    return words.view(np.float32).astype(np.float64)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_truncation_takes_the_next_value_below_for_every_bfloat16(fmt):
    x = all_bfloat16()
    normal = np.abs(np.asarray(x, np.float32)) >= 2.0**-126  # a CPU flushes subnormals to 0
    got = np.asarray(truncate(x, fmt).astype(jnp.float32))
    with np.errstate(invalid="ignore"):  # signaling NaNs
        wide = np.asarray(x.astype(jnp.float32), np.float64)
        values = non_negative_values(fmt)
    finite = np.isfinite(wide) & normal
    below = values[np.searchsorted(values, np.abs(wide[finite]), side="right") - 1]
    np.testing.assert_array_equal(np.abs(got[finite]), below)
    np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(wide[finite]))
    assert np.isnan(got[np.isnan(wide)]).all()
    infinite = np.inf if fmt.exponent_bits == 8 else fmt.max
    np.testing.assert_array_equal(np.abs(got[np.isinf(wide)]), infinite)


def test_reducing_to_bfloat16_changes_no_bit():
    x = all_bfloat16()
    for operand in (Operand(BF16), Operand(BF16, "nearest")):
        same = np.asarray(reduce(x[None], operand)[0]).view(np.uint16)
        known = ~np.isnan(np.asarray(x, np.float32))
        np.testing.assert_array_equal(same[known], np.asarray(x).view(np.uint16)[known])


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_nearest_rounds_as_cast_does(fmt):
    x = np.random.default_rng(0).normal(size=(70, 50)).astype(np.float32) * 3
    np.testing.assert_array_equal(reduce(x, Operand(fmt, "nearest")), cast.round_to(x, fmt))


@pytest.mark.parametrize(
    "rounding, rule",
    [*itertools.product(["truncate", "nearest"], ["floor", "ceil"]), ("nearest", "exact")],
)
def test_each_block_has_its_own_scale(rounding, rule):
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    operand = Operand(E4M3, rounding, rule, block=(2, 4))
    got = np.asarray(jax.jit(reduce, static_argnums=1)(x, operand))
    plain = {"truncate": truncate, "nearest": cast.round_to}[rounding]

    @jax.jit
    def reduce_block(block):
        scale = cast.block_scale(jnp.max(jnp.abs(block)), E4M3, rule)
        return plain(block / scale, E4M3) * scale

    for i, r, c in itertools.product(range(3), (0, 2, 4), (0, 4)):
        want = reduce_block(x[i, r : r + 2, c : c + 4])
        np.testing.assert_array_equal(got[i, r : r + 2, c : c + 4], want)


def operands(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((5, 8), (8, 6), (5, 6))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("scale", [None, "ceil"])
def test_the_three_products_have_the_right_operands(scale):
    formats = {"activations": E4M3, "weights": E2M1, "gradients": E5M2}
    layer = Gemm(**{name: Operand(fmt, "truncate", scale) for name, fmt in formats.items()})
    # A layer that reduces one operand leaves the others as they are.
    single = [Gemm(**{name: getattr(layer, name)}) for name in formats]

    @jax.jit
    def products(x, w, dy):
        def results(gemm):
            y, pull = jax.vjp(lambda x, w: gemm(x, w, NUMBERS), x, w)
            return y, *pull(dy)

        def expected(gemm):
            named = {"activations": x, "weights": w, "gradients": dy}
            a, b, c = (reduce(value, getattr(gemm, name)) for name, value in named.items())
            return a @ b, c @ b.T, a.T @ c

        return [(results(gemm), expected(gemm)) for gemm in (layer, *single)]

    for results, expected in products(*operands()):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_products_of_other_shapes_have_the_same_blocks():
    """An operand with batch axes or several summed axes is reduced as the matrix it stands for."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 40, 3, 4), (2, 3, 4, 50)))
    layer = gemm("E4M3", "nearest", "ceil")
    numbers = (((2, 3), (1, 2)), ((0,), (0,)))
    y, pull = jax.vjp(lambda x, w: layer(x, w, numbers), x, w)
    dy = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    dx, dw = pull(dy)
    for i in range(2):
        matrices = x[i].reshape(40, 12), w[i].reshape(12, 50)
        wy, pull = jax.vjp(functools.partial(layer, dimension_numbers=NUMBERS), *matrices)
        wx, ww = pull(dy[i])
        wanted = (wy, wx.reshape(40, 3, 4), ww.reshape(3, 4, 50))
        for got, want in zip((y[i], dx[i], dw[i]), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_dtypes_of_results_and_gradients_are_those_of_dot_general():
    x, w, _ = operands(dtype=jnp.bfloat16)
    layer = gemm("E4M3")
    product = functools.partial(layer, dimension_numbers=NUMBERS)
    wide = functools.partial(product, preferred_element_type=jnp.float32)
    assert jax.eval_shape(wide, x, w).dtype == jnp.float32
    assert jax.eval_shape(product, x, w).dtype == jnp.bfloat16

    def loss(x, w):
        return product(x, w).astype(jnp.float32).sum()

    grads = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2


LLAMA = Llama2Config(64, d_model=32, num_layers=2, num_heads=2, d_ff=64)
TOKENS = np.arange(16).reshape(2, 8)


def mean_loss(model, **options):
    return -jax.nn.log_softmax(model(TOKENS, **options))[..., 0].mean()


def jitted_loss(model, **options):
    graph, params = nnx.split(model)
    return float(jax.jit(lambda p, o: mean_loss(nnx.merge(graph, p), **o))(params, options))


def gradients(model, **options):
    graph, params = nnx.split(model)
    return jax.tree.leaves(
        jax.jit(jax.grad(lambda p: mean_loss(nnx.merge(graph, p), **options)))(params)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_operands_in_bfloat16_change_no_bit_of_a_model(name):
    gpt2 = GPT2Config(64, 32, 2, 2, 64)
    cls, config = {"llama2": (Llama2, LLAMA), "gpt2": (GPT2, gpt2)}[name]
    model = cls(config, rngs=nnx.Rngs(0))
    same = simulate(model, {"h/.*/kernel": gemm(BF16)})
    for a, b in zip(gradients(model), gradients(same), strict=True):
        np.testing.assert_array_equal(a, b)
    coarse = simulate(model, {"h/.*/kernel": gemm("E5M2")})
    assert any((a != b).any() for a, b in zip(gradients(model), gradients(coarse), strict=True))
    assert (mean_loss(model) != mean_loss(coarse)) and model.h.mlp is not coarse.h.mlp


def test_rules_choose_layers_and_the_head():
    model = make_random(Llama2, LLAMA)
    coarse = gemm("E2M1")
    both = simulate(model, {".*kernel": coarse})
    few = simulate(model, {"h/attn/(q|k)/kernel": coarse, "head/kernel": None})
    assert both.head.dot_general == both.h.mlp.up.dot_general == coarse
    assert few.h.attn.k.dot_general == coarse
    assert few.h.attn.v.dot_general == model.h.attn.v.dot_general == jax.lax.dot_general
    assert len({jitted_loss(m) for m in (model, both, few)}) == 3


def test_sampling_and_reducing_commute():
    rules, layer, key = [Rule(".*kernel")], {".*kernel": gemm("E4M3")}, jax.random.key(3)

    class Two(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(40, 33, rngs=rngs), nnx.Linear(33, 2, rngs=rngs)

        def __call__(self, x):
            return self.b(jax.nn.relu(self.a(x)))

    model, x = Two(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (4, 40))
    sampled = pqt_transform(model, rules)
    outputs = {
        name: jitted(wrapped, x, pqt_key=key)
        for name, wrapped in {
            "reduced first": pqt_transform(simulate(model, layer), rules),
            "reduced last": simulate(sampled, layer),
            "sampled only": sampled,
        }.items()
    }
    np.testing.assert_array_equal(outputs["reduced first"], outputs["reduced last"])
    assert (outputs["reduced first"] != outputs["sampled only"]).any()
    assert (outputs["reduced first"] != jitted(simulate(model, layer), x)).any()


def jitted(model, x, **options):
    graph, params = nnx.split(model)
    return jax.jit(lambda p, x, o: nnx.merge(graph, p)(x, **o))(params, x, options)


@pytest.mark.slow
def test_a_model_that_samples_can_be_reduced():
    sampled = Llama2(LLAMA, [Rule("h/.*/kernel")], rngs=nnx.Rngs(0))
    reduced = simulate(sampled, {"h/.*/kernel": gemm("E4M3")})
    key = jax.random.key(3)
    assert jitted_loss(sampled, pqt_key=key) != jitted_loss(reduced, pqt_key=key)


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(16, name="in")(x))
        return linen.DenseGeneral((2, 3), name="out")(x)


def test_linen_models_are_reduced_by_the_same_rules():
    model, x = Dense(), jax.random.normal(jax.random.key(0), (4, 8))
    coarse = simulate(model, {"in/kernel": gemm("E2M1"), ".*": None})
    variables = jax.jit(coarse.init)(jax.random.key(1), x)
    bare = jax.jit(model.init)(jax.random.key(1), x)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, bare))
    p = jax.tree.map(np.asarray, variables["params"])

    @jax.jit
    def expected(x):
        hidden = gemm("E2M1")(x, p["in"]["kernel"], NUMBERS) + p["in"]["bias"]
        out = jnp.einsum("bi,ijk->bjk", jax.nn.relu(hidden), p["out"]["kernel"])
        return out + p["out"]["bias"]

    got = jax.jit(coarse.apply)(variables, x)
    np.testing.assert_allclose(got, expected(x), rtol=1e-6)
    assert (got != jax.jit(model.apply)(variables, x)).any()


def test_linen_models_sample_and_reduce_in_either_order():
    x, rules, layer = np.ones((4, 8), np.float32), [Rule(".*kernel")], {".*/kernel": gemm("E2M1")}
    reduced_last = simulate(pqt_transform(Dense(), rules), layer)
    reduced_first = pqt_transform(simulate(Dense(), layer), rules)
    variables = jax.jit(reduced_last.init)(jax.random.key(1), x)

    def outputs(model):
        apply = functools.partial(model.apply, rngs={"pqt": jax.random.key(5)})
        return jax.jit(apply)(variables, x)

    np.testing.assert_array_equal(outputs(reduced_last), outputs(reduced_first))


class ConvThenDense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.Conv(2, (3, 3))(x))


def test_a_linen_convolution_next_to_a_dense_layer_is_left_alone():
    rules = {"Dense.*/kernel": gemm("E4M3")}
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 2))
    variables = jax.jit(ConvThenDense().init)(jax.random.key(0), x)
    models = (ConvThenDense(), simulate(ConvThenDense(), rules))
    plain, reduced = (jax.jit(model.apply)(variables, x) for model in models)
    assert not np.array_equal(plain, reduced)


@pytest.mark.parametrize("scale", [None, "ceil"])
def test_an_empty_batch_stays_empty(scale):
    layer = gemm("E4M3", scale=scale)
    y = layer(jnp.ones((0, 8)), jnp.ones((8, 4)), (((1,), (0,)), ((), ())))
    assert y.shape == (0, 4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: gemm("E0M3"), "exponent_bits=0"),
        (lambda: gemm("E4"), "dtype='E4' names no format"),
        (lambda: gemm(FloatFormat(0, 3)), "exponent_bits=0"),
        (lambda: Operand("E4M3", "up"), "rounding='up'"),
        (lambda: Operand("E4M3", scale="most"), "scale='most'"),
        (lambda: Operand("E4M3", "truncate", "exact"), "scale='exact'"),
        (lambda: simulate(make_abstract(Llama2, LLAMA), {"x.*": gemm("E4M3")}), "no kernel"),
        (lambda: simulate(make_abstract(Llama2, LLAMA), {"(": gemm("E4M3")}), "compile"),
        (lambda: simulate(make_abstract(Llama2, LLAMA), {".*": gemm("E4M3")}), "dot_general"),
        (lambda: simulate(make_abstract(Llama2, LLAMA), {".*": E4M3}), "a Gemm or None"),
        (lambda: simulate({}, {}), "NNX or Linen"),
        (lambda: simulate(Dense(), [gemm("E4M3")]), "a dict of patterns"),
        (lambda: simulate(Dense(), {3: gemm("E4M3")}), "a dict of patterns"),
        (lambda: Gemm("E4M3"), "activations='E4M3'"),
        (
            lambda: simulate(ConvThenDense(), {".*/kernel": gemm("E4M3")}).init(
                jax.random.key(0), jnp.ones((1, 4, 4, 2))
            ),
            "'Conv_0/kernel' is a parameter of a Conv",
        ),
        (lambda: simulate(Dense(), {"no": None}).init(jax.random.key(0), jnp.ones((1, 8))), "'no'"),
    ],
)
def test_what_cannot_be_reduced_is_refused_by_name(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
