# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Codes and scales keep their values when they are laid out for others."""

import numpy as np
import pytest

from pqt_jax.interchange import low_bit
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3, E5M2


def matrix(fmt, rows=70, columns=96, block=(32, 32)):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << fmt.bits, (rows, columns)).astype(np.uint8)
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    return EncodedMatrix(fmt, codes, rng.integers(100, 140, grid).astype(np.uint8), block)


@pytest.mark.parametrize("block", [(32, 32), (1, 32), (64, 64), (16, 128)])
def test_scales_are_repeated_over_their_blocks(block):
    one = matrix(E2M1, block=block)
    for row in (0, 1, 33, 69):
        for group in range(3):
            expected = one.scale[row // block[0], 32 * group // block[1]]
            assert one.group_scale[row, group] == expected
    assert one.group_scale.shape == (70, 3)


@pytest.mark.parametrize(
    ("narrow", "wide"), [(E2M1, E2M3), (E2M1, E4M3), (E2M3, E4M3), (E3M2, E4M3), (E3M2, E5M2)]
)
def test_recoding_keeps_each_value(narrow, wide):
    one = matrix(narrow)
    again = low_bit.recode(one, wide)
    assert again.fmt == wide
    assert low_bit.decode(again).tobytes() == low_bit.decode(one).tobytes()


def test_recoding_into_a_format_that_lacks_values_is_an_error():
    for fmt, other in ((E4M3, E3M2), (E3M2, E2M3), (E2M3, E2M1)):
        with pytest.raises(ValueError, match="does not have all values"):
            low_bit.recode(matrix(fmt), other)


def test_decoding_multiplies_by_powers_of_two():
    one = EncodedMatrix(E2M1, np.arange(32, dtype=np.uint8)[None] % 16, np.array([[126]]), (1, 32))
    values = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3]
    expected = values + [-value for value in values]
    assert low_bit.decode(one)[0].tolist() == 2 * expected
    tiny = one._replace(scale=np.array([[1]]))  # 0.5 · 2^-126 is subnormal
    assert low_bit.decode(tiny)[0, :4].tolist() == [0, 0, 2.0**-126, 1.5 * 2.0**-126]
