# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Bit-widths: the map from b_i, its clamp, the unit of noise and their gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import bit_width, reference
from pqt_jax.numerics.spec import Spec

RANDOM = np.random.default_rng(0).uniform(1, 16, 10_000).astype(np.float32)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_step_size_is_exact_at_whole_bits(compiled):
    function = jax.jit(bit_width.step_size) if compiled else bit_width.step_size
    whole = np.arange(1, 17)
    got = function(jnp.asarray(whole, jnp.float32))
    assert got.dtype == jnp.float32
    assert got.tolist() == [2.0 ** (1 - b) for b in whole.tolist()]
    assert [float(function(jnp.float32(b))) for b in whole] == got.tolist()


def test_step_size_is_within_one_ulp():
    near = np.arange(2, 16, dtype=np.float32)
    near = [np.nextafter(near, np.float32(to)) for to in (0, 99)]
    b_t = np.concatenate([RANDOM, *near])
    exact = 2.0 ** (1 - b_t.astype(np.float64))
    got = np.asarray(bit_width.step_size(b_t), np.float64)
    assert (np.abs(got - exact) <= np.spacing(exact.astype(np.float32))).all()
    np.testing.assert_array_equal(got, jax.jit(bit_width.step_size)(b_t))


@pytest.mark.parametrize("b_t", [1.0, 1.5, 4.0, 5.9999995, 6.0, 9.3, 16.0])
def test_step_size_gradient(b_t):
    want = -math.log(2) * 2.0 ** (1 - b_t)
    assert float(jax.grad(bit_width.step_size)(b_t)) == pytest.approx(want, rel=3e-7)
    assert float(jax.jit(jax.grad(bit_width.step_size))(b_t)) == pytest.approx(want, rel=3e-7)


def test_bit_width_and_its_clamp():
    b_i = jnp.array([0.0, 0.5, 1.0, -0.25, 1.5, -1.5, -9.0, 5.75, 6.0, 99.0])
    got = bit_width.bit_width(b_i, 4.0, 6.0)
    assert got.dtype == jnp.float32
    assert got.tolist() == [4.0, 5.0, 6.0, 3.5, 7.0, 1.0, 1.0, 15.5, 16.0, 16.0]
    slope = jax.vmap(jax.grad(lambda b: bit_width.bit_width(b, 4.0, 6.0)))(b_i)
    assert slope.tolist()[:5] == [2.0] * 5
    assert [slope[i].item() for i in (6, 7, 9)] == [0.0, 2.0, 0.0]
    assert jnp.isnan(bit_width.bit_width(jnp.array(jnp.nan), 4.0, 6.0))


@pytest.mark.parametrize(
    ("target", "b_i", "init", "slope"),
    [(4.0, 1.0, 16.0, 12.0), (1.0, 0.0, 6.0, 5.0), (4.0, 1.0, 9.0, 5.0), (3.0, 0.0, 6.0, 3.0)],
)
def test_the_clamp_leaves_the_gradient_whole_at_its_ends(target, b_i, init, slope):
    assert float(jax.grad(bit_width.bit_width)(b_i, target, init)) == slope


@pytest.mark.parametrize("target", [1.0, 1.3, 1.8, 2.1, 2.4, 4.0, 9.9, 16.0])
def test_the_clamp_is_to_1_and_16_exactly(target):
    far = jnp.array([-1e3, 1e3])
    assert bit_width.bit_width(far, target, 16.0).tolist() == [1.0 if target < 16 else 16.0, 16.0]


@pytest.mark.parametrize(("target", "init"), [(4.0, 6.0), (4.0, 9.0), (2.0, 6.3), (1.7, 15.1)])
def test_bit_width_has_the_same_bits_under_jit(target, init):
    b_i = np.random.default_rng(1).uniform(-0.2, 1.2, 10_000).astype(np.float32)
    eager = np.asarray(bit_width.bit_width(b_i, target, init))
    compiled = jax.jit(lambda b: bit_width.bit_width(b, target, init))(b_i)
    np.testing.assert_array_equal(eager, compiled)
    exact = np.clip(target + b_i.astype(np.float64) * (init - target), 1, 16)
    assert (np.abs(eager - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


@pytest.mark.parametrize(
    ("target", "init"), [(0.5, 6.0), (6.0, 4.0), (4.0, 16.5), (math.nan, 6.0), (4.0, math.nan)]
)
def test_check_bits_refuses(target, init):
    with pytest.raises(ValueError, match="1 <= target_bits <= init_bits <= 16"):
        bit_width.check_bits(target, init)


@pytest.mark.parametrize(("target", "init"), [(1.0, 16.0), (4, 4), (4.0, 6.0)])
def test_check_bits_accepts(target, init):
    bit_width.check_bits(target, init)


def test_statistics_count_every_block_once():
    tree = {"a": jnp.array([[2.0, 4.0], [6.0, 8.0]]), "b": [jnp.array(10.0), jnp.array([3.0])]}
    got = bit_width.statistics(tree)
    assert {k: float(v) for k, v in got.items()} == {"mean": 5.5, "min": 2.0, "max": 10.0}
    assert all(v.dtype == jnp.float32 and v.shape == () for v in got.values())
    assert all(math.isnan(v) for v in bit_width.statistics({}).values())


def test_step_size_of_a_constant_is_that_of_the_same_number_at_run_time():
    at_run_time = jax.jit(bit_width.step_size)(RANDOM)
    np.testing.assert_array_equal(jax.jit(lambda: bit_width.step_size(RANDOM))(), at_run_time)


@pytest.mark.parametrize(("target", "init"), [(4.0, 6.0), (3.0, 6.0), (2.7, 5.9), (1.0, 16.0)])
def test_a_step_has_the_same_bits_where_it_is_compiled_with_its_bit_width(target, init):
    """XLA rewrites (target + x) − 1 to x + (target − 1), which rounds differently."""
    b_i = np.random.default_rng(2).uniform(-0.5, 1.5, 10_000).astype(np.float32)
    spec = Spec(target_bits=target, init_bits=init)
    apart = bit_width.step_size(bit_width.bit_width(b_i, target, init))
    np.testing.assert_array_equal(jax.jit(lambda b: reference.block_step_size(spec, b))(b_i), apart)


def test_step_size_by_python_integers():
    """The result is that of Horner's rule on Python integers."""
    terms = [round(2**31 * math.log(2) ** k / math.factorial(k)) for k in range(12)]
    for b_t in RANDOM[:200].tolist():
        whole = math.floor(1 - b_t)
        x, power = int((1 - b_t - whole) * 2**31), 0
        for term in reversed(terms):
            power = term + (power * x >> 31)
        mantissa = (power >> 8) + (power >> 7 & 1)
        assert float(bit_width.step_size(jnp.float32(b_t))) == math.ldexp(mantissa, whole - 23)


def test_step_size_shows_nan():
    assert jnp.isnan(bit_width.step_size(jnp.float32(jnp.nan)))


def test_layer_loss_counts_each_matrix_once():
    rng = np.random.default_rng(0)
    stack, one = rng.uniform(3, 8, (3, 2, 5)), rng.uniform(3, 8, (7, 1))
    tree = {"stack": jnp.asarray(stack, jnp.float32), "one": jnp.asarray(one, jnp.float32)}
    want = sum(np.abs(m - 4.0).sum() / m.size for m in (*stack, one))
    assert float(bit_width.layer_loss(tree, 4.0)) == pytest.approx(want, rel=1e-6)
    grads = jax.grad(bit_width.layer_loss)(tree, 4.0)
    np.testing.assert_allclose(grads["stack"], np.sign(stack - 4.0) / 10, rtol=1e-6)
    np.testing.assert_allclose(grads["one"], np.sign(one - 4.0) / 7, rtol=1e-6)
    assert float(bit_width.layer_loss({}, 4.0)) == 0.0


def test_average_loss_is_least_at_the_average_whatever_the_blocks():
    tree = {"a": jnp.array([[3.0, 9.0]]), "b": jnp.array([[4.0], [4.0]])}
    assert float(bit_width.average_loss(tree, 5.0)) == 0.0
    assert float(bit_width.average_loss(tree, 4.0)) == 1.0
    grads = jax.grad(bit_width.average_loss)(tree, 4.0)
    assert {float(x) for g in jax.tree.leaves(grads) for x in g.ravel()} == {0.5}
