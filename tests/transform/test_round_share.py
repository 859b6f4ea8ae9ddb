# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rounding a random share of the blocks: which blocks, their bits, gradients, meshes, training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import Rule, param_transform
from pqt_jax.numerics import keys
from pqt_jax.numerics.block_choice import choose_blocks
from pqt_jax.training import startup_summary
from pqt_jax.transform.perturb import Spec, perturb
from support import oracle

pytestmark = pytest.mark.jax_version

HALF = Spec(noise="none", dtype="float4_e2m1fn", scale="mse", round_share=0.5)
SHAPE = (2, 256, 512)


def words(last=2):
    return jnp.array([1, last], jnp.uint32)


def key():
    return jax.random.key(3)


def weights(shape=SHAPE):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def origin(lead=0, run=0, column=0):
    return jnp.array([lead, run, column], jnp.uint32)


def test_the_choice_is_the_first_version_of_its_stream():
    """Blocks of 64 × 16; the words of the definition are those of a Philox in plain Python."""
    chosen = choose_blocks(words(), origin(), (2, 3, 8), (64, 16), 0.5)
    for lead, i, j in np.ndindex(chosen.shape):
        word = oracle.philox((16 * j, 64 * i, lead, 1), (1, 2))[0]
        assert chosen[lead, i, j] == (word < 2**31)
    rows = ["".join("01"[int(x)] for x in row) for row in np.asarray(chosen).reshape(6, 8)]
    assert rows == ["01000110", "10000101", "10100111", "11000000", "00001100", "11110100"]


def test_the_choice_is_that_of_the_global_index():
    whole = choose_blocks(words(), origin(), (3, 8, 16), (64, 16), 0.3)
    part = choose_blocks(
        words(), origin(1, 4, 32), (2, 6, 14), (64, 16), 0.3
    )  # 128 rows, 32 columns
    np.testing.assert_array_equal(part, whole[1:, 2:, 2:])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_share_of_the_blocks_is_chosen(share):
    chosen = np.asarray(choose_blocks(words(), origin(), (4, 200, 250), (32, 32), share))
    deviation = np.sqrt(share * (1 - share) / chosen.size)
    assert abs(chosen.mean() - share) < 4 * deviation
    other = np.asarray(choose_blocks(words(3), origin(), (4, 200, 250), (32, 32), share))
    both = (chosen & other).mean()
    assert abs(both - share**2) < 5 * deviation  # another key chooses by itself


def definition(w, spec, key):
    """Each block by itself: rounded if it is chosen, else as bfloat16."""
    leads, m, n = w.shape
    bm, bn = spec.block
    every = dataclasses.replace(spec, round_share=1.0)
    full = np.asarray(perturb(w, None, None, every), np.float32)
    plain = np.asarray(w.astype(spec.storage), np.float32)
    grid = (leads, -(-m // bm), -(-n // bn))
    chosen = choose_blocks(keys.key_words(key), origin(), grid, spec.block, spec.round_share)
    out = np.empty(w.shape, np.float32)
    for lead, i, j in np.ndindex(grid):
        at = (lead, slice(i * bm, (i + 1) * bm), slice(j * bn, (j + 1) * bn))
        out[at] = (full if chosen[lead, i, j] else plain)[at]
    return out


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"block": (16, 64), "round_share": 0.25, "dtype": "float8_e4m3fn", "scale": "ceil"},
        {"scale": "exact"},  # ŵ is float32
    ],
    ids=str,
)
def test_each_block_is_rounded_or_cast(fields):
    spec, w = dataclasses.replace(HALF, **fields), weights((2, 100, 150))
    found = jax.jit(lambda w, key: perturb(w, None, key, spec))(w, key())
    assert found.dtype == spec.storage
    np.testing.assert_array_equal(np.asarray(found, np.float32), definition(w, spec, key()))


def test_the_gradient_is_that_of_every_weight():
    w = weights((1, 64, 96))
    w_hat, back = jax.vjp(lambda w: perturb(w, None, key(), HALF), w)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=w.shape), w_hat.dtype)
    np.testing.assert_array_equal(back(cotangent)[0], cotangent.astype(jnp.float32))


def test_a_layer_alone_gets_its_choice_of_the_stack():
    w = weights()
    whole = perturb(w, None, key(), HALF)
    for lead in range(2):
        np.testing.assert_array_equal(perturb(w[lead], None, key(), HALF, lead=lead), whole[lead])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_every_mesh_chooses_the_same_blocks(kind):
    devices = np.array(jax.devices("cpu")[:8]).reshape(4, 2)
    mesh = Mesh(devices, ("x", "y"), axis_types=(kind,) * 2)
    want = jax.jit(lambda w: perturb(w, None, key(), HALF))(weights())
    with jax.set_mesh(mesh):
        w = jax.device_put(weights(), NamedSharding(mesh, P(None, "x", "y")))
        found = jax.jit(lambda w: perturb(w, None, key(), HALF))(w)
        assert found.sharding.is_equivalent_to(w.sharding, 3)
    np.testing.assert_array_equal(oracle.bits_of(found), oracle.bits_of(want))


def test_a_shard_that_says_where_it_lies_has_the_choice_of_the_whole():
    w = weights()[0]
    mesh = Mesh(np.array(jax.devices("cpu")[:4]), ("x",))

    def local(w):
        rows = jax.lax.axis_index("x") * w.shape[0]
        return perturb(w, None, key(), HALF, origin=(rows, 0))

    found = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(w)
    np.testing.assert_array_equal(found, perturb(w, None, key(), HALF))


def test_a_tree_has_a_choice_for_each_path_and_is_quantized_whole():
    rule = Rule("w.", noise="none", dtype="float4_e2m1fn", round_share=0.5)
    params = {"wa": weights((64, 96)), "wb": weights((64, 96))}
    transform = param_transform([rule])
    assert transform.init(params) == {}
    sampled = transform.sample(params, {}, key())
    for path, leaf in sampled.items():
        want = perturb(params[path], None, keys.param_key(key(), path), rule.spec)
        np.testing.assert_array_equal(leaf, want)
    assert (sampled["wa"] != sampled["wb"]).any()
    whole = dataclasses.replace(rule.spec, round_share=1.0)
    rounded = transform.quantize(params, {})
    np.testing.assert_array_equal(rounded["wa"], perturb(params["wa"], None, None, whole))


def test_tables_say_which_share():
    rule = Rule("w", noise="none", dtype="float4_e2m1fn", round_share=0.125)
    params = {"w": weights((64, 96))}
    assert "FP4 E2M1, 12.5 % of the blocks" in param_transform([rule]).summary(params, {})
    (line,) = startup_summary.describe_rules([rule], params)
    assert line.endswith("no noise, 32x32, FP4 E2M1, 12.5 % of the blocks")


def test_what_makes_no_sense_is_refused():
    for share in (0.0, 1.5, float("nan"), "0.5", None, True):
        with pytest.raises(ValueError, match="round_share=.*; it must be a number above 0 and at"):
            Rule("w", noise="none", dtype="fp4_e2m1", round_share=share)
    with pytest.raises(ValueError, match="round_share=0.5; noise='gauss' samples every block"):
        Rule("w", round_share=0.5)
    with pytest.raises(TypeError, match="key is None"):
        perturb(weights(), None, None, HALF)
