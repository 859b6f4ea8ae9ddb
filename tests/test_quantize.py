# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Deterministic quantization, against ml_dtypes on NumPy blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax import FloatFormat, Rule, Spec
from pqt_jax.formats import BF16, E2M1, E2M3, E3M2, E4M3, E4M7, E5M2
from pqt_jax.quantize import LADDER, format_index, quantize, quantize_mixed


def reference(w, fmt, block, rule):
    """Each block on its own: scale in float64, round by ml_dtypes, scale back."""
    out = np.empty(w.shape, np.float32)
    for i in range(0, w.shape[0], block[0]):
        for j in range(0, w.shape[1], block[1]):
            part = w[i : i + block[0], j : j + block[1]].astype(np.float64)
            largest = np.abs(part).max()
            if largest == 0:
                out[i : i + block[0], j : j + block[1]] = part
                continue
            if rule == "floor":
                exponent = np.floor(np.log2(largest)) - fmt.emax
            else:
                exponent = np.ceil(np.log2(largest / fmt.max))
            scaled = np.clip(part / 2.0**exponent, -fmt.max, fmt.max).astype(np.float32)
            rounded = scaled.astype(fmt.dtype).astype(np.float64)
            out[i : i + block[0], j : j + block[1]] = rounded * 2.0**exponent
    return out


@pytest.mark.parametrize("rule", ["floor", "ceil"])
@pytest.mark.parametrize("block", [(32, 32), (1, 32), (32, 1), (64, 16)])
@pytest.mark.parametrize("fmt", [E4M3, E5M2, E3M2, E2M3, E2M1], ids=str)
def test_quantize_equals_ml_dtypes_block_by_block(fmt, block, rule):
    w = np.random.default_rng(0).normal(size=(70, 100)).astype(np.float32)
    w[:32, :32] = 0
    w *= np.exp2(np.arange(100) // 20)  # scales differ along the columns
    got = quantize({"w": jnp.asarray(w)}, [Rule("w", block=block, scale=rule)], fmt)["w"]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), reference(w, fmt, block, rule))


def test_bfloat16_is_the_plain_cast_and_needs_no_scale():
    w = jax.random.normal(jax.random.key(0), (40, 40))
    got = quantize({"w": w}, [Rule("w")], jnp.bfloat16)["w"]
    np.testing.assert_array_equal(got, w.astype(jnp.bfloat16))


def test_what_no_rule_samples_stays():
    params = {"w": jnp.ones((4, 4)) / 3, "v": jnp.ones((4, 4)) / 3, "b": jnp.ones(4) / 3}
    got = quantize(params, [Rule("v", None), Rule("w")], E2M1)
    assert got["v"] is params["v"] and got["b"] is params["b"] and got["w"] is not params["w"]


def test_each_bit_width_gets_the_smallest_format_that_carries_it():
    b_t = jnp.array([1.0, 3.0, 3.01, 4.0, 4.5, 5.0, 5.1, 9.0, 9.01, 16.0])
    names = [LADDER[i].name for i in format_index(b_t)]
    assert names == "E2M1 E2M1 E3M2 E3M2 E4M3 E4M3 E4M7 E4M7 BF16 BF16".split()
    assert LADDER == (E2M1, E3M2, E4M3, E4M7, BF16)


def test_mixed_takes_stacks_and_ragged_edges():
    w = jax.random.normal(jax.random.key(0), (2, 50, 3, 30))
    spec = Spec(matrix_axes=(1, 2))
    b_t = jnp.array([[[3.0, 4.0, 5.0], [9.0, 12.0, 3.0]], [[16.0] * 3, [3.0] * 3]])
    got = np.asarray(quantize_mixed(w, b_t, spec).astype(jnp.float32)).reshape(2, 50, 90)
    for (lead, i, j), bits in np.ndenumerate(np.asarray(b_t)):
        fmt = LADDER[int(format_index(jnp.float32(bits)))]
        block = np.asarray(w).reshape(2, 50, 90)[lead, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
        want = quantize({"w": jnp.asarray(block)}, [Rule("w")], fmt)["w"].astype(jnp.float32)
        np.testing.assert_array_equal(got[lead, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32], want)


def test_wide_formats_are_held_in_float32():
    w = jax.random.normal(jax.random.key(0), (40, 40))
    got = quantize({"w": w}, [Rule("w")], FloatFormat(5, 10))["w"]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, w, rtol=2**-11)


def test_bits_of_the_wrong_shape_are_refused():
    for shape in ((4, 4), (2, 3), (1, 1)):
        with pytest.raises(ValueError, match=r"need \(2, 2\)"):
            quantize_mixed(jnp.ones((64, 64)), jnp.full(shape, 4.0), Spec())


def test_nothing_relies_on_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        quantize_mixed(jnp.ones((2, 64, 64)), jnp.full((2, 2, 2), 4.0), Spec())


@pytest.mark.parametrize("mantissa_bits", [0, 3, 7, 23])
def test_infinity_stays_where_there_is_no_scale(mantissa_bits):
    w = jnp.ones((32, 32)).at[0, 0].set(jnp.inf).at[1, 1].set(-jnp.inf)
    got = quantize({"w": w}, [Rule("w")], FloatFormat(8, mantissa_bits))["w"]
    assert got[0, 0] == jnp.inf and got[1, 1] == -jnp.inf and got[2, 2] == 1
