# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`param_transform`: pure functions on trees, keyed by path."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax import Rule, Spec, param_transform
from pqt_jax.numerics import keys
from pqt_jax.quantization.quantize import plan_mixed, quantize
from pqt_jax.transform.perturb import perturb


def make_key():
    return jax.random.key(7)


def make_params(**extra):
    k = jax.random.split(jax.random.key(0), 3)
    return {
        "embed": {"embedding": jax.random.normal(k[0], (70, 64))},
        "h": {
            "up": {"kernel": jax.random.normal(k[1], (3, 64, 100)), "bias": jnp.ones((3, 100))},
            "norm": {"scale": jnp.ones((3, 64))},
        },
        "head": {"kernel": jax.random.normal(k[2], (64, 70))},
        **extra,
    }


RULES = [Rule("h/.*/kernel"), Rule("head/kernel", 3, dtype="float4_e2m1fn")]


def test_init_makes_one_number_per_block_of_what_is_sampled():
    bits = param_transform(RULES).init(make_params())
    assert jax.tree.map(jnp.shape, bits) == {
        "h": {"up": {"kernel": (3, 2, 4)}},
        "head": {"kernel": (2, 3)},
    }
    assert all((leaf == 1).all() and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(bits))
    shapes = jax.eval_shape(make_params)
    assert jax.tree.map(jnp.shape, param_transform(RULES).init(shapes)) == jax.tree.map(
        jnp.shape, bits
    )


def test_sample_is_perturb_under_the_key_of_each_path():
    transform, params = param_transform(RULES), make_params()
    bits = transform.init(params)
    got = transform.sample(params, bits, make_key())
    spec = Spec(3, dtype="float4_e2m1fn")
    want = perturb(
        params["head"]["kernel"],
        bits["head"]["kernel"],
        jax.random.fold_in(make_key(), zlib.crc32(b"head/kernel")),
        spec,
    )
    np.testing.assert_array_equal(got["head"]["kernel"], want)
    assert got["embed"]["embedding"] is params["embed"]["embedding"]
    assert got["h"]["up"]["bias"] is params["h"]["up"]["bias"]


def test_adding_a_parameter_changes_no_other_noise():
    transform = param_transform([Rule(".*kernel")])
    params, more = make_params(), make_params(aa={"kernel": jnp.ones((40, 40))})
    few = transform.sample(params, transform.init(params), make_key())
    many = transform.sample(more, transform.init(more), make_key())
    np.testing.assert_array_equal(few["h"]["up"]["kernel"], many["h"]["up"]["kernel"])
    np.testing.assert_array_equal(few["head"]["kernel"], many["head"]["kernel"])


def test_parameters_of_one_shape_get_noise_of_their_own():
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    transform = param_transform([Rule(".*", dtype=jnp.float32)])
    sampled = transform.sample(params, transform.init(params), make_key())
    assert 0.3 < np.mean(np.asarray(sampled["a"]) != np.asarray(sampled["b"])) < 0.7


def test_steps_get_noise_of_their_own_and_the_same_step_the_same():
    transform, params = param_transform(RULES), make_params()
    bits = transform.init(params)
    draws = [transform.sample(params, bits, keys.step_key(make_key(), s)) for s in (0, 1, 0)]
    kernel = [np.asarray(d["head"]["kernel"]) for d in draws]
    assert (kernel[0] != kernel[1]).any()
    np.testing.assert_array_equal(kernel[0], kernel[2])


def test_a_slice_of_the_stack_gets_the_noise_of_the_whole():
    rules = [Rule(".*/kernel")]
    stacked = make_params()["h"]
    whole = param_transform(rules, prefix="h")
    bits = whole.init(stacked)
    want = whole.sample(stacked, bits, make_key())["up"]["kernel"]

    def body(carry, layer):
        index, params, bits = layer
        return carry, whole.sample(params, bits, make_key(), lead=index)["up"]["kernel"]

    xs = (jnp.arange(3), stacked, bits)
    _, scanned = jax.lax.scan(body, 0, xs)
    np.testing.assert_array_equal(scanned, want)
    # With the prefix, it is the noise of the full tree.
    full = param_transform([Rule("h/.*/kernel")])
    params = make_params()
    np.testing.assert_array_equal(
        full.sample(params, full.init(params), make_key())["h"]["up"]["kernel"], want
    )


def test_slices_with_experts_count_their_matrices():
    w = jax.random.normal(jax.random.key(1), (3, 5, 32, 40))
    transform = param_transform([Rule("w")])
    bits = transform.init({"w": w})
    whole = transform.sample({"w": w}, bits, make_key())["w"]
    part = transform.sample({"w": w[2]}, {"w": bits["w"][2]}, make_key(), lead=2)["w"]
    np.testing.assert_array_equal(whole[2], part)


def test_gradients_reach_parameters_and_bits():
    transform, params = param_transform(RULES), make_params()

    def loss(params, bits):
        sampled = transform.sample(params, bits, make_key())
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 3) for leaf in jax.tree.leaves(sampled))

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, transform.init(params))
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all() and (leaf != 0).any()


def test_bit_widths_follow_each_rule():
    transform, params = param_transform(RULES), make_params()
    bits = jax.tree.map(lambda b: 0.5 * b, transform.init(params))
    widths = transform.bit_widths(bits)
    assert np.unique(widths["h"]["up"]["kernel"]) == 5.0
    assert np.unique(widths["head"]["kernel"]) == 4.5
    with pytest.raises(ValueError, match="no rule samples 'other'"):
        transform.bit_widths({"other": jnp.ones((1, 1))})


def test_quantize_rounds_each_block_to_the_format_of_its_bits():
    params = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    rules = [Rule("w", 2.0, init_bits=12.0)]
    transform = param_transform(rules)
    b_t = jnp.array([[3.0, 4.0], [5.0, 9.5]])
    mixed = transform.quantize(params, {"w": (b_t - 2.0) / 10.0})["w"]
    for (i, j), name in {
        (0, 0): "float4_e2m1fn",
        (0, 1): "float6_e3m2fn",
        (1, 0): "float8_e4m3fn",
        (1, 1): "bfloat16",
    }.items():
        rows, columns = slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32)
        want = quantize(params, rules, name)["w"]
        np.testing.assert_array_equal(mixed[rows, columns], want[rows, columns])
        assert (np.asarray(mixed[rows, columns]) != np.asarray(params["w"][rows, columns])).any()


def test_noise_none_is_the_cast_and_needs_no_bits():
    transform = param_transform([Rule("w", noise="none", dtype="float8_e4m3fn")])
    params = {"w": jax.random.normal(jax.random.key(0), (40, 40))}
    assert transform.init(params) == {}
    got = transform.sample(params, {}, make_key())["w"]
    np.testing.assert_array_equal(got, quantize(params, [Rule("w")], "float8_e4m3fn")["w"])
    np.testing.assert_array_equal(got, transform.quantize(params, {})["w"])
    grad = jax.grad(lambda p: jnp.sum(transform.sample(p, {}, make_key())["w"] * 2.0))(params)["w"]
    np.testing.assert_array_equal(grad, np.full((40, 40), 2.0, np.float32))


def test_summary_is_a_table_of_all_parameters():
    transform, params = param_transform(RULES), make_params()
    table, undecided = transform.summary(params, transform.init(params)).split("\n\n")
    assert undecided.startswith("no rule decides about")
    lines = table.splitlines()
    assert lines[0].split() == ["path", "shape", "blocks", "mean", "b_t", "format"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows["h/up/kernel"] == ["3x64x100", "24", "6.00", "BF16", "+", "gauss"]
    assert rows["head/kernel"] == ["64x70", "6", "6.00", "FP4", "E2M1", "+", "gauss"]
    assert rows["embed/embedding"] == ["70x64", "float32"]
    assert len(rows) == len(jax.tree.leaves(params))


def test_errors_name_the_path():
    transform, params = param_transform(RULES), make_params()
    bits = transform.init(params)
    with pytest.raises(ValueError, match="h/up/kernel: bits has no entry"):
        transform.sample(params, {"head": bits["head"]}, make_key())
    bits["head"]["kernel"] = jnp.ones((9, 9))
    with pytest.raises(ValueError, match=r"head/kernel: bits of shape \(9, 9\).*need \(2, 3\)"):
        transform.sample(params, bits, make_key())
    for function in (transform.quantize, transform.summary):
        with pytest.raises(ValueError, match=r"head/kernel: bits of shape \(9, 9\).*need \(2, 3\)"):
            function(params, bits)


@pytest.mark.parametrize("prefix", ["", "model"])
def test_bits_of_a_path_that_is_not_sampled_are_refused(prefix):
    rules, params = [Rule(".*kernel")], {"a": {"kernel": jnp.ones((32, 32)), "bias": jnp.ones(3)}}
    transform = param_transform(rules, prefix=prefix)
    start = f"{prefix}/" if prefix else ""
    for name, other in (("A", "kernel"), ("a", "kernels"), ("a", "bias")):
        bits = transform.init(params)
        bits.setdefault(name, {})[other] = jnp.ones((1, 1))
        calls = [
            lambda bits: transform.sample(params, bits, make_key()),
            lambda bits: transform.quantize(params, bits),
            lambda bits: transform.summary(params, bits),
        ]
        if not prefix:
            calls.append(lambda bits: plan_mixed(params, bits, rules))
        for call in calls:
            with pytest.raises(
                ValueError, match=f"bits has {start}{name}/{other}, where no .* are"
            ):
                call(bits)


class Projections(NamedTuple):
    query: jax.Array
    key: jax.Array
    value: jax.Array


def test_a_field_called_value_is_a_parameter_like_any_other():
    params = {"attn": Projections(*jnp.ones((3, 64, 64)))}
    transform = param_transform([Rule("attn/(query|value)")])
    bits = transform.init(params)
    assert sorted(bits["attn"]) == ["query", "value"]
    sampled = transform.sample(params, bits, make_key())["attn"]
    assert [w.dtype.name for w in sampled] == ["bfloat16", "float32", "bfloat16"]


def test_summary_shows_numbers_too():
    table = param_transform([Rule("a")]).summary(
        {"a": jnp.ones((2, 2)), "b": 1.5}, {"a": jnp.ones((1, 1))}
    )
    assert "b     scalar" in table


def make_two_keys():
    return jax.random.split(jax.random.key(0), 2)


def make_rbg_key():
    return jax.random.key(0, impl="rbg")


@pytest.mark.parametrize(
    ("make_key", "message"),
    [
        (lambda: None, "key is None"),
        (lambda: 0, "key is of type int"),
        (make_two_keys, "one threefry key"),
        (make_rbg_key, "threefry2x32"),
    ],
)
def test_a_key_that_cannot_serve_is_refused(make_key, message):
    transform, params, key = param_transform(RULES), make_params(), make_key()
    with pytest.raises(TypeError, match=message):
        transform.sample(params, transform.init(params), key)


def test_key_reuse_is_detected():
    transform, params = param_transform(RULES), make_params()
    bits = transform.init(params)
    with jax.debug_key_reuse(True):
        key = jax.random.key(3)
        transform.sample(params, bits, jax.random.fold_in(key, 0))
        transform.sample(params, bits, key)
        with pytest.raises(jax.errors.KeyReuseError):
            transform.sample(params, bits, key)
