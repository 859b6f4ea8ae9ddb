# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The rule b_t ≤ m + 2: which noise survives the cast at the largest element of its block."""

import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import cast, formats
from pqt_jax.numerics.formats import FloatFormat
from pqt_jax.transform.perturb import Spec, perturb
from support import oracle

MANTISSAS = range(1, 8)
KEY = (0, 3)


def rounded(x, m):
    """Round to m bits of mantissa."""
    return np.asarray(cast.round_to(jnp.asarray(x, jnp.float32), FloatFormat(8, m)))


def inside(m):
    """Block maxima: numbers of m mantissa bits that are not a power of two."""
    return np.float32(1 + np.arange(1, 2**m) / 2**m)


@pytest.mark.parametrize("m", MANTISSAS)
def test_a_unit_of_noise_survives_up_to_m_plus_2(m):
    absmax = inside(m)
    for b_t in range(1, m + 3):
        unit = absmax * np.float32(2.0 ** (1 - b_t))
        assert (rounded(absmax + unit, m) != absmax).all()
        assert (rounded(absmax - unit, m) != absmax).all()
    unit = absmax * np.float32(2.0 ** (1 - (m + 3)))
    assert (rounded(absmax + unit, m) == absmax).all()
    assert (rounded(absmax - unit, m) == absmax).all()
    assert FloatFormat(8, m).noise_bits == m + 2


@pytest.mark.parametrize("m", MANTISSAS)
def test_at_a_power_of_two_m_plus_2_is_a_tie(m):
    unit = 2.0 ** (1 - (m + 2))
    assert rounded(1 + unit, m) == 1 and rounded(1 - unit, m) == 1 - unit
    assert rounded(1 + 2 * unit, m) == 1 + 2 * unit


@pytest.mark.parametrize("m", MANTISSAS)
def test_between_two_numbers_of_the_format_one_sign_at_least_survives(m):
    absmax = np.random.default_rng(m).uniform(1.01, 1.99, 5000).astype(np.float32)
    for b_t in range(1, m + 3):
        unit = absmax * np.float32(2.0 ** (1 - b_t))
        up, down = (rounded(absmax + sign * unit, m) != rounded(absmax, m) for sign in (1, -1))
        assert (up | down).all()
        assert (up & down).all() == (b_t < m + 2)  # a whole ulp survives with both signs


def sample(w, b_t, dtype, noise):
    """ŵ as float32, of blocks that all have b_t bits."""
    spec = Spec(target_bits=1, init_bits=9, dtype=dtype, noise=noise)
    b_i = jnp.full((len(w) // 32, 1), (b_t - 1) / 8)
    return np.asarray(perturb(w, b_i, jnp.array(KEY, jnp.uint32), spec), np.float32)


def constant_blocks(absmax):
    """A column of blocks in which every weight is the block maximum."""
    return np.repeat(np.repeat(absmax[:, None], 32, axis=0), 32, axis=1)


@pytest.mark.parametrize("m", [3, 7, *(pytest.param(m, marks=pytest.mark.slow) for m in (1, 2))])
def test_gauss_survives_where_uniform_is_lost(m):
    w = constant_blocks(inside(m)[-4:])
    gauss, uniform = (oracle.noise(kind, KEY, (1, *w.shape))[0] for kind in ("gauss", "uniform"))
    assert (uniform != 0).all()
    lost = []
    for b_t in range(1, m + 4):
        changed = sample(w, b_t, FloatFormat(8, m), "gauss") != w
        least = 1 if b_t <= m + 2 else 2  # above m + 2 only R = ±2 survives
        np.testing.assert_array_equal(changed, np.abs(gauss) >= least)
        lost.append((sample(w, b_t, FloatFormat(8, m), "uniform") == w).mean())
    assert lost[0] > 0 and (np.diff(lost) >= 0).all()
    assert lost[m + 1] == 1  # at b_t = m + 2 uniform noise never reaches half an ulp


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (formats.E2M1, 3),
        (formats.E3M2, 4),
        (formats.E4M3, 5),
        (formats.E4M7, 9),
        (formats.BF16, 9),
    ],
    ids=str,
)
def test_the_rule_holds_on_scaled_grids_below_their_largest_value(fmt, bits):
    assert fmt.noise_bits == bits
    absmax = inside(fmt.mantissa_bits)[-4:]
    w = constant_blocks(absmax)
    scales = np.array([oracle.scale(float(a), fmt, "ceil") for a in absmax])
    room = constant_blocks(absmax / scales < fmt.max)
    r = oracle.noise("gauss", KEY, (1, *w.shape))[0]
    for b_t, least in ((bits - 1, 1), (bits, 1), (bits + 1, 2)):
        changed = sample(w, b_t, fmt, "gauss") != w
        np.testing.assert_array_equal(changed, (r <= -least) | (r >= least) & room)
