# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rounding at every boundary of every format, against ml_dtypes or an enumeration; block scales."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pqt_jax.numerics import blocks, cast, formats
from pqt_jax.numerics.formats import FloatFormat
from pqt_jax.transform.perturb import Spec, perturb
from support import oracle

pytestmark = pytest.mark.jax_version

TYPED = [
    *(formats.BF16, formats.FP16, formats.E4M3, formats.E5M2, formats.E3M2, formats.E2M3),
    *(formats.E2M1, FloatFormat(4, 3, "ieee"), FloatFormat(3, 4, "ieee")),
]
UNTYPED = [formats.E4M7] + [
    FloatFormat(e, m) for e, m in [(5, 3), (3, 3), (8, 4), (8, 3), (7, 7), (1, 2), (6, 9)]
]
SCALED = [fmt for fmt in TYPED + UNTYPED if fmt.exponent_bits < 8]
NARROW = [fmt for fmt in TYPED + UNTYPED if fmt.mantissa_bits <= 7]
EAGER = {formats.BF16, formats.E2M1, formats.E4M7}  # tested eagerly, too
ids = functools.partial(map, lambda fmt: f"{fmt}-{fmt.specials}")
round_under_jit = jax.jit(cast.round_to, static_argnums=1)
quiet = functools.partial(np.errstate, invalid="ignore")  # NumPy's casts warn about some NaNs


@functools.cache
def inputs(fmt):
    """float32: all values, all ties, one ulp either side, the ends, and a million bit patterns."""
    values = oracle.grid(fmt)
    over = (
        values[-1] + (values[-1] - values[-2]) / 2
    )  # would be a tie if the grid had one value more
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, [over]]).astype(np.float32)
    near = [np.nextafter(points, np.float32(to)) for to in (-np.inf, np.inf)]
    ends = np.array([np.inf, np.nan, 1e-45, 1.1754942e-38, 3.4028235e38], np.float32)
    both = np.concatenate([points, *near, ends])
    patterns = np.random.default_rng(1).integers(2**32, size=2**20, dtype=np.uint32)
    return np.concatenate([both, -both, patterns.view(np.float32)])


def same_bits(got, want):
    """Equal bits, except that a NaN may have any bits."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype
    with quiet():
        nan = np.isnan(want)
        np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(oracle.bits_of(got)[~nan], oracle.bits_of(want)[~nan])


@pytest.mark.parametrize("fmt", TYPED, ids=ids(TYPED))
def test_round_to_agrees_with_ml_dtypes(fmt):
    x = inputs(fmt)
    with quiet():
        want = np.clip(x, -fmt.max, fmt.max).astype(fmt.dtype).astype(np.float32)
    want = np.where(np.isnan(x), x, want)
    same_bits(round_under_jit(x, fmt), want)
    if fmt in EAGER:
        same_bits(cast.round_to(x, fmt), want)


@pytest.mark.parametrize("fmt", UNTYPED, ids=ids(UNTYPED))
def test_round_to_agrees_with_enumeration(fmt):
    x = inputs(fmt)
    with quiet():
        want = oracle.round_to(x, fmt).astype(np.float32)
    same_bits(round_under_jit(x, fmt), want)
    if fmt in EAGER:
        same_bits(cast.round_to(x, fmt), want)


@pytest.mark.parametrize("fmt", [formats.E2M1, formats.E4M3, formats.E3M2], ids=str)
def test_enumeration_agrees_with_ml_dtypes(fmt):
    x = inputs(fmt)[: -(2**20)]
    x = x[np.isfinite(x)]
    want = np.clip(x, -fmt.max, fmt.max).astype(fmt.dtype).astype(np.float64)
    np.testing.assert_array_equal(oracle.round_to(x, fmt), want)


@pytest.mark.parametrize("fmt", NARROW, ids=ids(NARROW))
def test_round_to_of_every_bfloat16(fmt):
    x = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    with quiet():
        wide = x.astype(np.float32)
        want = oracle.round_to(wide, fmt)
        if fmt.dtype is not None:
            want = np.clip(wide, -fmt.max, fmt.max).astype(fmt.dtype).astype(np.float32)
        want = np.where(np.isnan(wide), np.nan, want).astype(ml_dtypes.bfloat16)
    same_bits(round_under_jit(x, fmt), want)


@pytest.mark.parametrize("fmt", TYPED + UNTYPED + [formats.FP32], ids=str)
def test_round_to_at_the_ends(fmt):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    want = np.array([0.0, -0.0, fmt.max, -fmt.max, np.nan], np.float32)
    same_bits(round_under_jit(x, fmt), want)


def test_round_to_takes_names_and_refuses_dtypes_that_cannot_hold_the_format():
    assert cast.round_to(jnp.array([0.3]), "float4_e2m1fn").tolist() == [0.5]
    for dtype in (jnp.float16, jnp.int32):
        with pytest.raises(TypeError, match=f"{np.dtype(dtype)} is not served; give float32 or"):
            cast.round_to(jnp.ones(3, dtype), formats.E2M1)
    for fmt in (formats.FP16, formats.FP32, FloatFormat(8, 8)):
        with pytest.raises(ValueError, match=f"bfloat16 cannot hold {fmt}; give x as float32"):
            cast.round_to(jnp.ones(3, jnp.bfloat16), fmt)


def test_round_to_bfloat16_agrees_with_ml_dtypes():
    x = inputs(formats.BF16)
    with quiet():
        want = x.astype(ml_dtypes.bfloat16)
    same_bits(cast.round_to_bfloat16(x), want)
    nan = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFC00000], np.uint32).view(np.float32)
    rounded = np.asarray(cast.round_to_bfloat16(nan))
    assert np.isnan(rounded.astype(np.float32)).all()
    assert np.signbit(rounded).tolist() == [False, False, True, True]
    assert float(cast.round_to_bfloat16(jnp.float32(-3.4e38))) == -math.inf


def test_round_to_bfloat16_is_not_dropped_under_jit():
    x = np.random.default_rng(2).normal(size=4096).astype(np.float32)
    back = jax.jit(lambda x: cast.round_to_bfloat16(x).astype(jnp.float32))(x)
    same_bits(back, x.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "absmax", "floor", "ceil"),
    [
        ("float4_e2m1fn", 6.0, 0, 0),
        ("float4_e2m1fn", 7.0, 0, 1),  # OCP: the block maximum saturates at 6
        ("float4_e2m1fn", 8.0, 1, 1),
        ("float4_e2m1fn", 1.0, -2, -2),
        ("float4_e2m1fn", 0.75, -3, -3),
        ("float6_e2m3fn", 7.5, 0, 0),
        ("float6_e2m3fn", 7.6, 0, 1),
        ("float6_e3m2fn", 28.0, 0, 0),
        ("float6_e3m2fn", 31.0, 0, 1),
        ("float8_e4m3fn", 448.0, 0, 0),
        ("float8_e4m3fn", 500.0, 0, 1),
        ("float8_e4m3fn", 1.0, -8, -8),
        ("float8_e4m3fn", 1.9, -8, -7),
        ("float8_e5m2", 57344.0, 0, 0),
        ("float8_e5m2", 1.0, -15, -15),
    ],
)
def test_block_scale_examples(name, absmax, floor, ceil):
    fmt = formats.as_format(name)
    assert float(cast.block_scale(jnp.float32(absmax), fmt, "floor")) == 2.0**floor
    assert float(cast.block_scale(jnp.float32(absmax), fmt, "ceil")) == 2.0**ceil


@pytest.mark.parametrize("fmt", SCALED, ids=ids(SCALED))
def test_block_scale_is_the_definition(fmt):
    rng = np.random.default_rng(3)
    low, high = max(-100, fmt.emax - 124), min(100, 125 - fmt.emax)  # no clipping, no overflow
    powers = 2.0 ** np.arange(low, high)
    random = rng.uniform(1, 2, 1000) * 2.0 ** rng.integers(low, high, 1000)
    edges = np.concatenate([powers, fmt.max * powers, random]).astype(np.float32)
    absmax = np.concatenate([edges, *(np.nextafter(edges, np.float32(to)) for to in (0, np.inf))])
    floor, ceil = (
        np.asarray(cast.block_scale(absmax, fmt, rule), np.float64) for rule in ("floor", "ceil")
    )
    exponent = np.frexp(absmax)[1] - 1  # ⌊log2 absmax⌋, exactly
    np.testing.assert_array_equal(floor, 2.0 ** (exponent - math.floor(math.log2(fmt.max))))
    assert (np.frexp(ceil)[0] == 0.5).all()
    assert (absmax <= fmt.max * ceil).all() and (absmax > fmt.max * ceil / 2).all()


@pytest.mark.parametrize(
    ("fmt", "rule", "high"),
    [
        (formats.E2M1, "floor", 125),
        (formats.E2M1, "ceil", 125),  # 4 · 2^126 would be Inf
        (formats.E4M3, "floor", 119),
        (formats.E4M3, "ceil", 119),
        (FloatFormat(1, 2), "floor", 126),
        (FloatFormat(1, 2), "ceil", 126),  # with 127, the inverse would be subnormal
    ],
    ids=str,
)
def test_block_scale_at_the_ends(fmt, rule, high):
    absmax = np.array([0.0, 1e-45, 1.1754942e-38, 3.4028235e38, np.inf, np.nan], np.float32)
    scale = cast.block_scale(absmax, fmt, rule)
    np.testing.assert_array_equal(scale, [2.0**-126] * 3 + [2.0**high, np.nan, np.nan])


@pytest.mark.parametrize("rule", ["floor", "ceil"])
@pytest.mark.parametrize("fmt", SCALED, ids=ids(SCALED))
def test_round_scaled_rounds_on_the_scaled_grid_and_ceil_never_saturates(fmt, rule):
    rng = np.random.default_rng(4)
    w = rng.normal(size=(512, 16)) * 2.0 ** rng.integers(-60, 61, (512, 1))
    w = w.astype(np.float32)
    absmax = np.abs(w).max(axis=1, keepdims=True)
    scale = cast.block_scale(absmax, fmt, rule)
    got = np.asarray(cast.round_scaled(w, scale, fmt), np.float64)
    ratio = w / np.asarray(scale, np.float64)
    np.testing.assert_array_equal(got, oracle.round_to(ratio, fmt) * np.asarray(scale, np.float64))
    saturated = np.abs(ratio).max(axis=1) > fmt.max
    if rule == "ceil":
        assert not saturated.any()
    elif fmt.max < 2.0**fmt.emax * 1.9:
        assert saturated.any()


@pytest.mark.parametrize("rule", ["floor", "ceil", "exact"])
@pytest.mark.parametrize("fmt", SCALED, ids=ids(SCALED))
def test_the_largest_weights_stay_finite(fmt, rule):
    w = np.array([2.5e38, 2.9e38, 3.2e38, 3.4e38], np.float32)
    got = np.asarray(cast.round_scaled(w, cast.block_scale(w, fmt, rule), fmt, rule))
    assert (got >= w / 2).all() and np.isfinite(got).all()


def test_round_scaled_at_the_ends():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 100.0, -0.0], jnp.float32)
    assert cast.round_scaled(x, jnp.float32(4), formats.E2M1).tolist()[:2] == [24.0, -24.0]
    same_bits(
        cast.round_scaled(x[2:], jnp.float32(4), formats.E2M1),
        np.array([np.nan, 24.0, -0.0], np.float32),
    )
    assert np.isnan(cast.round_scaled(x, jnp.float32(jnp.nan), formats.E2M1)).all()


@pytest.mark.parametrize(
    "fmt",
    [
        fmt if fmt in EAGER else pytest.param(fmt, marks=pytest.mark.slow)
        for fmt in TYPED + [formats.FP32]
    ],
    ids=ids(TYPED + [formats.FP32]),
)
def test_to_ml_dtypes_of_sampled_weights(fmt):
    w = jax.random.normal(jax.random.key(0), (1, 64, 96)) * 0.02
    spec = Spec(target_bits=3, init_bits=3, dtype=fmt)
    w_hat = np.asarray(perturb(w, jnp.zeros((1, 2, 3)), jax.random.key(1), spec), np.float32)
    scale = np.float32(1)
    if fmt.exponent_bits < 8:
        absmax = blocks.block_absmax(w, spec.block)
        scale = np.asarray(blocks.spread(cast.block_scale(absmax, fmt, spec.scale), spec.block))
    stored = cast.to_ml_dtypes(w_hat / scale, fmt)
    assert stored.dtype == fmt.dtype and stored.shape == w.shape
    same_bits(stored.astype(np.float32) * scale, w_hat)
    assert len(np.unique(w_hat / scale)) > min(8, 2**fmt.bits // 2)


@pytest.mark.parametrize(
    ("value", "fmt", "message"),
    [
        (0.3, formats.E2M1, r"0\.3\d* at \(1, 0\) is not a value of E2M1"),
        (8.0, formats.E2M1, r"8\.0 at \(1, 0\) is not a value of E2M1"),
        (math.inf, formats.E4M3, r"inf at \(1, 0\) is not a value of E4M3"),
        (math.nan, formats.E3M2, r"nan at \(1, 0\) is not a value of E3M2"),
        (1.0, formats.E4M7, "no type for E4M7"),
        (1 + 2.0**-40, formats.E2M1, r"at \(1, 0\) is not a value of E2M1"),  # only float64 has it
        (1e300, formats.E5M2, r"at \(1, 0\) is not a value of E5M2"),
    ],
)
def test_to_ml_dtypes_refuses_values_off_the_grid(value, fmt, message):
    with pytest.raises(ValueError, match=message):
        cast.to_ml_dtypes(np.array([[1.0], [value]]), fmt)


def test_to_ml_dtypes_keeps_zero_signs_and_nan_where_there_is_one():
    stored = cast.to_ml_dtypes(np.array([-0.0, 0.0, np.nan], np.float32), formats.E4M3)
    assert stored.view(np.uint8).tolist()[:2] == [0x80, 0] and np.isnan(stored[2])


def test_without_mantissa_ties_go_up_as_in_e8m0():
    x = np.float32([1.5, 3, 6, 12, 1.49, 2.99, 2.0**-125 * 1.5])
    want = x.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(cast.round_to(x, FloatFormat(8, 0)), want)
    for exponent_bits in (5, 7):
        got = cast.round_to(x[:6], FloatFormat(exponent_bits, 0))
        np.testing.assert_array_equal(got, want[:6])


@pytest.mark.parametrize("fmt", SCALED, ids=ids(SCALED))
def test_codes_decode_to_the_values_they_came_from(fmt):
    """Every finite code of the format, both signs, and NaN."""
    largest = 1 << (fmt.bits - 1)
    codes = np.concatenate([np.arange(fmt.max_code + 1), largest + np.arange(fmt.max_code + 1)])
    codes = codes.astype(np.uint32)
    values = jnp.asarray(fmt.decode(codes), jnp.float32)
    np.testing.assert_array_equal(cast.encode(values, fmt), codes)
    code = int(jax.jit(cast.encode, static_argnums=1)(jnp.float32(np.nan), fmt))
    assert code == fmt.nan_code
    if fmt.dtype is not None and fmt.specials != "none" and fmt.bits == 8:
        with quiet():
            assert np.isnan(np.uint8(code).view(fmt.dtype).astype(np.float32))


@pytest.mark.parametrize("fmt", SCALED, ids=ids(SCALED))
def test_codes_are_those_of_the_rounded_values(fmt):
    """Ties between all neighbours, values beside them, and what saturates or is too small."""
    grid = fmt.decode(np.arange(fmt.max_code + 1, dtype=np.uint32)).astype(np.float32)
    ties = (grid[1:] + grid[:-1]) / 2
    beside = [np.nextafter(ties, np.float32(end)) for end in (0, np.inf)]
    other = np.float32([fmt.max * 1.5, 3e38, np.inf, 1e-30, 1e-40])
    x = np.concatenate([ties, *beside, other])
    x = jnp.asarray(np.concatenate([x, -x]))
    codes = np.asarray(cast.encode(x, fmt))
    rounded = np.asarray(cast.round_to(x, fmt))
    np.testing.assert_array_equal(fmt.decode(codes).astype(np.float32), rounded)
    np.testing.assert_array_equal(codes >> (fmt.bits - 1), np.signbit(np.asarray(x)))


def test_no_codes_for_formats_with_the_exponents_of_float32():
    with pytest.raises(ValueError, match="encode: BF16 has the exponents of float32"):
        cast.encode(jnp.ones(3), formats.BF16)


def test_a_scale_follows_one_of_the_rules():
    with pytest.raises(ValueError, match="scale='banana'; it must be one of floor, ceil, exact"):
        cast.block_scale(jnp.float32(7), formats.E2M1, "banana")
