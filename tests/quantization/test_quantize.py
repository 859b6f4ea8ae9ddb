# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Deterministic quantization against ml_dtypes and gfloat, block by block; plans."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax import FloatFormat, Rule, param_transform
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3, E5M2
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.quantization import codes, sizes
from pqt_jax.quantization.quantize import apply, plan_mixed, plan_uniform, quantize
from pqt_jax.transform.perturb import perturb


def reference(w, fmt, block, rule):
    """Quantize each block separately: scale in float64, round by ml_dtypes, scale back."""
    out = np.empty(w.shape, np.float32)
    for i in range(0, w.shape[0], block[0]):
        for j in range(0, w.shape[1], block[1]):
            part = w[i : i + block[0], j : j + block[1]].astype(np.float64)
            largest = np.abs(part).max()
            if largest == 0:
                out[i : i + block[0], j : j + block[1]] = part
                continue
            if rule == "floor":
                scale = 2.0 ** (np.floor(np.log2(largest)) - fmt.emax)
            elif rule == "ceil":
                scale = 2.0 ** np.ceil(np.log2(largest / fmt.max))
            else:
                scale = np.float64(np.float32(largest) * np.float32(1 / fmt.max))
            ratio = part.astype(np.float32) / np.float32(scale)
            scaled = np.clip(ratio, -fmt.max, fmt.max).astype(np.float32)
            rounded = scaled.astype(fmt.dtype).astype(np.float64)
            out[i : i + block[0], j : j + block[1]] = rounded * scale
    return out


def formats_blocks_rules():
    """All products. The quick ones vary one of format, block and rule at a time."""
    for fmt in (E4M3, E5M2, E3M2, E2M3, E2M1):
        for block in ((32, 32), (1, 32), (32, 1), (64, 16)):
            for rule in ("floor", "ceil", "exact"):
                changed = (fmt != E2M1) + (block != (32, 32)) + (rule != "ceil")
                # Of blocks that are no squares, those of a row are OCP's.
                is_slow = changed > 1 or block in ((32, 1), (64, 16))
                marks = [pytest.mark.slow] if is_slow else []
                sides = "x".join(map(str, block))
                yield pytest.param(fmt, block, rule, marks=marks, id=f"{fmt}-{sides}-{rule}")


@pytest.mark.parametrize(("fmt", "block", "rule"), list(formats_blocks_rules()))
def test_quantize_equals_ml_dtypes_block_by_block(fmt, block, rule):
    w = np.random.default_rng(0).normal(size=(70, 100)).astype(np.float32)
    w[:32, :32] = 0
    w *= np.exp2(np.arange(100) // 20)  # scales differ along the columns
    got = quantize({"w": jnp.asarray(w)}, [Rule("w")], fmt, block=block, scale=rule)["w"]
    assert got.dtype == (jnp.float32 if rule == "exact" else jnp.bfloat16)
    if rule != "exact":
        same = quantize({"w": jnp.asarray(w)}, [Rule("w", block=block, scale=rule)], fmt)["w"]
        np.testing.assert_array_equal(got, same)
    np.testing.assert_array_equal(got.astype(jnp.float32), reference(w, fmt, block, rule))


def test_bfloat16_is_the_plain_cast_and_needs_no_scale():
    w = jax.random.normal(jax.random.key(0), (40, 40))
    got = quantize({"w": w}, [Rule("w")], jnp.bfloat16)["w"]
    np.testing.assert_array_equal(got, w.astype(jnp.bfloat16))


def test_what_no_rule_samples_stays():
    params = {"w": jnp.ones((4, 4)) / 3, "v": jnp.ones((4, 4)) / 3, "b": jnp.ones(4) / 3}
    got = quantize(params, [Rule("v", None), Rule("w")], E2M1)
    assert got["v"] is params["v"] and got["b"] is params["b"] and got["w"] is not params["w"]


def test_wide_formats_are_stored_in_float32():
    w = jax.random.normal(jax.random.key(0), (40, 40))
    got = quantize({"w": w}, [Rule("w")], FloatFormat(5, 10))["w"]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, w, rtol=2**-11)


@pytest.mark.parametrize("mantissa_bits", [0, 3, 7, 23])
def test_infinity_stays_where_there_is_no_scale(mantissa_bits):
    w = jnp.ones((32, 32)).at[0, 0].set(jnp.inf).at[1, 1].set(-jnp.inf)
    got = quantize({"w": w}, [Rule("w")], FloatFormat(8, mantissa_bits))["w"]
    assert got[0, 0] == jnp.inf and got[1, 1] == -jnp.inf and got[2, 2] == 1


def test_an_exact_scale_meets_the_largest_weight_of_every_block():
    w = jax.random.normal(jax.random.key(0), (64, 64))
    for fmt in (E2M1, E3M2, E4M3):
        got = quantize({"w": w}, [Rule("w")], fmt, scale="exact")["w"]
        largest = np.abs(np.asarray(w)).reshape(2, 32, 2, 32).max((1, 3))
        kept = np.abs(np.asarray(got)).reshape(2, 32, 2, 32).max((1, 3))
        np.testing.assert_allclose(kept, largest, rtol=2**-22)


def test_blocks_of_zeros_and_with_infinities_under_an_exact_scale():
    w = jnp.ones((32, 96)).at[:, :32].set(0.0).at[0, 32].set(jnp.inf).at[3, 64].set(-2.0)
    got = np.asarray(quantize({"w": w}, [Rule("w")], E2M1, scale="exact")["w"])
    assert (got[:, :32] == 0).all() and np.isnan(got[:, 32:64]).all() and got[3, 64] == -2.0


@pytest.mark.parametrize("rule", ["exact", "mse"])
def test_sampled_weights_take_a_scale_of_their_largest_weight(rule):
    with pytest.raises(ValueError, match=f"scale='{rule}'; sampled weights of dtype=E2M1 take"):
        Rule("w", scale=rule, dtype=E2M1)
    Rule("w", scale=rule)  # bfloat16 has no scale


@pytest.mark.parametrize("fmt", [E2M1, E2M3, E4M3], ids=str)
@pytest.mark.parametrize("block", [(32, 32), (32, 128), (1, 32)])
def test_the_scale_of_least_error_is_the_best_of_three(fmt, block):
    """Against each of them tried in float64; a block has more error under any other."""
    w = np.random.default_rng(0).standard_t(4, (64, 128)).astype(np.float32)
    w[:32, :32] = 0
    got = np.asarray(quantize({"w": w}, [Rule("w")], fmt, block=block, scale="mse")["w"])
    halvings = []
    for i, j in itertools.product(range(0, 64, block[0]), range(0, 128, block[1])):
        part = w[i : i + block[0], j : j + block[1]]
        ceil = 2.0 ** np.ceil(np.log2(max(np.abs(part).max(), 1e-30) / fmt.max))
        tried = []
        for scale in (ceil, ceil / 2, ceil / 4):
            clipped = np.clip(part / np.float32(scale), -fmt.max, fmt.max)
            tried.append(clipped.astype(fmt.dtype).astype(np.float64) * scale)
        best = int(np.argmin([np.square(one - part).sum() for one in tried]))
        np.testing.assert_array_equal(got[i : i + block[0], j : j + block[1]], tried[best])
        halvings.append(best)
    assert len(set(halvings)) > 1 or fmt != E2M1  # of few bits, some blocks gain by saturation


def test_codes_of_the_scale_of_least_error_stand_for_the_rounded_weights():
    w = np.random.default_rng(1).standard_t(4, (3, 100, 70)).astype(np.float32)
    plan = plan_uniform({"w": w}, [Rule("w")], E2M1, scale="mse")
    tensors = codes.encode_parameter(w, plan["w"])
    assert tensors["scale"].dtype == np.uint8
    decoded = codes.decode_parameter(tensors, w.shape, plan["w"])
    np.testing.assert_array_equal(decoded, np.asarray(apply(plan, {"w": w})["w"]))
    other = plan_uniform({"w": w}, [Rule("w")], E2M1)
    assert (tensors["scale"] < codes.encode_parameter(w, other["w"])["scale"]).any()
    with pytest.raises(ValueError, match="it must be one of floor, ceil, exact"):
        Rule("w", scale="round")
    straight = Rule("w", noise="none", dtype=E2M1, scale="exact")  # quantization-aware training
    w = jax.random.normal(jax.random.key(0), (32, 32))
    got = perturb(w, None, None, straight.spec)
    np.testing.assert_array_equal(got, quantize({"w": w}, [Rule("w")], E2M1, scale="exact")["w"])


INDEX = np.array([[0, 0, 1, 4], [0, 2, 1, 1]])


def make_bits(index):
    """b_i of blocks that go to these formats, for target 4 and initial 6 bits."""
    limits = np.array([3.0, 4.0, 5.0, 9.0, 16.0])
    return jnp.array((limits[index] - 4) / 2, jnp.float32)


@pytest.mark.parametrize(
    "granularity, share, expected",
    [
        ("block", 1.0, INDEX),
        ("tensor", 1.0, np.full((2, 4), 4)),
        ("tensor", 7 / 8, np.full((2, 4), 2)),
        ("tensor", 6 / 8, np.full((2, 4), 1)),
        ("tensor", 0.75 + 1e-3, np.full((2, 4), 2)),
        ("tensor", 3 / 8, np.full((2, 4), 0)),
        ("tensor", 0.01, np.full((2, 4), 0)),
        ("model", 1.0, np.full((2, 4), 4)),
        ("model", 0.9, np.full((2, 4), 2)),
    ],
)
def test_granularity_and_share_of_the_blocks(granularity, share, expected):
    # The model has eight more blocks, all in E2M1.
    params = {"w": jnp.ones((64, 128)), "v": jnp.ones((64, 128))}
    bits = {"w": make_bits(INDEX), "v": make_bits(np.zeros((2, 4), int))}
    plan = plan_mixed(params, bits, [Rule(".")], granularity=granularity, share=share)
    np.testing.assert_array_equal(plan["w"].index, expected)
    assert plan["w"].index.dtype == jnp.int32
    if granularity != "model":
        np.testing.assert_array_equal(plan["v"].index, np.zeros((2, 4)))


def test_each_layer_of_a_stack_is_a_tensor():
    params = {"w": jnp.ones((2, 32, 128))}
    bits = {"w": make_bits(INDEX)[:, None, :]}
    plan = plan_mixed(params, bits, [Rule("w")], granularity="tensor", share=0.75)
    np.testing.assert_array_equal(plan["w"].index, [[[1] * 4], [[1] * 4]])
    plan = plan_mixed(params, bits, [Rule("w")], granularity="tensor")
    np.testing.assert_array_equal(plan["w"].index, [[[4] * 4], [[2] * 4]])


def test_plans_by_block_are_what_the_transform_does():
    params = {"w": jax.random.normal(jax.random.key(0), (64, 128)), "b": jnp.ones(3)}
    rules, bits = [Rule("w")], {"w": make_bits(INDEX)}
    got = apply(plan_mixed(params, bits, rules), params)
    want = param_transform(rules).quantize(params, bits)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_wrong_plans_are_refused():
    params, bits = {"w": jnp.ones((64, 128))}, {"w": make_bits(INDEX)}
    with pytest.raises(ValueError, match="granularity='row'; it must be one of block, tensor"):
        plan_mixed(params, bits, [Rule("w")], granularity="row")
    with pytest.raises(ValueError, match="match='bits'; it must be one of noise, error"):
        plan_mixed(params, bits, [Rule("w")], match="bits")  # pyright: ignore[reportArgumentType]
    for share in (0, 1.1, -1, float("nan")):
        with pytest.raises(ValueError, match="share=.*above 0 and at most 1"):
            plan_mixed(params, bits, [Rule("w")], granularity="tensor", share=share)
    with pytest.raises(ValueError, match="w: no bits for w of shape"):
        plan_mixed(params, {}, [Rule("w")])
    with pytest.raises(ValueError, match=r"w: bits of shape \(1, 1\)"):
        plan_mixed(params, {"w": jnp.ones((1, 1))}, [Rule("w")])


# gfloat 0.5.2 is an independent implementation, which rounds in float64.
@pytest.mark.parametrize("name", ["ocp_e4m3", "ocp_e5m2", "ocp_e3m2", "ocp_e2m3", "ocp_e2m1"])
@pytest.mark.parametrize("rule", ["floor", "ceil"])
def test_gfloat_agrees_on_blocks_of_ocp(name, rule):
    gfloat = pytest.importorskip("gfloat", reason="the extra `peers` is not installed")
    from gfloat import formats as theirs

    info = getattr(theirs, f"format_info_{name}")
    fmt = {"ocp_e4m3": E4M3, "ocp_e5m2": E5M2, "ocp_e3m2": E3M2, "ocp_e2m3": E2M3, "ocp_e2m1": E2M1}
    rng = np.random.default_rng(1)
    w = (rng.normal(size=(32, 96)) * 2.0 ** rng.integers(-12, 12, (32, 1))).astype(np.float32)
    w[0, 32:64] = 0
    w[1, :32] = np.ldexp(np.arange(32), -3)  # ties
    got = quantize({"w": w}, [Rule("w")], fmt[name], block=(1, 32), scale=rule)["w"]
    got = np.asarray(got, np.float64)
    for i in range(32):
        for j in range(0, 96, 32):
            part = w[i, j : j + 32].astype(np.float64)
            largest = np.abs(part).max() or 1.0
            shift = np.floor(np.log2(largest)) - info.emax
            if rule == "ceil":
                shift = np.ceil(np.log2(largest / info.max))
            want = [gfloat.round_float(info, x, sat=True) for x in part / 2.0**shift]
            np.testing.assert_array_equal(got[i, j : j + 32], np.array(want) * 2.0**shift)


def test_a_share_is_of_one_block_at_least():
    params, bits = {"w": jnp.ones((32, 64))}, {"w": jnp.ones((1, 2))}
    index = plan_mixed(params, bits, [Rule("w")], granularity="tensor", share=1e-10)["w"].index
    assert MIXED_FORMATS[index[0, 0]].noise_bits >= 6


def test_expected_bits_keep_their_dtype_where_floats_are_wide():
    with jax.enable_x64(True):
        b_t = jnp.array([3.0, 4.5, 6.0], jnp.float32)
        assert sizes.expected_bits(b_t).dtype == jnp.float32
