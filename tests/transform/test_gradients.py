# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The backward pass: against autodiff of the definition, and the size of its residual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.transform.perturb import Spec, perturb
from support import oracle

BITS = {"target_bits": 2.0, "init_bits": 6.3}
SHAPE, GRID, KEY = (100, 70), (4, 3), (0, 5)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def key():
    return jax.random.key(KEY[1])


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize(
    ("dtype", "noise"),
    [
        ("bfloat16", "gauss"),
        ("float4_e2m1fn", "uniform"),
        *(slow(dtype, "gauss") for dtype in ("float8_e4m3fn", "float4_e2m1fn", "float32")),
        *(slow(dtype, "uniform") for dtype in ("bfloat16", "float8_e4m3fn", "float32")),
    ],
)
def test_gradients_are_those_of_the_definition_differentiated(dtype, noise):
    """R fixed, the maximum detached, the cast straight through; the rest by autodiff."""
    spec = Spec(**BITS, dtype=dtype, noise=noise)
    w, cotangent = normal(SHAPE), normal(SHAPE, spec.storage, seed=2)
    b_i = jnp.asarray(np.random.default_rng(1).uniform(size=GRID), jnp.float32)
    r = jnp.asarray(oracle.noise(noise, KEY, (1, *SHAPE))[0], jnp.float32)

    def definition(w, b_i):
        padded = jnp.pad(jnp.abs(w), ((0, 28), (0, 26))).reshape(4, 32, 3, 32)
        absmax = jax.lax.stop_gradient(padded.max(axis=(1, 3)))
        scale = absmax * 2.0 ** (1 - (2.0 + b_i * 4.3))
        noisy = w + r * jnp.kron(scale, jnp.ones((32, 32)))[:100, :70]
        return noisy + jax.lax.stop_gradient(
            jnp.round(noisy) - noisy
        )  # the gradient is the same for any cast

    want = jax.vjp(definition, w, b_i)[1](cotangent.astype(jnp.float32))
    dw, db = jax.vjp(lambda w, b_i: perturb(w, b_i, key(), spec), w, b_i)[1](cotangent)
    np.testing.assert_array_equal(dw, want[0])
    np.testing.assert_allclose(db, want[1], rtol=1e-5, atol=1e-6 * np.abs(want[1]).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float4_e2m1fn", "float32"])
def test_noise_none_is_a_straight_through_cast(dtype):
    spec = Spec(noise="none", dtype=dtype)
    w = normal(SHAPE)
    w_hat, back = jax.vjp(lambda w: perturb(w, None, None, spec), w)
    zero, step = np.zeros((1, *SHAPE)), np.ones((1, *GRID), np.float32)
    want = oracle.perturb(np.asarray(w)[None], step, zero, spec.dtype, spec.block)[0]
    np.testing.assert_array_equal(np.asarray(w_hat, np.float32), want)
    cotangent = normal(SHAPE, w_hat.dtype, seed=3)
    np.testing.assert_array_equal(back(cotangent)[0], cotangent.astype(w.dtype))


@pytest.mark.parametrize(
    ("dtype", "noise"),
    [
        ("float4_e2m1fn", "gauss"),
        *(slow(dtype, "uniform") for dtype in ("bfloat16", "float4_e2m1fn", "float32")),
        *(slow(dtype, "gauss") for dtype in ("bfloat16", "float32")),
    ],
)
def test_residual_is_a_few_numbers_per_block(dtype, noise):
    w, b_i = normal((3, *SHAPE)), jnp.ones((3, *GRID))
    spec = Spec(dtype=dtype, noise=noise)
    back = jax.vjp(lambda w: perturb(w, b_i, key(), spec), w)[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(back)) <= 2 * b_i.size + 8  # maxima, and b_i
    back = jax.vjp(lambda w, b_i: perturb(w, b_i, key(), spec), w, b_i)[1]
    sizes = [leaf.size for leaf in jax.tree.leaves(back)]
    assert max(sizes) <= b_i.size and sum(sizes) <= 8 * b_i.size + 8 < w.size / 50


def test_gradients_have_the_same_bits_twice_and_under_scan():
    w, cotangent = normal((3, *SHAPE)), normal((3, *SHAPE), jnp.bfloat16, seed=2)
    b_i = jnp.asarray(np.random.default_rng(1).uniform(size=(3, *GRID)), jnp.float32)

    def gradients(w, b_i, cotangent, lead):
        return jax.vjp(lambda w, b_i: perturb(w, b_i, key(), lead=lead), w, b_i)[1](cotangent)

    dw, db = gradients(w, b_i, cotangent, 0)
    rows = (w, b_i, cotangent, jnp.arange(3))
    scanned = jax.lax.scan(lambda _, x: (None, gradients(*x)), None, rows)[1]
    np.testing.assert_array_equal(scanned[0], dw)
    np.testing.assert_allclose(scanned[1], db, rtol=1e-5, atol=1e-6 * np.abs(db).max())


@pytest.mark.parametrize("noise", ["gauss", "none"])
def test_the_value_of_a_gradient_can_be_differentiated(noise):
    spec, w, b_i = Spec(noise=noise), jnp.ones((32, 64)), jnp.ones((1, 2))

    def loss(w):
        w_hat = perturb(w, b_i, jax.random.key(0), spec).astype(jnp.float32)
        return 0.5 * (w_hat**2).sum()

    want = jax.grad(loss)(w)
    np.testing.assert_array_equal(jax.grad(lambda w: jax.value_and_grad(loss)(w)[0])(w), want)
    # Straight through, the Hessian of half the square is the identity.
    tangent = jnp.full(w.shape, 0.5)
    _, product = jax.vjp(jax.grad(loss), w)
    np.testing.assert_allclose(product(tangent)[0], tangent, rtol=2**-7)


@pytest.mark.parametrize(
    ("wrt", "noise"),
    [(1, "gauss"), slow(0, "gauss"), slow(0, "uniform"), slow(1, "uniform")],
    ids=lambda x: "wb"[x] if isinstance(x, int) else x,
)
def test_gradients_of_gradients_are_those_of_the_definition(wrt, noise):
    """R fixed, the maximum detached; in float32, where no cast adds an error."""
    spec = Spec(**BITS, dtype="float32", noise=noise)
    w, b_i = normal(SHAPE), jnp.asarray(np.random.default_rng(1).uniform(size=GRID), jnp.float32)
    r = jnp.asarray(oracle.noise(noise, KEY, (1, *SHAPE))[0], jnp.float32)
    c = normal(SHAPE, seed=2)

    def definition(w, b_i):
        padded = jnp.pad(jnp.abs(w), ((0, 28), (0, 26))).reshape(4, 32, 3, 32)
        absmax = jax.lax.stop_gradient(padded.max(axis=(1, 3)))
        scale = absmax * 2.0 ** (1 - (2.0 + b_i * 4.3))
        return w + r * jnp.kron(scale, jnp.ones((32, 32)))[:100, :70]

    def norms(sample):
        """Squared norm of a gradient. Its own gradient contains second derivatives."""

        def loss(w, b_i):
            return (c * sample(w, b_i) ** 3).sum()

        return lambda *at: (jax.grad(loss, wrt)(*at) ** 2).sum()

    got = jax.jit(jax.grad(norms(lambda w, b_i: perturb(w, b_i, key(), spec)), (0, 1)))(w, b_i)
    want = jax.grad(norms(definition), (0, 1))(w, b_i)
    for a, b in zip(got, want, strict=True):
        assert float(jnp.abs(b).max()) > 0
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * float(jnp.abs(b).max()))
