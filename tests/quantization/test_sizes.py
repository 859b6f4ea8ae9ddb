# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sizes against a count by hand, weight by weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax import Rule, Spec
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.formats import BF16, E2M1, E3M2, E4M3, E4M7
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.quantization import quantize, sizes
from pqt_jax.quantization.quantize import plan_mixed, plan_uniform

RULES = [Rule(".*kernel")]


@pytest.mark.parametrize(
    "fmt, block, scale, bits",
    [
        (E2M1, (32, 32), "ceil", 4 * 7000 + 8 * 12),
        (E3M2, (1, 32), "floor", 6 * 7000 + 8 * 300),
        (E4M3, (32, 1), "ceil", 8 * 7000 + 8 * 4 * 70),
        (E4M3, (32, 32), "exact", 8 * 7000 + 32 * 12),
        (E4M7, (32, 32), "ceil", 12 * 7000 + 8 * 12),
        (BF16, (32, 32), "ceil", 16 * 7000),
        (BF16, (32, 32), "exact", 16 * 7000),
    ],
)
def test_one_format(fmt, block, scale, bits):
    params = {"kernel": jax.ShapeDtypeStruct((100, 70), jnp.float32)}
    plan = plan_uniform(params, RULES, fmt, block=block, scale=scale)
    size = sizes.parameter_sizes(plan, params)["kernel"]
    assert size.bits == bits and size.weights == 7000 and size.mean_bits == bits / 7000
    assert sizes.count_by_format((100, 70), plan["kernel"]) == {fmt.name: 7000}


def test_a_mixture_is_counted_weight_by_weight():
    shape = (2, 50, 3, 30)
    index = jnp.array(np.random.default_rng(0).integers(0, 5, (2, 2, 3)), jnp.int32)
    assigned = FormatAssignment(Spec(noise="none", matrix_axes=(1, 2)), index)
    size = sizes.parameter_size(shape, assigned)
    codes, expected = 0, {}
    for lead in range(2):
        for row in range(50):
            for column in range(90):
                fmt = MIXED_FORMATS[int(index[lead, row // 32, column // 32])]
                codes += fmt.bits
                expected[fmt.name] = expected.get(fmt.name, 0) + 1
    assert size == sizes.StoredSize(weights=9000, codes=codes, scales=8 * 12, tags=4 * 12)
    counts = sizes.count_by_format(shape, assigned)
    assert counts == expected and list(counts) == [
        f.name for f in MIXED_FORMATS if f.name in expected
    ]


def test_the_total_is_the_sum():
    each = [sizes.StoredSize(10, 40, 8, 4), sizes.StoredSize(30, 180, 8, 0)]
    assert sizes.total_size(each) == sizes.StoredSize(40, 220, 16, 4)
    assert sizes.total_size(each).mean_bits == 6.0
    assert sizes.total_size([]).mean_bits == 0.0


def test_expected_bits_are_exact_where_a_format_ends_and_never_more_than_what_is_stored():
    limits = jnp.array([float(fmt.noise_bits) for fmt in MIXED_FORMATS[:-1]])
    assert sizes.expected_bits(limits).tolist() == [fmt.bits for fmt in MIXED_FORMATS[:-1]]
    b_t = jnp.linspace(1, 16, 301)
    stored = np.array([fmt.bits for fmt in MIXED_FORMATS])[np.asarray(quantize.format_index(b_t))]
    expected = np.asarray(sizes.expected_bits(b_t))
    assert (expected <= stored).all() and (np.diff(expected) >= 0).all()


def test_the_mean_weighs_blocks_by_their_weights_and_has_a_gradient():
    params = {"a": {"kernel": jnp.ones((40, 32))}, "b": {"kernel": jnp.ones((32, 32))}}
    flat = {"a/kernel": jnp.array([[5.0], [4.0]]), "b/kernel": jnp.array([[3.5]])}
    weights = {"a/kernel": np.array([[1024], [256]]), "b/kernel": np.array([[1024]])}
    for path, leaf in (("a/kernel", params["a"]["kernel"]), ("b/kernel", params["b"]["kernel"])):
        np.testing.assert_array_equal(sizes.weights_per_block(leaf.shape, Spec()), weights[path])
    mean = sizes.mean_bits(flat, weights)
    assert mean == pytest.approx((1024 * 8 + 256 * 6 + 1024 * 5) / 2304)
    grads = jax.grad(sizes.mean_bits)(flat, weights)
    assert float(grads["b/kernel"][0, 0]) == pytest.approx(2 * 1024 / 2304)


def test_sizes_follow_the_learned_bits():
    params = {"kernel": jnp.ones((64, 64))}
    bits = {"kernel": jnp.array([[-0.5, 0.0], [0.5, 1.0]])}  # b_t 3, 4, 5, 6
    size = sizes.parameter_sizes(plan_mixed(params, bits, RULES), params)["kernel"]
    assert size.codes == 1024 * (4 + 6 + 8 + 12)
