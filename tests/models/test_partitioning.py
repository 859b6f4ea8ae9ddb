# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Training on meshes of eight fake devices: one device's losses, bits and communication."""

import collections
import dataclasses
import functools
import json
import operator
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import param_transform
from pqt_jax.errors import InputError
from pqt_jax.models import Llama2, decoder, partitioning
from pqt_jax.training import methods
from pqt_jax.training import state as states
from pqt_jax.training.config import validation
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.run import checkpoint, metrics
from pqt_jax.training.step import build_train_step
from pqt_jax.transform.tree_paths import leaf_paths, paths_and_leaves
from support import tiny
from support.command import main
from support.random_model import make_random

SLOW = pytest.mark.slow
SIZES = [pytest.param(n, marks=SLOW) for n in [(8, 1, 1), (1, 8, 1), (1, 1, 2)]]
SIZES += [pytest.param((2, 2, 2), marks=pytest.mark.jax_version)]
# Every shard holds whole blocks: 256 / 8 = 32.
WIDE = {"d_model": 256, "num_heads": 8, "d_ff": 512, "vocab_size": 512}
ALL = "all"
MODELS = {
    "llama2": (tiny.LLAMA2, ALL),
    "gpt2": (tiny.GPT2, ALL),
    "others": (tiny.OTHERS, ALL),
    "few": (
        tiny.LLAMA2,
        "h/(attn/q|mlp/down)/kernel",
    ),  # one is split along columns, one along rows
}


def noise_key():
    return jax.random.key(5)


def make(sizes):
    return partitioning.make_mesh(*sizes)


def setup(model, method="gaussws", end=None, pattern=ALL, once=False, **fields):
    config = tiny.get_config(model)
    config.method, config.data.batch = method, 8
    config.pqt.pattern, config.pqt.sample_once = pattern, once
    config.data.update(fields)
    optimizer = make_optimizer(config)
    graph, state = states.init_state(config, optimizer)
    return config, state, build_train_step(config, graph, optimizer, end=end)


def batch(i=0):
    return (np.arange(8 * 17).reshape(8, 17) * (i + 3) % 101).astype(np.uint8)


@functools.cache
def run(name, sizes):
    """(losses and gradient norms of three steps, parameters) on a mesh."""
    mesh = make(sizes)
    with partitioning.use_mesh(mesh):
        model, pattern = MODELS[name]
        _, state, train_step = setup(model, pattern=pattern)
        found = []
        for i in range(3):
            state, measured = train_step(state, partitioning.put_batch(batch(i), mesh), noise_key())
            found.append([float(measured["loss"]), float(measured["grad_norm"])])
    return np.array(found), state


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_mesh_gives_the_losses_of_one_device(sizes):
    check_losses("few", sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_a_mesh_of_three_axes_gives_the_losses_of_one_device(name):
    check_losses(name, (2, 2, 2))


@pytest.mark.slow
def test_a_mesh_gives_the_losses_of_one_device_with_the_options_of_other_models():
    check_losses("others", (2, 2, 2))


def check_losses(name, sizes):
    (alone, _), (found, state) = run(name, (1, 1, 1)), run(name, sizes)
    np.testing.assert_allclose(found, alone, rtol=2e-6)
    mesh = make(sizes)
    for path, leaf in paths_and_leaves(state.params).items():
        wanted = NamedSharding(mesh, partitioning.partition_spec(path, leaf.shape, mesh))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), path


@pytest.mark.parametrize("sizes", [pytest.param((1, 1, 1), marks=SLOW), (2, 2, 2)], ids=str)
def test_a_step_is_lowered_from_shapes_as_from_arrays(sizes):
    mesh, config = make(sizes), tiny.get_config()
    config.data.batch = 8
    with partitioning.use_mesh(mesh):
        optimizer = make_optimizer(config)
        graph, like, take_state = states.begin_state(config, optimizer)
        train_step = build_train_step(config, graph, optimizer)
        tokens = partitioning.put_batch(batch(), mesh)
        from_shapes, from_arrays = (
            train_step.lower(state, tokens, noise_key()).as_text() for state in (like, take_state())
        )
    assert from_shapes == from_arrays


def test_weights_moments_and_bits_are_split_alike():
    mesh = make((1, 4, 2))
    with partitioning.use_mesh(mesh):
        _, state, _ = setup(dataclasses.replace(tiny.LLAMA2, **WIDE))
    leaves = jax.tree.leaves_with_path((state.params, state.opt_state))
    specs = collections.defaultdict(set)
    for _, leaf in leaves:
        specs[leaf.shape].add(leaf.sharding.spec)
    assert specs[2, 256, 512] == {P(None, "fsdp", "tensor")}  # gate, up, and two moments of each
    assert specs[2, 512, 256] == {P(None, "tensor", "fsdp")}  # down
    assert specs[2, 8, 16] == {P(None, "fsdp", "tensor")}  # bits of gate and up
    assert specs[512, 256] == {P("tensor", "fsdp")} and specs[256, 512] == {P("fsdp", "tensor")}
    whole = sum(leaf.nbytes for _, leaf in leaves)
    here = sum(leaf.addressable_shards[0].data.nbytes for _, leaf in leaves)
    assert here < 1.01 * whole / 8


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_weights_have_the_same_bits_on_every_mesh(sizes):
    model = dataclasses.replace(tiny.LLAMA2, **WIDE)
    mesh = make(sizes)
    config = tiny.get_config(model)
    rule = methods.make_rules(config)
    bare = nnx.to_pure_dict(nnx.state(make_random(Llama2, model)))
    transform = param_transform(rule)
    bits = transform.init(bare)
    expected = jax.jit(transform.sample)(bare, bits, noise_key())
    with partitioning.use_mesh(mesh):
        placed = jax.jit(partitioning.constrain_state)(bare)
        found = jax.jit(transform.sample)(
            placed, jax.jit(partitioning.constrain_state)(bits), noise_key()
        )
    want = paths_and_leaves(expected)
    for path, leaf in paths_and_leaves(found).items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)


@pytest.mark.parametrize(
    ("sizes", "packs"), [((8, 1, 1), True), ((4, 2, 1), False), ((4, 1, 2), False), (None, False)]
)
def test_bits_are_one_array_in_the_loop_over_layers_where_no_parameter_is_sharded(sizes, packs):
    config = tiny.get_config(tiny.LLAMA2)
    blocks = nnx.state(methods.make_model(config, nnx.Rngs(0)).h)
    blocks = jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), blocks)
    with partitioning.use_mesh(make(sizes) if sizes else None):
        arrays, unpack = decoder.pack_bits(blocks)
    leaves = jax.tree.leaves(blocks)
    kernels = sum("kernel" in path for path in leaf_paths(blocks)) // 2
    assert len(arrays) == len(leaves) - (kernels - 1 if packs else 0) and kernels == 7
    for layer in range(2):
        got, want = (
            unpack([x[layer] for x in arrays]),
            jax.tree.map(operator.itemgetter(layer), blocks),
        )
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_bits_are_one_array_in_the_loop_over_layers_on_one_device(monkeypatch):
    """The loop takes six arrays fewer, and the gradients are the same but for other fusions."""
    config = tiny.get_config(tiny.LLAMA2)
    graph, params = nnx.split(methods.make_model(config, nnx.Rngs(0)))

    def gradients(params):
        def loss(params):
            model = nnx.merge(graph, params)
            return model(batch(), pqt_key=noise_key()).astype(jnp.float32).var()

        return jax.grad(loss)(params)

    def arrays_of_loops(function):
        loops = [x for x in jax.make_jaxpr(function)(params).eqns if x.primitive.name == "scan"]
        assert len(loops) == 2  # forward, and of the gradients
        return [len(x.invars) + len(x.outvars) for x in loops]

    want, alone = jax.jit(gradients)(params), arrays_of_loops(gradients)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    got = jax.jit(lambda params: gradients(params))(params)
    packed = arrays_of_loops(lambda params: gradients(params))
    assert packed[0] == alone[0] - 6 and packed[1] == alone[1] - 2 * 6
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-9)
    jax.tree.map(close, got, want)


@functools.cache
def collectives(sizes, method):
    """How often each collective of each shape is in the compiled step; combined ones apart."""
    mesh = make(sizes)
    with partitioning.use_mesh(mesh):
        model = dataclasses.replace(tiny.LLAMA2, **WIDE, dtype="bfloat16")
        _, state, train_step = setup(model, method)
        text = (
            train_step.lower(state, partitioning.put_batch(batch(), mesh), noise_key())
            .compile()
            .as_text()
        )
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (\S+|\(.*?\)) ({kinds})(?:-start)?\(", text)
    parts = [(part, kind) for shape, kind in found for part in re.findall(r"\w+\[[\d,]*\]", shape)]
    return collections.Counter(parts)


def size(shape):
    sizes = re.findall(r"\w+\[([\d,]*)\]", shape)
    return sum(int(np.prod([int(n) for n in x.split(",") if n])) for x in sizes)


@pytest.mark.parametrize(
    "sizes", [pytest.param(n, marks=SLOW) for n in [(8, 1, 1), (1, 4, 2)]], ids=str
)
def test_sampling_moves_nothing_but_bits(sizes):
    sampled, bare = collectives(sizes, "gaussws"), collectives(sizes, "bf16")
    assert not bare - sampled and sum(bare.values()) >= 1
    blocks = 2 * (512 // 32) * (256 // 32)  # of the largest kernel, in both layers
    for shape, kind in sampled - bare:
        if (shape, kind) == ("f32[]", "all-reduce"):
            continue  # whether the gradients of bits are finite: a sum for each kernel's
        assert kind == "all-gather" and shape.startswith("f32") and size(shape) <= blocks, shape


@pytest.mark.jax_version
@pytest.mark.slow
@pytest.mark.parametrize("once", [False, True])
def test_microbatches_and_chunks_go_with_a_mesh(once):
    mesh = make((2, 2, 2))
    with partitioning.use_mesh(mesh):
        _, state, train_step = setup(tiny.LLAMA2, once=once, microbatches=2, loss_chunk=4)
        _, measured = train_step(state, partitioning.put_batch(batch(), mesh), noise_key())
    assert float(measured["loss"]) == pytest.approx(run("llama2", (1, 1, 1))[0][0, 0], rel=2e-6)


@pytest.mark.jax_version
@pytest.mark.slow
def test_documents_are_apart_on_every_mesh():
    found = []
    assert 0 < np.sum(batch() == 3) < batch().size / 8
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = make(sizes)
        with partitioning.use_mesh(mesh):
            _, state, train_step = setup(tiny.LLAMA2, end=3, microbatches=2, loss_chunk=4)
            measured = train_step(state, partitioning.put_batch(batch(), mesh), noise_key())[1]
            found.append([float(measured[x]) for x in ("loss", "grad_norm")])
    np.testing.assert_allclose(*found, rtol=2e-6)
    assert abs(found[0][0] - run("llama2", (1, 1, 1))[0][0, 0]) > 1e-3


@pytest.mark.slow
def test_a_run_goes_on_on_other_meshes(tmp_path, monkeypatch):
    """8 → 2 → 1 devices, and all eight to the end: the losses of a run that stayed on one."""
    save, stop = checkpoint.save, []

    def save_and_stop(manager, step, *args):
        save(manager, step, *args)
        if step in stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save", save_and_stop)
    fields = ["--config.data.batch=8", "--config.steps=24"]
    for name, parts in (
        ("moved", [(8, "fsdp=4", "data=2"), (16, "tensor=2"), (None,)]),
        ("eight", [(None, "data=0", "fsdp=2", "tensor=2")]),
        ("one", [(None,)]),
    ):
        (tmp_path / name).mkdir()
        for at, *sizes in parts:
            stop[:] = [at]
            given = [f"--config.mesh.{size}" for size in sizes]
            assert main(tmp_path / name, *fields, *given) == (0 if at is None else 128 + 15)
    runs = {}
    for name in ("moved", "eight", "one"):
        folder = tmp_path / name / "run"
        records = metrics.read(folder / "metrics.jsonl")
        losses = [r["loss"] for r in records if "loss" in r]
        losses += [r["validation_loss"] for r in records if "validation_loss" in r]
        summary = json.loads((folder / "summary.json").read_text())
        runs[name] = [*losses, summary["master"], summary["fp4_e2m1"], summary["mixed"]]
    assert len(runs["one"]) == 24 + 6 + 3
    for name in ("moved", "eight"):
        np.testing.assert_allclose(runs[name], runs["one"], rtol=2e-3)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((3, 1, 1), None),
        (
            (16, 1, 1),
            "config.mesh.data=16, config.mesh.fsdp=1, config.mesh.tensor=1: JAX has 8 dev",
        ),
        ((0, 3, 1), "config.mesh.data=0, config.mesh.fsdp=3, config.mesh.tensor=1: JAX has 8"),
        ((0, 16, 1), "JAX has 8 devices; give --config.mesh.fsdp=8, or other sizes whose product"),
        ((0, 8, 2), "JAX has 8 devices; give --config.mesh.fsdp=4, or other sizes whose product"),
        ((0, 1, 3), "JAX has 8 devices; give sizes whose product is that number, or data=0 for"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, message):
    if message is None:  # fewer than there are
        assert make(sizes).devices.size == 3
        return
    with pytest.raises(InputError) as caught:
        make(sizes)
    assert message in str(caught.value)


def test_data_is_what_the_others_leave():
    assert dict(make((0, 2, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make((1, 1, 1)) is None


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data.batch": 12}, "config.data.batch=12; it must be a multiple of 8, the devices along"),
        (
            {"data.batch": 8, "data.microbatches": 2},
            "config.data.batch / config.data.microbatches=4; it must be a multiple of 8",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(fields, message):
    config = tiny.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError) as caught:
        validation.check_mesh(config, make((2, 4, 1)))
    assert message in str(caught.value)
    config.data.batch, config.data.microbatches = 8, 1
    with pytest.raises(InputError, match="config.mesh.tensor=8; it must divide config.model.num_h"):
        validation.check_mesh(config, make((1, 1, 8)))
