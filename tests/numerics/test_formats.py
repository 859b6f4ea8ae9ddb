# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Formats: every code against ml_dtypes, the table of OCP MX as constants, names and errors."""

import ml_dtypes
import numpy as np
import pytest

from pqt_jax.numerics import formats
from pqt_jax.numerics.formats import FloatFormat, as_format

NAMED = {
    "float32": formats.FP32,
    "bfloat16": formats.BF16,
    "float16": formats.FP16,
    "float8_e4m3fn": formats.E4M3,
    "float8_e5m2": formats.E5M2,
    "float6_e3m2fn": formats.E3M2,
    "float6_e2m3fn": formats.E2M3,
    "float4_e2m1fn": formats.E2M1,
    "float8_e4m3": FloatFormat(4, 3, "ieee"),
    "float8_e3m4": FloatFormat(3, 4, "ieee"),
}


def type_of(name):
    return getattr(ml_dtypes, name, None) or getattr(np, name)


@pytest.mark.parametrize("name", NAMED)
def test_decode_agrees_with_ml_dtypes_on_every_code(name):
    fmt, dtype = NAMED[name], np.dtype(type_of(name))
    codes = np.arange(2 ** min(fmt.bits, 16), dtype=f"u{dtype.itemsize}")
    if fmt.bits == 32:  # both ends, and one pattern in 2^16
        ends = np.array([0, 1, 0x7F800000, 0x7F800001, 0x7FFFFFFF], np.uint32)
        codes = np.concatenate([ends, ends | 0x80000000, codes << 16 | codes * 40503 & 0xFFFF])
    with np.errstate(invalid="ignore"):  # signalling NaNs
        want = codes.view(dtype).astype(np.float64)
    got = fmt.decode(codes)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0])


@pytest.mark.parametrize("name", NAMED)
def test_largest_and_smallest_agree_with_finfo(name):
    fmt, info = NAMED[name], ml_dtypes.finfo(type_of(name))
    assert fmt.max == float(info.max)
    assert fmt.min_normal == float(info.smallest_normal)
    assert fmt.min_subnormal == float(info.smallest_subnormal)
    assert fmt.mantissa_bits == info.nmant and fmt.bits == info.bits


@pytest.mark.parametrize(
    ("fmt", "bits", "emax", "largest", "min_normal", "min_subnormal", "noise_bits"),
    [
        (formats.E2M1, 4, 2, 6.0, 1.0, 0.5, 3),
        (formats.E2M3, 6, 2, 7.5, 1.0, 0.125, 5),
        (formats.E3M2, 6, 4, 28.0, 0.25, 0.0625, 4),
        (formats.E4M3, 8, 8, 448.0, 2.0**-6, 2.0**-9, 5),
        (formats.E5M2, 8, 15, 57344.0, 2.0**-14, 2.0**-16, 4),
        (formats.E4M7, 12, 8, 508.0, 2.0**-6, 2.0**-13, 9),  # (2 − 2/128) · 2^8: as E4M3
        (formats.FP16, 16, 15, 65504.0, 2.0**-14, 2.0**-24, 12),
        (formats.BF16, 16, 127, 255 * 2.0**120, 2.0**-126, 2.0**-133, 9),
        (FloatFormat(4, 3, "ieee"), 8, 7, 240.0, 2.0**-6, 2.0**-9, 5),
        (FloatFormat(4, 3, "none"), 8, 8, 480.0, 2.0**-6, 2.0**-9, 5),
        (FloatFormat(1, 2), 4, 1, 3.5, 2.0, 0.5, 4),
    ],
    ids=str,
)
def test_table(fmt, bits, emax, largest, min_normal, min_subnormal, noise_bits):
    assert (fmt.bits, fmt.emax, fmt.noise_bits) == (bits, emax, noise_bits)
    assert (fmt.max, fmt.min_normal, fmt.min_subnormal) == (largest, min_normal, min_subnormal)


@pytest.mark.parametrize(
    ("exponent_bits", "specials"),
    [(e, "ieee") for e in range(2, 9)] + [(e, s) for e in range(1, 8) for s in ("nan", "none")],
)
def test_codes_are_monotonic_and_bounds_are_attained(exponent_bits, specials):
    fmt = FloatFormat(exponent_bits, 3, specials)
    values = fmt.decode(np.arange(2 ** (exponent_bits + 3)))
    finite = values[: fmt.max_code + 1]
    assert (np.diff(finite) > 0).all()
    assert not np.isfinite(values[fmt.max_code + 1 :]).any()
    assert len(values) - len(finite) == {"ieee": 8, "nan": 1, "none": 0}[specials]
    assert (finite[0], finite[1], finite[8]) == (0.0, fmt.min_subnormal, fmt.min_normal)
    assert finite[-1] == fmt.max and 2.0**fmt.emax <= fmt.max < 2.0 ** (fmt.emax + 1)


def test_conventions_follow_ocp_by_width():
    by_width = [FloatFormat(e, 3).specials for e in range(1, 9)]
    assert by_width == ["none"] * 3 + ["nan"] + ["ieee"] * 4
    assert FloatFormat(3, 2) == formats.E3M2 and hash(FloatFormat(3, 2)) == hash(formats.E3M2)
    assert FloatFormat(4, 3) != FloatFormat(4, 3, "ieee")


def test_names():
    named = [formats.BF16, formats.FP16, formats.FP32, formats.E4M7, FloatFormat(5, 3)]
    assert [f.name for f in named] == ["BF16", "FP16", "FP32", "E4M7", "E5M3"]
    assert str(formats.E2M1) == "E2M1"


@pytest.mark.parametrize("name", NAMED)
def test_as_format_takes_name_type_dtype_and_format(name):
    fmt = NAMED[name]
    for given in (name, type_of(name), np.dtype(type_of(name)), fmt):
        assert as_format(given) == fmt
    assert fmt.dtype == np.dtype(type_of(name))
    assert np.dtype(fmt.dtype).name == name


def test_formats_go_by_their_own_names():
    named = [getattr(formats, n) for n in "FP32 BF16 FP16 E4M7 E4M3 E5M2 E3M2 E2M3 E2M1".split()]
    assert [as_format(fmt.name) for fmt in named] == named


def test_the_names_of_export_are_formats():
    names = [f"fp{fmt.bits}_{fmt.name.lower()}" for fmt in formats.FORMATS.values()]
    assert ["bf16", *names[1:]] == list(formats.FORMATS)
    assert [as_format(name) for name in formats.FORMATS] == list(formats.FORMATS.values())


def test_formats_without_a_type():
    assert formats.E4M7.dtype is None
    assert as_format(FloatFormat(5, 3)).dtype is None


@pytest.mark.parametrize(
    "given", ["E4M", "e4m3", "float64", "float8_e4m3b11fnuz", "finfo", np.int8, 3]
)
def test_as_format_refuses_what_is_not_in_the_table(given):
    with pytest.raises(ValueError, match="names no format.*fp4_e2m1.*float8_e4m3fn"):
        as_format(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "exponent_bits=0; it must be 1 to 8"),
        ((9, 3), "exponent_bits=9; it must be 1 to 8"),
        ((4, -1), "mantissa_bits=-1; it must be 0 to 22"),
        ((4, 23), "mantissa_bits=23; it must be 0 to 22"),
        ((4, 3, "fnuz"), "specials='fnuz'; it must be"),
        ((8, 3, "nan"), "eight exponent bits need specials='ieee'"),
        ((8, 3, "none"), "eight exponent bits need specials='ieee'"),
        ((1, 2, "ieee"), "one exponent bit leaves no numbers"),
        ((1, 0, "nan"), "E1M0 leaves nothing but 0"),
        ((4.0, 3), "exponent_bits=4.0"),
        ((4, 3.0), "mantissa_bits=3.0"),
    ],
)
def test_refused_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloatFormat(*arguments)


def test_names_of_bits_are_formats():
    assert as_format("E8M3") == FloatFormat(8, 3) and as_format("E4M3") == formats.E4M3
    assert as_format("E8M7") == as_format("BF16") == formats.BF16
    for name, message in (("E0M3", "exponent_bits=0"), ("E9M3", "exponent_bits=9")):
        with pytest.raises(ValueError, match=message):
            as_format(name)
