# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sampling: the bits of ŵ and its gradients against the definition, also under transforms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import bit_width, blocks, formats
from pqt_jax.numerics.formats import FloatFormat
from pqt_jax.transform.perturb import Spec, perturb
from support import oracle

pytestmark = pytest.mark.jax_version

FORMATS = [
    *(formats.FP32, formats.BF16, formats.FP16, formats.E4M7, formats.E4M3, formats.E5M2),
    *(formats.E3M2, formats.E2M3, formats.E2M1, FloatFormat(8, 3)),
    *(FloatFormat(4, 3, "ieee"), FloatFormat(3, 4, "ieee")),
]
BITS = {"target_bits": 2.0, "init_bits": 6.3}  # gives b_t that are not integers
KEY = (0, 5)  # the words of jax.random.key(5)

# name: shape of w, (leads, M, N) of its matrices, fields of Spec
CASES = {
    "ragged": ((100, 70), (1, 100, 70), {}),
    "one element": ((1, 1), (1, 1, 1), {}),
    "just over a block": ((33, 31), (1, 33, 31), {}),
    "one column": ((32, 1), (1, 32, 1), {}),
    "stacked": ((3, 40, 33), (3, 40, 33), {}),
    "experts": ((2, 3, 33, 40), (6, 33, 40), {}),
    "attention query": ((40, 3, 16), (1, 40, 48), {"matrix_axes": (1, 2)}),
    "attention out, stacked": ((2, 3, 16, 40), (2, 48, 40), {"matrix_axes": (2, 1)}),
    "convolution": ((3, 3, 8, 40), (9, 8, 40), {}),
    "convolution as a matrix": ((3, 3, 8, 40), (1, 72, 40), {"matrix_axes": (3, 1)}),
    "blocks 1x32": ((100, 70), (1, 100, 70), {"block": (1, 32)}),
    "blocks 32x1": ((100, 70), (1, 100, 70), {"block": (32, 1)}),
    "blocks 16x64": ((100, 70), (1, 100, 70), {"block": (16, 64)}),
    "blocks 64x32": ((100, 70), (1, 100, 70), {"block": (64, 32)}),
    "blocks 128x128": ((100, 70), (1, 100, 70), {"block": (128, 128)}),
    "float32": ((100, 70), (1, 100, 70), {"dtype": "float32"}),
    "float4, 1x32": ((100, 70), (1, 100, 70), {"dtype": "float4_e2m1fn", "block": (1, 32)}),
    "bfloat16 w": ((100, 70), (1, 100, 70), {"w": jnp.bfloat16}),
    "bfloat16 w, stacked": ((2, 40, 33), (2, 40, 33), {"w": jnp.bfloat16, "block": (16, 64)}),
}


SLOW_CASES = {  # each value of their fields is also in a quick case
    *("just over a block", "one column", "stacked", "experts", "attention query", "convolution"),
    *("blocks 32x1", "blocks 128x128", "float32", "bfloat16 w"),
    *("attention out, stacked", "blocks 16x64", "blocks 64x32"),
}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def mark_slow(values, slow_values):
    return [slow(value) if value in slow_values else value for value in values]


def key():
    return jax.random.key(KEY[1])


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def widths(b_i, spec, matrices):
    """b_t as the library computes it, [leads, gm, gn]."""
    b_t = bit_width.bit_width(b_i, spec.target_bits, spec.init_bits)
    return b_t.reshape(matrices[0], *b_i.shape[-2:])


def literal(w, b_i, spec, matrices):
    """ŵ in float32, by loops over blocks."""
    step = np.asarray(bit_width.step_size(widths(b_i, spec, matrices)))
    r = oracle.noise(spec.noise, KEY, matrices)
    matrix = np.asarray(w, np.float32).reshape(matrices)
    return oracle.perturb(matrix, step, r, spec.dtype, spec.block, spec.scale).reshape(w.shape)


def same_bits(got, want):
    np.testing.assert_array_equal(oracle.bits_of(got), oracle.bits_of(want))


@pytest.mark.parametrize("name", mark_slow(CASES, SLOW_CASES))
def test_sampling_and_its_gradients_are_the_definition(name):
    shape, matrices, fields = CASES[name]
    fields = dict(fields)
    w = 0.02 * normal(shape, fields.pop("w", jnp.float32))
    spec = Spec(**BITS, **fields)
    grid = blocks.grid_shape(shape, spec.block, spec.matrix_axes)
    b_i = jnp.asarray(np.random.default_rng(1).uniform(-0.1, 1.1, grid), jnp.float32)
    cotangent = normal(shape, spec.storage, seed=2)

    @jax.jit
    def run(w, b_i, key, cotangent):
        w_hat, back = jax.vjp(lambda w, b_i: perturb(w, b_i, key, spec), w, b_i)
        return w_hat, *back(cotangent)

    w_hat, dw, db = run(w, b_i, key(), cotangent)

    assert w_hat.shape == shape and w_hat.dtype == spec.storage
    same_bits(np.asarray(w_hat, np.float32), literal(w, b_i, spec, matrices))

    assert dw.shape == shape and dw.dtype == w.dtype
    same_bits(dw, cotangent.astype(w.dtype))

    assert db.shape == grid and db.dtype == jnp.float32
    span = spec.init_bits - spec.target_bits
    b_t = spec.target_bits + np.asarray(b_i, np.float64).reshape(matrices[0], *grid[-2:]) * span
    r = oracle.noise("gauss", KEY, matrices)
    wide, g = (np.asarray(x, np.float64).reshape(matrices) for x in (w, cotangent))
    want, magnitude = oracle.bit_gradient(wide, b_t, r, g, spec.block)
    error = np.abs(np.asarray(db, np.float64).reshape(b_t.shape) - span * want)
    assert (error <= 1e-6 * span * magnitude).all()


def uneven_layers():
    """Three layers whose blocks differ in magnitude, and their bit-widths."""
    w = np.random.default_rng(0).normal(size=(3, 64, 70)).astype(np.float32)
    w[0, :32, :32] *= 2.0**-40
    w[1, 32:] *= 1000.0
    b_i = np.random.default_rng(1).uniform(size=(3, 2, 3)).astype(np.float32)
    return jnp.asarray(w), jnp.asarray(b_i)


def format_id(fmt):
    return f"{fmt}-{fmt.specials}"


@pytest.mark.parametrize("fmt", FORMATS, ids=format_id)
def test_every_format_is_the_definition(fmt):
    spec, (w, b_i) = Spec(**BITS, dtype=fmt), uneven_layers()
    w_hat = perturb(w, b_i, key(), spec)
    assert w_hat.dtype == (jnp.float32 if fmt.mantissa_bits > 7 else jnp.bfloat16)
    same_bits(np.asarray(w_hat, np.float32), literal(w, b_i, spec, (3, 64, 70)))


@pytest.mark.parametrize(
    "fmt",
    mark_slow(FORMATS, {*FORMATS} - {formats.BF16, formats.E4M3, formats.E2M1}),
    ids=format_id,
)
def test_the_bits_are_the_same_on_every_path(fmt):
    """One layer at a time, all at once, and under jit, vmap and scan."""
    spec, (w, b_i), layers = Spec(**BITS, dtype=fmt), uneven_layers(), jnp.arange(3)

    def one(w, b_i, lead):
        return perturb(w, b_i, key(), spec, lead=lead)

    direct = np.stack([one(w[i], b_i[i], i) for i in range(3)])
    same_bits(perturb(w, b_i, key(), spec), direct)

    @jax.jit
    def together(w, b_i):
        scanned = jax.lax.scan(lambda _, x: (None, one(*x)), None, (w, b_i, layers))[1]
        return one(w[1], b_i[1], 1), jax.vmap(one)(w, b_i, layers), scanned

    compiled, mapped, scanned = together(w, b_i)
    same_bits(compiled, direct[1])
    same_bits(mapped, direct)
    same_bits(scanned, direct)


@pytest.mark.parametrize("name", ["float4_e2m1fn", slow("float6_e3m2fn"), slow("float8_e4m3fn")])
def test_floor_scales_are_the_definition(name):
    spec = Spec(dtype=name, scale="floor")
    w, b_i = normal((64, 70)), jnp.ones((2, 3))
    w_hat = perturb(w, b_i, key(), spec)
    same_bits(np.asarray(w_hat, np.float32), literal(w, b_i, spec, (1, 64, 70)))
    assert (np.asarray(w_hat) != np.asarray(perturb(w, b_i, key(), Spec(dtype=name)))).any()


@pytest.mark.parametrize(("dtype", "half_ulp"), [("float32", 2**-24), ("bfloat16", 2**-8)])
def test_uniform_noise_is_the_definition_to_the_last_place(dtype, half_ulp):
    spec = Spec(**BITS, noise="uniform", dtype=dtype)
    w, b_i, matrices = normal((100, 70)), jnp.full((4, 3), 0.7), (1, 100, 70)
    step = 2.0 ** (1 - np.asarray(widths(b_i, spec, matrices), np.float64))
    wide, noise = np.asarray(w, np.float64)[None], oracle.noise("uniform", KEY, matrices).copy()
    for at, part in oracle.blocks(matrices, spec.block):
        noise[part] *= np.abs(wide[part]).max() * step[at]
    error = np.abs(np.asarray(perturb(w, b_i, key(), spec), np.float64) - (wide + noise)[0])
    bound = 2.0**-21 * np.abs(noise) + half_ulp * (np.abs(wide + noise) + 2.0**-21 * np.abs(noise))
    assert (error <= bound).all()


def test_keys_under_vmap_give_each_its_noise():
    w, b_i = normal((33, 31)), jnp.ones((2, 1))
    keys = jax.random.split(key(), 3)
    mapped = jax.vmap(lambda k: perturb(w, b_i, k))(keys)
    same_bits(mapped, np.stack([perturb(w, b_i, k) for k in keys]))
    assert (mapped[0] != mapped[1]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float4_e2m1fn", slow("float32")])
def test_a_block_of_zeros(dtype):
    spec = Spec(dtype=dtype)
    w = jnp.zeros((64, 32)).at[32:].set(0.5)
    w_hat, back = jax.vjp(lambda w, b: perturb(w, b, key(), spec), w, jnp.ones((2, 1)))
    dw, db = back(jnp.ones((64, 32), spec.storage))
    assert (w_hat[:32] == 0).all() and (w_hat[32:] != 0).all()
    assert (dw == 1).all() and np.isfinite(db).all()
    assert db[0, 0] == 0 and db[1, 0] != 0


def test_sign_of_zero_is_that_of_the_sum():
    w = np.full((32, 64), -0.0, np.float32)
    w[0, 0] = 1.0  # the first block gets noise; the second gets none
    w_hat = perturb(w, jnp.ones((1, 2)), key(), Spec(target_bits=6, dtype="float32"))
    r = oracle.noise("gauss", KEY, (1, 32, 64))[0].astype(np.float32)
    same_bits(w_hat, w + r * np.repeat(np.float32([1 / 32, 0]), 32))
    negative = np.signbit(w_hat)[:, 32:]
    assert negative.any() and not negative.all()
    assert np.signbit(perturb(w, None, None, Spec(noise="none")))[0, 1:].all()


@pytest.mark.parametrize(
    ("dtype", "noise"),
    [
        ("bfloat16", "gauss"),
        ("float4_e2m1fn", "gauss"),
        ("float32", "uniform"),
        ("float4_e2m1fn", "none"),
        slow("float32", "gauss"),
        *(slow(dtype, "uniform") for dtype in ("bfloat16", "float4_e2m1fn")),
        *(slow(dtype, "none") for dtype in ("bfloat16", "float32")),
    ],
)
def test_non_finite_weights_stay_visible_and_in_their_block(dtype, noise):
    spec = Spec(dtype=dtype, noise=noise)
    w = normal((3, 100, 70))
    for i, bad in enumerate([math.nan, math.inf, -math.inf]):
        w = w.at[i, 40, 40].set(bad)
    w_hat = np.asarray(perturb(w, jnp.ones((3, 4, 3)), key(), spec), np.float32)
    assert not np.isfinite(w_hat[:, 40, 40]).any()
    outside = np.ones((100, 70), bool)
    outside[32:64, 32:64] = False
    assert np.isfinite(w_hat[:, outside]).all()
    if spec.dtype.exponent_bits < 8:  # the whole block shares one scale
        assert np.isnan(w_hat[:, ~outside]).all()


def test_bfloat16_is_not_widened_back_under_jit():
    w, b_i = normal((100, 70)), jnp.ones((4, 3))
    for spec in (Spec(), Spec(noise="none"), Spec(noise="uniform")):
        wide = jax.jit(lambda w, spec=spec: perturb(w, b_i, key(), spec).astype(jnp.float32))(w)
        assert (oracle.bits_of(wide) & 0xFFFF == 0).all()
        same_bits(wide, np.asarray(perturb(w, b_i, key(), spec), np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_bits": 7.0}, "target_bits=7.0, init_bits=6.0; they must be numbers, 1 <="),
        ({"init_bits": 17.0}, "init_bits=17.0"),
        ({"block": (24, 32)}, r"block=\(24, 32\); it must be two integers"),
        ({"noise": "normal"}, "noise='normal'; it must be one of gauss, uniform, none"),
        ({"scale": "round"}, "scale='round'; it must be one of floor, ceil"),
        ({"dtype": "float64"}, "dtype='float64' names no format"),
        ({"matrix_axes": (0, 1)}, r"matrix_axes=\(0, 1\); it must be two integers of at least 1"),
    ],
)
def test_spec_names_the_field_it_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Spec(**fields)


def test_perturb_refuses():
    w = jnp.ones((100, 70))
    with pytest.raises(ValueError, match=r"bits of shape \(3, 3\) for w .*32x32 need \(4, 3\)"):
        perturb(w, jnp.ones((3, 3)), key())
    with pytest.raises(ValueError, match=r"no bits for w .* need \(4, 3\)"):
        perturb(w, None, key())
    with pytest.raises(TypeError, match="w has dtype float16; master weights must be float32 or"):
        perturb(w.astype(jnp.float16), jnp.ones((4, 3)), key())
    with pytest.raises(ValueError, match="does not fit a parameter of shape"):
        perturb(jnp.ones(7), jnp.ones((1, 1)), key())
    assert hash(Spec(dtype="bfloat16")) == hash(Spec()) and Spec(block=[32, 32]) == Spec()


def test_the_lead_is_an_index():
    w, b_i = jnp.ones((32, 32)), jnp.ones((1, 1))
    for lead in (1.5, "1"):
        with pytest.raises(TypeError, match=f"lead={lead!r}; it must be the index"):
            perturb(w, b_i, jax.random.key(0), lead=lead)
    for lead in (-1, 2**32, np.arange(2), np.int64(-1), jnp.int32(-1)):
        with pytest.raises(ValueError, match="it must be one index of a matrix, from 0"):
            perturb(w, b_i, jax.random.key(0), lead=lead)


def test_a_part_of_a_matrix_is_sampled_as_its_origin_says():
    w, b_i, spec = jax.random.normal(key(), (96, 80)), jnp.ones((3, 10)), Spec(block=(32, 8))
    whole = perturb(w, b_i, key(), spec)
    part = perturb(w[32:, 16:], b_i[1:, 2:], key(), spec, origin=(32, 16))
    np.testing.assert_array_equal(part, whole[32:, 16:])
    for origin, message in (
        (32, r"origin=32; it must be \(row, column\)"),
        ((16, 0), r"origin\[0\]=16; it must be a multiple of 32"),
        ((0, 4), r"origin\[1\]=4; it must be a multiple of 8"),
        ((0.0, 0), r"origin\[0\]=0.0; it must be the index of a row, an integer"),
        ((0, -8), r"origin\[1\]=-8; it must be one index of a column, from 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            perturb(w, b_i, key(), spec, origin=origin)


def test_blocks_larger_than_a_matrix_are_one_block_of_it():
    w = jax.random.normal(key(), (40, 70))
    same = [
        jax.value_and_grad(lambda b, s=s: perturb(w, b, key(), s).astype(jnp.float32).sum())
        for s in (Spec(block=(64, 96)), Spec(block=(2**15, 2**15)))
    ]
    compiled = jax.jit(same[1]).lower(jnp.ones((1, 1))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e6  # far below four bytes times 2^30
    (one, first), (other, second) = (f(jnp.ones((1, 1))) for f in same)
    assert one == other and first == second
