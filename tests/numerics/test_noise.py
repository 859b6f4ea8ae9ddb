# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Noise R: the exact law of a draw, and chi-square tests of four million draws.

Keys are fixed, so that each test always passes or always fails. Each statistic is transformed to a
standard normal z (Wilson and Hilferty, 1931), and |z| must be below 4: counts that are too far from
the law fail, and so do counts that are too close to it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import keys, noise, philox
from support import oracle

ALL = np.arange(2**16, dtype=np.uint32)  # every draw
LAW = np.array([88, 10398 - 88, 2 * (32768 - 10398), 10398 - 88, 88]) / 65536  # of R = −2 … 2
LEADS, ROWS, COLUMNS = 2, 2048, 1024


def z_of_chi_square(counts, expected):
    """The deviation of the chi-square statistic of counts, in standard deviations."""
    counts, expected = np.ravel(counts), np.ravel(expected)
    assert counts.sum() == pytest.approx(expected.sum()) and expected.min() >= 5
    freedom = len(counts) - 1
    cube_root = (((counts - expected) ** 2 / expected).sum() / freedom) ** (1 / 3)
    return (cube_root - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def stream_key(step, path):
    return keys.key_words(keys.param_key(keys.step_key(jax.random.key(0), step), path))


@functools.partial(jax.jit, static_argnums=0)
def library_noise(kind, key):
    runs = ROWS // philox.ROWS
    codes = noise.noise_codes(kind, key, jnp.zeros(3, jnp.uint32), LEADS, runs, COLUMNS)
    return noise.noise_tile(kind, codes).reshape(LEADS, ROWS, COLUMNS)


@functools.cache
def gauss(step=3, path="h/attn/q/kernel"):
    """R of a parameter at a step, as integers [LEADS, ROWS, COLUMNS]."""
    return np.asarray(library_noise("gauss", stream_key(step, path))).astype(np.int8)


@functools.cache
def uniform_draws():
    """The draws of the same key, recovered from uniform R."""
    r = np.asarray(library_noise("uniform", stream_key(3, "h/attn/q/kernel")), np.float64)
    draws = (r + 0.5) * 65536 - 0.5
    assert (draws == np.round(draws)).all()
    return draws.astype(np.int32).ravel()


def words_of_every_draw():
    """Words of Philox calls whose draws are all 65536 values, in order."""
    calls = ALL.reshape(-1, 8)
    return tuple(
        jnp.asarray(calls[:, 2 * k] | calls[:, 2 * k + 1] << 16).reshape(1, 1, 4, -1)
        for k in range(4)
    )


def gauss_of_every_draw():
    """R of all 65536 draws, in order, by codes."""
    codes = noise.rounded_normal_codes(words_of_every_draw())
    tile = np.asarray(noise.noise_tile("gauss", (codes,)))[0, 0]  # [8, 4, 2048]
    return np.moveaxis(tile, 0, -1).ravel()


def test_gauss_of_every_draw():
    r = gauss_of_every_draw().astype(np.int64)
    assert r.tolist() == [oracle.gauss(draw) for draw in ALL.tolist()]
    np.testing.assert_array_equal(np.bincount(r + 2) / 65536, LAW)
    np.testing.assert_array_equal(r[:32768], -r[32768:])  # the top bit is the sign only


def test_thresholds_are_those_of_the_rounded_normal():
    beyond = [math.erfc((k - 0.5) * math.sqrt(2)) for k in (1, 2, 3)]  # P(|⌊N/2⌉| ≥ k)
    assert round(beyond[0] * 32768) == noise.ONE_BELOW
    assert round(beyond[1] * 32768) == noise.TWO_BELOW
    tails = [(p - q) / 2 for p, q in zip(beyond, [*beyond[1:], 0.0], strict=True)]
    exact = np.array([tails[2], tails[1], tails[0], 1 - beyond[0], *tails])
    ours = np.array([0, *LAW, 0])
    assert exact.sum() == pytest.approx(1, abs=1e-15) and ours.sum() == 1
    assert np.abs(exact - ours).sum() / 2 <= 3.1e-5


def test_zero_is_positive_zero():
    r = gauss_of_every_draw()
    assert r.dtype == np.float32 and (r == 0).sum() == 44740
    assert not np.signbit(r[r == 0]).any()


def test_uniform_of_every_draw():
    words = words_of_every_draw()
    tile = np.asarray(noise.noise_tile("uniform", words))[0, 0]  # [8, 4, 2048]
    r = np.moveaxis(tile, 0, -1).ravel()
    assert r.dtype == np.float32
    np.testing.assert_array_equal(r, [oracle.uniform(draw) for draw in ALL.tolist()])
    assert r[0] == -0.5 + 2**-17 and r[-1] == 0.5 - 2**-17
    assert r.astype(np.float64).sum() == 0


@pytest.mark.parametrize("kind", ["gauss", "uniform"])
@pytest.mark.parametrize("rows", [4, 8])
def test_slices_and_tile_agree_with_the_stream(kind, rows):
    key, offset = (7, 2**32 - 9), jnp.array([3, 0, 0], jnp.uint32)
    place = (jnp.array(key, jnp.uint32), offset, 2, 2, 33, rows)
    want = oracle.noise(kind, key, (2, 64, 33), lead=3)
    tile = noise.noise_tile(kind, noise.noise_codes(kind, *place))
    np.testing.assert_array_equal(tile.reshape(2, 64, 33), want)
    words = philox.stream_words(*place)
    slices = [noise.noise_of_slice(kind, words, t) for t in range(32 // rows)]
    np.testing.assert_array_equal(np.stack(slices, axis=2).reshape(2, 64, 33), want)


def test_gauss_frequencies():
    r = gauss()
    assert r.size >= 4e6
    counts = np.bincount(r.ravel() + 2, minlength=5)
    assert abs(z_of_chi_square(counts, LAW * r.size)) < 4
    assert abs(r.sum(dtype=np.int64)) < 4 * math.sqrt(r.size * (LAW * [4, 1, 0, 1, 4]).sum())


def test_gauss_frequencies_of_every_row_of_a_run():
    by_row = gauss().reshape(-1, philox.ROWS, COLUMNS).swapaxes(0, 1).reshape(philox.ROWS, -1)
    z = [z_of_chi_square(np.bincount(r + 2, minlength=5), LAW * len(r)) for r in by_row]
    assert np.abs(z).max() < 4


@pytest.mark.parametrize("part", ["whole", "high byte", "low byte"])
def test_uniform_frequencies(part):
    draws = uniform_draws()
    draws = {"whole": draws, "high byte": draws >> 8, "low byte": draws & 0xFF}[part]
    cells = 2**16 if part == "whole" else 2**8
    counts = np.bincount(draws, minlength=cells)
    assert abs(z_of_chi_square(counts, np.full(cells, len(draws) / cells))) < 4


def test_uniform_mean_and_variance():
    r = (uniform_draws() + 0.5) / 65536 - 0.5
    assert abs(r.mean()) < 4 * math.sqrt(1 / 12 / r.size)
    assert abs((r**2).mean() - 1 / 12) < 4 * math.sqrt(1 / 180 / r.size)


def lagged(axis, lag):
    """Disjoint pairs of elements at a distance of `lag`."""
    r = np.moveaxis(gauss(), axis, 0)
    first = np.flatnonzero(np.arange(len(r)) // lag % 2 == 0)
    first = first[first + lag < len(r)]
    return r[first], r[first + lag]


PAIRS = {
    **{f"rows {lag} apart": functools.partial(lagged, 1, lag) for lag in (1, 2, 4, 8, 16, 32)},
    **{f"columns {lag} apart": functools.partial(lagged, 2, lag) for lag in (1, 2, 32)},
    "matrices": lambda: (gauss()[0], gauss()[1]),
    "parameters": lambda: (gauss(), gauss(path="h/attn/k/kernel")),
    "steps": lambda: (gauss(), gauss(step=4)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_independence(name):
    first, second = (np.ravel(r).astype(np.int64) for r in PAIRS[name]())
    counts = np.bincount(5 * (first + 2) + second + 2, minlength=25)
    expected = np.outer(LAW, LAW).ravel() * len(first)
    rare = np.outer(LAW, LAW).ravel() < 1e-5  # pairs of ±2 are too rare for a cell each
    counts, wanted = (np.append(cells[~rare], cells[rare].sum()) for cells in (counts, expected))
    assert rare.sum() == 4 and abs(z_of_chi_square(counts, wanted)) < 4
    variance = (LAW * [4, 1, 0, 1, 4]).sum()
    assert abs((first * second).sum()) < 4 * variance * math.sqrt(len(first))


def test_kernels_of_one_shape_share_a_trace(monkeypatch):
    """Philox is hundreds of operations, and a training step has noise at 14 places or more."""
    traced, stream_words = [], philox.stream_words

    def count(*args):
        traced.append(args[2:])
        return stream_words(*args)

    monkeypatch.setattr(philox, "stream_words", count)
    key, offset = jnp.zeros(2, jnp.uint32), jnp.zeros(3, jnp.uint32)
    jax.make_jaxpr(lambda: [noise.noise_codes("gauss", key, offset, 1, 3, 7) for _ in "12"])()
    assert traced == [(1, 3, 7, 4)]
