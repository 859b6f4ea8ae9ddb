# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""FP8 codes and scales of sampled weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.transform.perturb import Spec, perturb
from pqt_jax.transform.perturb_encoded import perturb_encoded


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float8_e4m3fn", "ceil"),
        ("float8_e5m2", "floor"),
        slow("float8_e4m3fn", "floor"),
        slow("float8_e5m2", "ceil"),
    ],
)
def test_codes_and_scales_are_the_same_values(dtype, scale):
    spec = Spec(dtype=dtype, scale=scale, target_bits=2.0, init_bits=5.3)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 100, 70)), jnp.float32)
    w = w.at[0, 0, 0].set(jnp.nan).at[1, 40, 3].set(jnp.inf).at[2, :32, :32].set(0)
    b_i, key = jnp.ones((3, 4, 3)), jax.random.key(3)
    codes, scales = jax.jit(functools.partial(perturb_encoded, spec=spec))(w, b_i, key)
    assert codes.dtype == spec.dtype.dtype and codes.shape == w.shape and scales.shape == b_i.shape
    spread = np.kron(scales, np.ones((32, 32), np.float32))[:, :100, :70]
    values = np.asarray(codes).astype(np.float32) * spread
    want = np.asarray(perturb(w, b_i, key, spec), np.float32)
    np.testing.assert_array_equal(values, want)
    assert np.isnan(scales).sum() == 2  # the two blocks that are not finite
    assert np.isnan(want).sum() == 2 * 32 * 32


def test_codes_are_refused_where_there_are_none():
    w, b_i, key = jnp.ones((32, 32)), jnp.ones((1, 1)), jax.random.key(0)
    with pytest.raises(ValueError, match="dtype=E2M1; codes are made for float8_e4m3fn and"):
        perturb_encoded(w, b_i, key, Spec(dtype="float4_e2m1fn"))
    with pytest.raises(ValueError, match="noise='none'; codes are made of sampled weights"):
        perturb_encoded(w, b_i, key, Spec(dtype="float8_e5m2", noise="none"))
    with pytest.raises(ValueError, match="codes come from `perturb_encoded`"):
        perturb(w, b_i, key, Spec(dtype="float8_e5m2", encoded=True))
    with pytest.raises(TypeError, match="perturb_encoded has no gradient"):
        jax.grad(lambda w: perturb_encoded(w, b_i, key, Spec(dtype="float8_e5m2"))[1].sum())(w)
