# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Blocks: shapes of grids as constants; maxima, sums and repetition against loops over blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import blocks
from support import oracle

SHAPES = [
    ((1, 64, 96), (32, 32)),
    ((3, 4, 64), (1, 32)),
    ((2, 64, 5), (32, 1)),
    ((1, 32, 128), (16, 64)),
    ((2, 128, 64), (64, 32)),
    ((1, 128, 256), (128, 128)),
    ((2, 3, 7), (1, 1)),
]


def loops(x, block, function):
    leads, m, n = x.shape
    out = np.empty((leads, m // block[0], n // block[1]), x.dtype)
    for at, part in oracle.blocks(x.shape, block):
        out[at] = function(x[part])
    return out


@pytest.mark.parametrize(("shape", "block"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_absmax(shape, block, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    got = blocks.block_absmax(x, block)
    assert got.dtype == jnp.float32
    want = loops(np.asarray(x, np.float32), block, lambda part: np.abs(part).max())
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("shape", "block"), SHAPES, ids=str)
def test_sum_of_whole_numbers(shape, block):
    x = np.random.default_rng(0).integers(-100, 100, shape).astype(np.float32)
    got = blocks.block_sum(jnp.asarray(x), block)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, loops(x, block, np.sum))


@pytest.mark.parametrize(("shape", "block"), SHAPES, ids=str)
def test_spread(shape, block):
    leads, m, n = shape
    numbers = np.random.default_rng(0).normal(size=(leads, m // block[0], n // block[1]))
    got = np.asarray(blocks.spread(jnp.asarray(numbers, jnp.float32), block))
    assert got.shape == shape
    for at, part in oracle.blocks(shape, block):
        assert (got[part] == np.float32(numbers[at])).all()


def test_nan_wins_over_inf_and_inf_over_numbers():
    x = np.zeros((1, 32, 160), np.float32)
    x[0, 3, 5], x[0, 4, 6] = np.nan, np.inf
    x[0, 3, 32 + 5], x[0, 4, 32 + 6] = 1e38, -np.inf
    x[0, 3, 64 + 5], x[0, 4, 64 + 6] = -3.0, 2.0
    x[0, 3, 96 + 5] = -1e-45
    x[0, 3, 128:] = -0.0
    for dtype in (jnp.float32, jnp.bfloat16):
        tiny = float(jnp.asarray(1e-45, dtype))
        got = blocks.block_absmax(jnp.asarray(x, dtype), (32, 32))
        np.testing.assert_array_equal(got[0, 0], np.float32([np.nan, np.inf, 3.0, tiny, 0.0]))
        assert not np.signbit(got).any()
    negative = np.uint32([0xFFC00001]).view(np.float32)
    assert np.isnan(blocks.block_absmax(jnp.asarray(negative).reshape(1, 1, 1), (1, 1)))


def test_pad_to():
    x = jnp.ones((2, 5, 7))
    padded = np.asarray(blocks.pad_to(x, 4, 3))
    assert padded.shape == (2, 8, 9) and padded.sum() == x.size
    assert (padded[:, :5, :7] == 1).all()
    assert blocks.pad_to(x, 5, 7) is x


@pytest.mark.parametrize(
    ("shape", "axes", "matrices", "grid"),
    [
        ((100, 70), (1, 1), (1, 100, 70), (4, 3)),
        ((32, 32), (1, 1), (1, 32, 32), (1, 1)),
        ((33, 1), (1, 1), (1, 33, 1), (2, 1)),
        ((12, 768, 3072), (1, 1), (12, 768, 3072), (12, 24, 96)),
        ((2, 8, 64, 96), (1, 1), (16, 64, 96), (2, 8, 2, 3)),
        ((768, 12, 64), (1, 2), (1, 768, 768), (24, 24)),
        ((12, 768, 12, 64), (1, 2), (12, 768, 768), (12, 24, 24)),
        ((12, 64, 768), (2, 1), (1, 768, 768), (24, 24)),
        ((3, 3, 64, 96), (1, 1), (9, 64, 96), (3, 3, 2, 3)),
        ((3, 3, 64, 96), (3, 1), (1, 576, 96), (18, 3)),
    ],
)
def test_shapes(shape, axes, matrices, grid):
    assert blocks.matrix_shape(shape, axes) == matrices
    assert blocks.grid_shape(shape, (32, 32), axes) == grid


def test_grid_of_other_blocks():
    assert blocks.grid_shape((100, 70), (1, 32), (1, 1)) == (100, 3)
    assert blocks.grid_shape((100, 70), (128, 128), (1, 1)) == (1, 1)
    assert blocks.grid_shape((5, 100, 70), (16, 64), (1, 1)) == (5, 7, 2)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((7,), (1, 1)), ((), (1, 1)), ((3, 4), (1, 2)), ((3, 4), (0, 1)), ((3, 4), (1, 0))],
)
def test_shapes_that_do_not_fit(shape, axes):
    with pytest.raises(ValueError, match="does not fit a parameter of shape.*at least 1"):
        blocks.matrix_shape(shape, axes)
    with pytest.raises(ValueError, match="does not fit a parameter of shape"):
        blocks.grid_shape(shape, (32, 32), axes)


@pytest.mark.parametrize("block", [(32, 32), (1, 32), (32, 1), (2, 4), (8, 16), (64, 96), [16, 64]])
def test_supported_blocks(block):
    assert blocks.check_block(block) == tuple(block)


@pytest.mark.parametrize(
    "block", [(0, 32), (-32, 32), (33, 32), (32, 48), (32,), (32, 32, 32), 32, (32.0, 32), None]
)
def test_unsupported_blocks(block):
    with pytest.raises(ValueError, match="must be two integers that divide 32 or are multiples"):
        blocks.check_block(block)


def test_absmax_is_the_same_under_jit_and_vmap():
    x = jax.random.normal(jax.random.key(0), (4, 1, 64, 64))
    eager = jnp.stack([blocks.block_absmax(part, (32, 32)) for part in x])
    mapped = jax.jit(jax.vmap(lambda part: blocks.block_absmax(part, (32, 32))))(x)
    np.testing.assert_array_equal(eager, mapped)


def test_a_block_is_two_ints_of_python():
    assert blocks.check_block([np.int64(32), 2**15]) == (32, 2**15)
    assert [type(side) for side in blocks.check_block((np.int64(32), 32))] == [int, int]
    for block in ((True, 32), (2**15 + 32, 32), (10**30, 32)):
        with pytest.raises(ValueError, match="must be two integers"):
            blocks.check_block(block)
