# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Slices of eight rows, as on a TPU, against slices of four: the same ŵ, and the same sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pqt_jax.numerics import reference
from pqt_jax.numerics.formats import E2M1, E4M3, FP32
from pqt_jax.numerics.spec import Spec

WORDS, OFFSET = np.array([7, 2**32 - 9], np.uint32), np.array([3, 5, 64], np.uint32)
SPECS = {
    "bf16": Spec(),
    "f32": Spec(dtype=FP32),
    "uniform": Spec(noise="uniform"),
    "E4M3": Spec(dtype=E4M3),
    "E2M1": Spec(dtype=E2M1),
    "E4M3 codes": Spec(dtype=E4M3, encoded=True),
    "blocks of 64": Spec(block=(64, 16)),
    "blocks of 16": Spec(block=(16, 32)),
    "blocks of 2": Spec(block=(2, 4)),
}


def operands(spec, dtype):
    """Two matrices with edges, zeros of both signs, Inf and NaN; bits; and a cotangent."""
    shape = (2, 100, 70)
    kw, kb, kg = jax.random.split(jax.random.key(0), 3)
    w = np.array(jax.random.normal(kw, shape) * 0.02)
    w[0, 0, :9], w[0, 1, :9], w[0, 40, 6], w[1, 3, 5] = -0.0, 0.0, np.inf, np.nan
    grid = (2, -(-100 // spec.block[0]), -(-70 // spec.block[1]))
    cotangent = jax.random.normal(kg, shape, dtype)
    return jnp.asarray(w, dtype), jax.random.uniform(kb, grid), cotangent


def results(spec, rows, dtype, monkeypatch):
    """Both passes, with the implementation for slices of so many rows."""
    monkeypatch.setattr(reference, "_by_platform", lambda f, *xs: f(rows, *xs))
    w, b_i, cotangent = operands(spec, dtype)
    # Functions of their own, so that no trace of other rows is used.
    forward = jax.jit(lambda *xs: reference.forward.__wrapped__(spec, *xs))
    backward = jax.jit(lambda *xs: reference.backward.__wrapped__(spec, *xs))
    w_hat, absmax = forward(w, b_i, WORDS, OFFSET)
    return w_hat, absmax, backward(cotangent, WORDS, OFFSET)


@pytest.mark.jax_version
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_slices_of_eight_rows_give_the_same_bits(name, dtype, monkeypatch):
    four, eight = (results(SPECS[name], rows, dtype, monkeypatch) for rows in (4, 8))
    for got, want in zip(eight[:2], four[:2], strict=True):
        assert got.dtype == want.dtype and np.asarray(got).tobytes() == np.asarray(want).tobytes()
    largest = np.abs(four[2]).max()
    np.testing.assert_allclose(eight[2], four[2], rtol=0, atol=4e-7 * largest)


@pytest.mark.jax_version
def test_backward_is_linear_and_can_be_transposed_and_mapped():
    spec, cotangent = Spec(), operands(Spec(), jnp.float32)[2]
    backward = functools.partial(reference.backward, spec, words=WORDS, offset=OFFSET)
    sums, transpose = jax.vjp(backward, cotangent)
    ones = jnp.ones_like(sums)
    (noise,) = transpose(ones)
    assert set(np.unique(noise).tolist()) <= {-2, -1, 0, 1, 2}
    _, tangent = jax.jvp(backward, (cotangent,), (noise,))
    np.testing.assert_allclose(tangent.sum(), jnp.square(noise).sum(), rtol=1e-6)
    mapped = jax.jit(jax.vmap(backward))(jnp.stack([cotangent, noise]))
    np.testing.assert_allclose(mapped[0], sums, rtol=0, atol=4e-7 * np.abs(sums).max())
    _, looped = lax.scan(lambda _, g: (None, backward(g)), None, jnp.stack([cotangent, noise]))
    np.testing.assert_allclose(looped, mapped, rtol=0, atol=4e-7 * np.abs(mapped).max())
