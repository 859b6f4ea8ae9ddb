# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Packed codes against big integers, and E8M0 against ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from pqt_jax.numerics import bit_packing


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 1023])
def test_codes_lie_one_after_the_other_in_one_large_number(bits, count):
    codes = np.random.default_rng(bits).integers(0, 2**bits, count)
    data = bit_packing.pack(codes, bits)
    assert data.dtype == np.uint8 and data.size == -(-count * bits // 8)
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert int.from_bytes(data.tobytes(), "little") == number
    np.testing.assert_array_equal(bit_packing.unpack(data, bits, count), codes)


def test_four_codes_of_fp6_are_three_bytes():
    assert bit_packing.pack(np.array([0b000001, 0b000010, 0b000011, 0b100000]), 6).tolist() == [
        0b10_000001,
        0b0011_0000,
        0b100000_00,
    ]


@pytest.mark.parametrize("bits", [0, 9, 11, 13, 15, 17])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match=f"codes of {bits} bits are not packed"):
        bit_packing.pack(np.arange(3), bits)


def test_codes_too_large_and_bytes_too_few_are_refused():
    with pytest.raises(ValueError, match="code 16 does not fit 4 bits"):
        bit_packing.pack(np.array([1, 16]), 4)
    with pytest.raises(ValueError, match="2 bytes; 4 codes of 6 bits take 3"):
        bit_packing.unpack(np.zeros(2, np.uint8), 6, 4)


def test_e8m0_is_that_of_ml_dtypes():
    codes = np.arange(256).astype(np.uint8)
    want = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(bit_packing.from_e8m0(codes), want)
    np.testing.assert_array_equal(bit_packing.to_e8m0(want), codes)


@pytest.mark.parametrize("scale", [3.0, 0.0, -1.0, np.inf, 2.0**-128, 2.0**128])
def test_what_e8m0_cannot_hold_is_refused(scale):
    with pytest.raises(ValueError, match="not a power of two"):
        bit_packing.to_e8m0(np.array([1.0, scale]))
