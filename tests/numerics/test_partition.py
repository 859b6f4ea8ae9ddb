# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sharding on eight fake devices: the same bits as on one device, and no communication."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import Rule, param_transform
from pqt_jax.numerics import blocks
from pqt_jax.transform.perturb import Spec, perturb
from support import oracle

pytestmark = pytest.mark.jax_version

COLLECTIVE = re.compile(
    r"\b(?:all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(?:-start)?\("
)
MATRIX, STACK = (256, 512), (8, 64, 64)
SPECS = {
    "bfloat16": Spec(target_bits=4.0, init_bits=9.0),
    "float4": Spec(target_bits=2.0, init_bits=4.3, dtype="float4_e2m1fn"),
    "uniform": Spec(target_bits=4.0, init_bits=9.0, noise="uniform"),
    "rows": Spec(target_bits=4.0, init_bits=9.0, block=(1, 32)),
}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


AUTO = [
    (MATRIX, P("x", "y"), "bfloat16"),
    (STACK, P("x", "y"), "bfloat16"),
    (MATRIX, P(("x", "y"), None), "rows"),
    *(slow(MATRIX, P(*axes), "bfloat16") for axes in [("y", "x"), (("x", "y"), None), ("x", None)]),
    *(slow(MATRIX, P(*axes), "bfloat16") for axes in [(None, ("x", "y")), ()]),
    *(slow(STACK, P(*axes), "bfloat16") for axes in [("x",), (("x", "y"),), (None, "y")]),
    *(slow(MATRIX, P("x", "y"), name) for name in ("float4", "uniform", "rows")),
]
EXPLICIT = [
    (MATRIX, P(None, ("x", "y")), "bfloat16"),
    (STACK, P("x", "y"), "bfloat16"),
    *(slow(MATRIX, P("x", "y"), name) for name in SPECS),
]


def mark_slow(values):
    return slow(*getattr(values, "values", values))


@functools.cache
def mesh(kind=AxisType.Auto):
    devices = np.array(jax.devices("cpu")[:8]).reshape(4, 2)
    return jax.sharding.Mesh(devices, ("x", "y"), axis_types=(kind,) * 2)


@functools.cache
def operands(shape, name):
    rng = np.random.default_rng(0)
    spec = SPECS[name]
    w = jnp.asarray(rng.normal(size=shape), jnp.float32)
    grid = blocks.grid_shape(shape, spec.block, spec.matrix_axes)
    b_i = jnp.asarray(rng.uniform(size=grid), jnp.float32)
    return w, b_i, jnp.asarray(rng.normal(size=shape), spec.storage)


def forward(spec, w, b_i, key):
    return perturb(w, b_i, key, spec)


def forward_and_backward(spec, w, b_i, key, cotangent):
    w_hat, back = jax.vjp(lambda w, b_i: perturb(w, b_i, key, spec), w, b_i)
    return w_hat, *back(cotangent)


@functools.cache
def on_one_device(shape, name):
    w, b_i, cotangent = operands(shape, name)
    run = jax.jit(functools.partial(forward_and_backward, SPECS[name]))
    return run(w, b_i, jax.random.key(2), cotangent)


def sharded(shape, axes, name, kind=AxisType.Auto):
    sharding = NamedSharding(mesh(kind), axes)
    w, b_i, cotangent = jax.device_put(operands(shape, name), sharding)
    key = jax.device_put(jax.random.key(2), NamedSharding(mesh(kind), P()))
    return sharding, (w, b_i, key), cotangent


def same_bits(got, want):
    np.testing.assert_array_equal(oracle.bits_of(got), oracle.bits_of(want))


@pytest.mark.parametrize(
    ("shape", "axes", "name"), [(MATRIX, P("y", "x"), "float4"), *map(mark_slow, AUTO)], ids=str
)
def test_forward_alone_has_the_same_bits_and_no_communication(shape, axes, name):
    sharding, arguments, _ = sharded(shape, axes, name)
    compiled = jax.jit(functools.partial(forward, SPECS[name])).lower(*arguments).compile()
    assert not COLLECTIVE.findall(compiled.as_text())
    w_hat = compiled(*arguments)
    same_bits(w_hat, on_one_device(shape, name)[0])
    assert w_hat.sharding.is_equivalent_to(sharding, len(shape))


@pytest.mark.parametrize(("shape", "axes", "name"), AUTO, ids=str)
def test_same_bits_and_no_communication(shape, axes, name):
    sharding, arguments, cotangent = sharded(shape, axes, name)
    alone = on_one_device(shape, name)
    both = functools.partial(forward_and_backward, SPECS[name])
    compiled = jax.jit(both).lower(*arguments, cotangent).compile()
    assert not COLLECTIVE.findall(compiled.as_text())
    w_hat, dw, db = compiled(*arguments, cotangent)
    same_bits(w_hat, alone[0])
    same_bits(dw, alone[1])
    np.testing.assert_allclose(db, alone[2], rtol=0, atol=1e-6 * np.abs(alone[2]).max())
    for gradient in (dw, db):
        assert gradient.sharding.is_equivalent_to(sharding, len(shape))
    chex.assert_trees_all_equal_shapes_and_dtypes((w_hat, dw, db), alone)


@pytest.mark.parametrize(("shape", "axes", "name"), EXPLICIT, ids=str)
def test_same_bits_and_no_communication_on_explicit_meshes(shape, axes, name):
    sharding, arguments, cotangent = sharded(shape, axes, name, AxisType.Explicit)
    both = functools.partial(forward_and_backward, SPECS[name])
    with jax.set_mesh(mesh(AxisType.Explicit)):
        compiled = jax.jit(both).lower(*arguments, cotangent).compile()
        w_hat, dw, db = compiled(*arguments, cotangent)
    assert not COLLECTIVE.findall(compiled.as_text())
    alone = on_one_device(shape, name)
    same_bits(w_hat, alone[0])
    same_bits(dw, alone[1])
    np.testing.assert_allclose(db, alone[2], rtol=0, atol=1e-6 * np.abs(alone[2]).max())
    for array in (w_hat, dw, db):
        assert array.sharding.is_equivalent_to(sharding, len(shape))


@pytest.mark.parametrize(
    ("noise", "axes"),
    [
        ("gauss", P("x")),
        slow("gauss", P("x", "y")),
        slow("gauss", P(None, ("y", "x"))),
        *(slow("none", axes) for axes in (P("x", "y"), P("x"), P(None, ("y", "x")))),
    ],
    ids=str,
)
def test_bits_may_be_replicated(noise, axes):
    """`init` makes replicated bits. One case has blocks that lie on several devices."""
    rule = Rule(".*", dtype="float8_e4m3fn", noise=noise)
    transform, key = param_transform([rule]), jax.random.key(2)
    mixed = param_transform([Rule(".*")])

    def run(w, bits):
        def loss(w, bits):
            return (transform.sample({"w": w}, bits, key)["w"] * w).sum()

        return jax.grad(loss, (0, 1))(w, bits), mixed.quantize({"w": w}, mixed.init({"w": w}))

    w = operands((96, 144), "bfloat16")[0] if axes == P("x") else operands(MATRIX, "bfloat16")[0]
    want = jax.jit(run)(w, transform.init({"w": w}))
    w = jax.device_put(w, NamedSharding(mesh(AxisType.Explicit), axes))
    with jax.set_mesh(mesh(AxisType.Explicit)):
        got = jax.jit(run)(w, transform.init({"w": w}))
    assert got[0][0].sharding.is_equivalent_to(w.sharding, 2)
    same_bits(got[1]["w"], want[1]["w"])
    for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_quantizing_on_explicit_meshes():
    transform = param_transform([Rule(".*", dtype="float4_e2m1fn")])
    w, b_i, _ = operands(MATRIX, "float4")
    want = transform.quantize({"w": w}, {"w": b_i})["w"]
    sharding, (w, b_i, _), _ = sharded(MATRIX, P("x", "y"), "float4", AxisType.Explicit)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        got = jax.jit(transform.quantize)({"w": w}, {"w": b_i})["w"]
    same_bits(got, want)
    assert got.sharding.is_equivalent_to(sharding, 2)


MERGED = {  # shape, matrix axes, block, sharding: shards that are no stack of matrices
    "experts": ((2, 4, 32, 64), (1, 1), (32, 32), P(None, "x")),
    "query": ((64, 4, 32), (1, 2), (32, 32), P(None, None, "x")),
    "heads": ((64, 4, 32), (1, 2), (32, 32), P("y", "x")),
    "out": ((4, 32, 64), (2, 1), (32, 32), P(None, "x", "y")),
    "convolution": ((3, 3, 32, 64), (3, 1), (32, 32), P(None, None, "x", "y")),
    "blocks of one": ((8, 8), (1, 1), (1, 1), P("x")),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("heads", AxisType.Explicit),
        ("convolution", AxisType.Explicit),
        ("blocks of one", AxisType.Auto),
        *(slow(name, AxisType.Explicit) for name in ("experts", "query", "out", "blocks of one")),
        *(slow(name, AxisType.Auto) for name in MERGED if name != "blocks of one"),
    ],
    ids=str,
)
def test_axes_that_are_merged_may_be_sharded(name, kind):
    shape, matrix_axes, block, axes = MERGED[name]
    spec = Spec(init_bits=9.0, matrix_axes=matrix_axes, block=block)
    rng, key = np.random.default_rng(0), jax.random.key(2)
    w = jnp.asarray(rng.normal(size=shape), jnp.float32)
    b_i = jnp.asarray(rng.uniform(size=blocks.grid_shape(shape, block, matrix_axes)), jnp.float32)
    alone = dataclasses.replace(spec, noise="none", dtype="float4_e2m1fn")

    def run(w, b_i):
        w_hat, dw, db = forward_and_backward(spec, w, b_i, key, w.astype(jnp.bfloat16))
        return w_hat, dw, perturb(w, None, None, alone), db

    want = jax.jit(run)(w, b_i)
    sharding = NamedSharding(mesh(kind), axes)
    with jax.set_mesh(mesh(kind)):
        got = jax.jit(run)(jax.device_put(w, sharding), b_i)
    for one, other in zip(got[:3], want, strict=False):
        same_bits(one, other)
        assert kind == AxisType.Auto or one.sharding.is_equivalent_to(sharding, len(shape))
    np.testing.assert_allclose(got[3], want[3], rtol=0, atol=1e-5 * np.abs(want[3]).max())


def test_origin_places_a_shard_inside_shard_map():
    w, b_i, _ = operands(MATRIX, "bfloat16")
    key, spec = jax.random.key(2), SPECS["bfloat16"]

    def local(w, b_i):
        place = [jax.lax.axis_index(name) * size for name, size in zip("xy", w.shape, strict=True)]
        return perturb(w, b_i, key, spec, origin=(place[0], place[1]))

    def gradients(w, b_i):
        return jax.grad(lambda w, b_i: run(w, b_i).astype(jnp.float32).sum(), (0, 1))(w, b_i)

    axes, want = P("x", "y"), on_one_device(MATRIX, "bfloat16")[0]
    run = jax.shard_map(local, mesh=mesh(), in_specs=(axes, axes), out_specs=axes)
    same_bits(jax.jit(run)(w, b_i), want)
    alone = jax.grad(lambda b: perturb(w, b, key, spec).astype(jnp.float32).sum())(b_i)
    dw, db = jax.jit(gradients)(w, b_i)
    np.testing.assert_array_equal(dw, np.ones(MATRIX))
    np.testing.assert_allclose(db, alone, rtol=0, atol=1e-6 * np.abs(alone).max())


def test_communication_would_be_detected():
    sharding, (w, *_), _ = sharded(MATRIX, P("x", "y"), "bfloat16")
    for function in (jnp.sum, lambda w: w @ w.T, lambda w: jnp.roll(w, 1, axis=0)):
        text = jax.jit(function, out_shardings=None).lower(w).compile().as_text()
        assert COLLECTIVE.findall(text)
    replicate = jax.jit(lambda w: w + 1, out_shardings=NamedSharding(mesh(), P()))
    assert COLLECTIVE.findall(replicate.lower(w).compile().as_text())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_blocks_across_shards_have_the_same_bits(kind):
    shape = (64, 96)  # shards of 16 × 48 under 32 × 32 blocks
    sharding = NamedSharding(mesh(kind), P("x", "y"))
    w, b_i, cotangent = operands(shape, "bfloat16")
    w, cotangent = jax.device_put((w, cotangent), sharding)
    b_i, key = jax.device_put((b_i, jax.random.key(2)), NamedSharding(mesh(kind), P()))
    with jax.set_mesh(mesh(kind)):
        both = jax.jit(functools.partial(forward_and_backward, SPECS["bfloat16"]))
        w_hat, dw, db = both(w, b_i, key, cotangent)
    alone = on_one_device(shape, "bfloat16")
    same_bits(w_hat, alone[0])
    same_bits(dw, alone[1])
    np.testing.assert_allclose(db, alone[2], rtol=0, atol=1e-6 * np.abs(alone[2]).max())
