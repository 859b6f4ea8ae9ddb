# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which format carries a bit-width, and bit-widths raised to what their format carries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import bit_width
from pqt_jax.numerics.deterministic_rounding import FormatAssignment, round_parameter
from pqt_jax.numerics.formats import BF16, E2M1, E3M2, E4M3, E4M7
from pqt_jax.numerics.mixed_formats import LIMITS, MIXED_FORMATS, format_index, snap
from pqt_jax.numerics.spec import Spec
from pqt_jax.transform.perturb import perturb


def test_each_bit_width_gets_the_smallest_format_that_carries_it():
    b_t = jnp.array([1.0, 3.0, 3.01, 4.0, 4.5, 5.0, 5.1, 9.0, 9.01, 16.0])
    names = [MIXED_FORMATS[i].name for i in format_index(b_t)]
    assert names == "E2M1 E2M1 E3M2 E3M2 E4M3 E4M3 E4M7 E4M7 BF16 BF16".split()
    assert MIXED_FORMATS == (E2M1, E3M2, E4M3, E4M7, BF16)


def test_a_format_may_match_the_noise_by_its_own_error():
    b_t = jnp.array([1.0, 4.9, 4.91, 6.2, 6.21, 7.2, 7.21, 11.2, 11.21])
    names = [MIXED_FORMATS[i].name for i in format_index(b_t, "error")]
    assert names == "E2M1 E2M1 E3M2 E3M2 E4M3 E4M3 E4M7 E4M7 BF16".split()
    with pytest.raises(ValueError, match="match='size'; it must be one of noise, error"):
        format_index(b_t, "size")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("index", range(4))
def test_at_its_limit_the_error_of_a_format_is_as_large_as_the_noise(index):
    # Of normal weights of all scales between two powers of two.
    fmt, limit = MIXED_FORMATS[index], LIMITS["error"][index]
    scales = 2.0 ** (np.arange(8) / 8)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 256, 256)) * scales[:, None, None])
    w = w.astype(jnp.float32)
    spec = Spec(target_bits=limit, init_bits=limit, dtype="float32")
    noisy = perturb(w, jnp.ones((8, 8, 8)), jax.random.key(0), spec)
    rounded = round_parameter(w, FormatAssignment(Spec(noise="none", dtype=fmt)))
    noise, error = (np.std((x - w) / scales[:, None, None]) for x in (noisy, rounded))
    assert 0.92 < noise / error < 1.08


@pytest.mark.parametrize("target, init", [(4.0, 6.0), (3.3, 7.7), (1.0, 16.0), (4.9, 5.0)])
def test_snapped_bits_are_as_many_as_their_format_carries(target, init):
    b_t = np.concatenate([np.linspace(1, 16, 1001), [3, 4, 5, 9]])
    b_i = jnp.asarray((b_t - target) / (init - target), jnp.float32)
    before = bit_width.bit_width(b_i, target, init)
    after = bit_width.bit_width(snap(b_i, target, init), target, init)
    index = np.asarray(format_index(before))
    np.testing.assert_array_equal(format_index(after), index)
    limits = np.array([3, 4, 5, 9, np.nan])[index]
    scaled = index < 4
    np.testing.assert_allclose(after[scaled], limits[scaled], rtol=1e-6)
    np.testing.assert_array_equal(after[~scaled], before[~scaled])
    again = bit_width.bit_width(snap(snap(b_i, target, init), target, init), target, init)
    np.testing.assert_array_equal(again, after)


def test_bits_that_do_not_move_cannot_snap():
    with pytest.raises(ValueError, match="bits that do not move cannot snap"):
        snap(jnp.ones((2, 2)), 4.0, 4.0)


def test_snapped_bits_keep_their_dtype_where_floats_are_wide():
    with jax.enable_x64(True):
        assert snap(jnp.array([-1.0, 0.0, 1.0], jnp.float32), 4.0, 6.0).dtype == jnp.float32
