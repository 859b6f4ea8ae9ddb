# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rounding of one parameter without noise, with a format for each block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics.deterministic_rounding import (
    FormatAssignment,
    quantize_mixed,
    round_parameter,
)
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, format_index
from pqt_jax.numerics.spec import Spec


def test_mixed_takes_stacks_and_ragged_edges():
    w = jax.random.normal(jax.random.key(0), (2, 50, 3, 30))
    spec = Spec(matrix_axes=(1, 2))
    b_t = jnp.array([[[3.0, 4.0, 5.0], [9.0, 12.0, 3.0]], [[16.0] * 3, [3.0] * 3]])
    got = np.asarray(quantize_mixed(w, b_t, spec).astype(jnp.float32)).reshape(2, 50, 90)
    for (lead, i, j), bits in np.ndenumerate(np.asarray(b_t)):
        fmt = MIXED_FORMATS[int(format_index(jnp.float32(bits)))]
        block = np.asarray(w).reshape(2, 50, 90)[lead, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
        assignment = FormatAssignment(Spec(noise="none", dtype=fmt))
        want = round_parameter(jnp.asarray(block), assignment).astype(jnp.float32)
        np.testing.assert_array_equal(got[lead, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32], want)


def test_bits_of_the_wrong_shape_are_refused():
    for shape in ((4, 4), (2, 3), (1, 1)):
        with pytest.raises(ValueError, match=r"need \(2, 2\)"):
            quantize_mixed(jnp.ones((64, 64)), jnp.full(shape, 4.0), Spec())


def test_nothing_relies_on_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        quantize_mixed(jnp.ones((2, 64, 64)), jnp.full((2, 2, 2), 4.0), Spec())
