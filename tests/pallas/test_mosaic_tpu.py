# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Mosaic TPU, interpreted, and lowered for TPUs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import pallas
from pqt_jax.models import Llama2Config, partitioning
from pqt_jax.numerics import partition, philox, reference
from pqt_jax.numerics.formats import E2M1, E4M3, E5M2
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import launch
from pqt_jax.training.config.schema import default
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state, init_state
from pqt_jax.training.step import build_train_step
from pqt_jax.transform.perturb import perturb
from pqt_jax.transform.rules import Rule
from support import kernels

pytestmark = pytest.mark.jax_version

TARGET = "tpu_custom_call"


class TestMosaicTpu(kernels.KernelTests):
    name = "mosaic_tpu"

    @pytest.mark.parametrize(("fmt", "dtype"), list(kernels.formats_and_dtypes()))
    def test_the_interpreter_of_tpus_gives_the_bits_of_the_reference(self, fmt, dtype):
        """The other tests use that of Pallas, which knows no memory and no copies of a TPU."""
        w, b_i = kernels.hard_matrices()
        w, b_i = w[:, :61].astype(dtype), b_i  # the last run is not whole
        check_interpreted(Spec(dtype=fmt), w, b_i)

    @pytest.mark.slow
    @pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
    def test_the_interpreter_of_tpus_gives_the_codes_of_the_reference(self, fmt):
        check_interpreted(Spec(dtype=fmt, encoded=True), *kernels.hard_matrices())

    @pytest.mark.slow
    @pytest.mark.parametrize("spec", [Spec(), Spec(noise="uniform")], ids=lambda x: x.noise)
    def test_matrices_of_several_strips_and_programs(self, spec):
        """Rows of three strips, of which the last is not whole; columns of two programs."""
        w, b_i, g = kernels.parameters((2, 600, 2100))
        check_interpreted(spec, w, b_i)
        table = partition.make_table(kernels.WORDS, kernels.ORIGIN, 2)
        ((got,),) = launch.load_kernel(self.name).backward(spec, (table, g), interpret=True)
        want = reference.backward(spec, g, kernels.WORDS, kernels.ORIGIN)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())

    @pytest.mark.parametrize("device_kind", kernels.TPUS)
    @pytest.mark.parametrize(
        "spec", [Spec(), Spec(dtype=E2M1), Spec(dtype=E4M3, encoded=True)], ids=kernels.name_of
    )
    def test_it_lowers_for_a_tpu(self, device_kind, spec):
        kernel, shape = launch.load_kernel(self.name), jax.ShapeDtypeStruct
        table, w = shape((2, 8), jnp.uint32), shape((2, 100, 2100), jnp.float32)
        b_i, cotangent = shape((2, 4, 66), jnp.float32), shape(w.shape, jnp.bfloat16)
        for function, operands in (
            (kernel.forward, (table, w, b_i)),
            (kernel.backward, (table, cotangent)),
        ):
            run = jax.jit(lambda *stack, function=function: function(spec, stack))
            assert TARGET in kernels.lower_for(device_kind, run, *operands)


@pytest.mark.parametrize(
    ("shape", "place"),
    [((256, 128), P("x", "y")), ((3, 64, 64), P("y", None)), ((96, 64), P("x", None))],
)
def test_a_known_sharding_needs_no_help_of_xla(shape, place):
    """As on TPUs, whose XLA partitions no kernel. The last matrix is no multiple of 4 × 32."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    operands = kernels.parameters(shape)
    spec, whole = Spec(sharding=place), P(*[None] * (len(shape) - len(place)), *place)

    @jax.jit
    def run(w, b_i, cotangent):
        function = functools.partial(perturb, implementation="mosaic_tpu")
        w_hat, back = jax.vjp(lambda w, b_i: function(w, b_i, kernels.key(), spec), w, b_i)
        return w_hat, *back(cotangent)

    with pallas.interpret(), jax.set_mesh(mesh):
        if shape != (96, 64):
            operands = jax.device_put(operands, NamedSharding(mesh, whole))
        lowered = run.lower(*operands)
        compiled = lowered.compile()
        got = jax.device_get(compiled(*operands))
    assert "CustomSPMDPartitioning" not in lowered.as_text()
    kernels.check(got, kernels.sample("xla", *kernels.parameters(shape)))
    assert shape == (96, 64) or not kernels.COLLECTIVE.findall(compiled.as_text())


def test_a_sharding_that_does_not_fit_is_refused():
    w, b_i, _ = kernels.parameters((32, 32))
    with pytest.raises(ValueError, match=r"sharding=.*; it has more entries than w has axes, 2"):
        perturb(w, b_i, kernels.key(), Spec(sharding=P("x", "y", None)))
    with pytest.raises(ValueError, match="sharding='x'; it must be a PartitionSpec, or None"):
        Rule(".*", sharding="x")
    with pytest.raises(ValueError, match="it must have an entry for each axis of the matrices, 2"):
        Rule(".*", sharding=P("x"))  # JAX would shard the rows, and these are the last axes
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    for options in ({}, {"implementation": "xla"}):  # on any device, not first on a TPU
        with jax.set_mesh(mesh), pytest.raises(ValueError, match="the mesh has the axes x, y"):
            perturb(w, b_i, kernels.key(), Spec(sharding=P("q", None)), **options)


def test_a_shard_map_over_some_axes_is_no_place_for_a_kernel(monkeypatch):
    """XLA would have to partition it over the others."""
    monkeypatch.setattr(pallas, "_unsuited_device", lambda _: None)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    chosen = []

    def local(w):
        for spec in (Spec(), Spec(sharding=P("x", None))):
            chosen.append(pallas.is_supported("mosaic_tpu", spec)[0])
        return w

    for names in ({"x"}, {"x", "y"}):
        function = jax.shard_map(local, in_specs=P("x"), out_specs=P("x"), axis_names=names)
        with jax.set_mesh(mesh):
            jax.eval_shape(jax.jit(function), kernels.parameters((64, 64))[0])
    assert chosen == [False, False, True, True]


def check_interpreted(spec, w, b_i):
    kernel = launch.load_kernel("mosaic_tpu")
    table = partition.make_table(kernels.WORDS, kernels.ORIGIN, w.shape[0])
    options = pltpu.InterpretParams()
    (got,) = kernel.forward(spec, (table, w, b_i), interpret=options)
    want = reference.forward(spec, w, b_i, kernels.WORDS, kernels.ORIGIN)
    kernels.same(got[0], want[0]), kernels.same(got[1], want[1])


@pytest.mark.parametrize(
    "multiply", [philox.multiply_once, philox.multiply_by_halves, philox.multiply_by_mulhi]
)
def test_each_way_to_multiply_is_exact(multiply):
    """Among others where the sums of halves are largest."""
    low = np.arange(2**16, dtype=np.uint32)
    a = np.concatenate([low, low << 16, low << 16 | 0xFFFF, ~low, low * 0x9E3779B9])
    for b in (*philox._MULTIPLIERS, np.roll(a, 12345)):
        got = jax.jit(multiply)(a, b) if isinstance(b, np.ndarray) else multiply(jnp.asarray(a), b)
        want = a.astype(np.uint64) * np.asarray(b, np.uint64)
        np.testing.assert_array_equal(got[0], (want >> np.uint64(32)).astype(np.uint32))
        np.testing.assert_array_equal(got[1], want.astype(np.uint32))


def test_on_a_tpu_none_is_its_kernel(monkeypatch):
    class Device:
        platform, device_kind = "tpu", "TPU v5 lite"

    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert "NVIDIA" in pallas.is_supported("triton")[1]
    with monkeypatch.context() as one_device:
        one_device.setattr(jax, "device_count", lambda: 1)
        assert pallas.choose_implementation(None, Spec()) == "mosaic_tpu"
        assert pallas.choose_implementation(None, Spec(block=(64, 64))) == "xla"
    sharded = Spec(sharding=P("x", "y"))
    for kind, without in ((AxisType.Auto, "xla"), (AxisType.Explicit, "mosaic_tpu")):
        with jax.set_mesh(jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)):
            assert pallas.choose_implementation(None, Spec()) == without
            assert pallas.choose_implementation(None, sharded) == "mosaic_tpu"
    assert pallas.choose_implementation(None, sharded) == "xla"  # without a mesh
    with pytest.raises(ValueError, match=r"jax.set_mesh and give sharding=PartitionSpec\(…\)"):
        pallas.choose_implementation("mosaic_tpu", Spec())
    Device.device_kind = "TPU v4"
    assert "v5e, v5p or newer, and this is TPU v4" in pallas.is_supported("mosaic_tpu")[1]


@pytest.fixture
def as_on_one_tpu(monkeypatch):
    monkeypatch.setattr(pallas, "KERNELS", ("mosaic_tpu",))
    monkeypatch.setattr(pallas, "_unsuited_device", lambda _: None)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def test_on_a_tpu_the_models_layers_are_sampled_by_kernels(as_on_one_tpu):
    """The seven matrices of a layer have three shapes: forward, again under remat, backward."""
    config = default(Llama2Config(256, d_model=64, num_layers=3, num_heads=2, d_ff=96, remat=True))
    optimizer = make_optimizer(config)
    graph, state = init_state(config, optimizer)
    step = build_train_step(config, graph, optimizer)
    batch, key = jax.ShapeDtypeStruct((2, 33), jnp.int32), jax.eval_shape(kernels.key)
    text = kernels.lower_for(kernels.TPUS[0], step, state, batch, key)
    assert text.count(f"@{TARGET}") == 9


def test_on_a_tpu_shards_are_sampled_by_kernels_under_shard_map(as_on_one_tpu):
    """JAX checks what varies between devices (`check_vma`), in gradients too."""

    def local(w, b_i):
        origin = (jax.lax.axis_index("x") * w.shape[0], 0)
        return perturb(w, b_i, kernels.key(), origin=origin)

    def loss(w, b_i):
        sample = jax.shard_map(local, in_specs=(P("x"), P("x")), out_specs=P("x"))
        return sample(w, b_i).astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 64), (2, 2))]
    text = kernels.lower_for(kernels.TPUS[1], jax.jit(jax.grad(loss, (0, 1))), *shapes)
    assert text.count(f"@{TARGET}") == 2


@pytest.mark.parametrize("once", [False, True])
def test_on_a_mesh_of_tpus_the_trainer_knows_how_kernels_are_sharded(once, monkeypatch):
    """Those of q, k and v differ from that of out. The block sums are made once, of all layers."""
    monkeypatch.setattr(pallas, "KERNELS", ("mosaic_tpu",))
    monkeypatch.setattr(pallas, "needs_sharding", lambda: True)  # as where it is not interpreted
    config = default(Llama2Config(256, d_model=128, num_layers=3, num_heads=2, d_ff=256))
    config.pqt.sample_once, config.data.microbatches = once, 2
    mesh = partitioning.make_mesh(data=1, fsdp=4, tensor=2)
    with pallas.interpret(), partitioning.use_mesh(mesh):
        optimizer = make_optimizer(config)
        graph, state = abstract_state(config, optimizer)
        step = build_train_step(config, graph, optimizer)
        batch = jax.ShapeDtypeStruct((16, 33), jnp.int32)
        text = step.lower(state, batch, jax.eval_shape(kernels.key)).as_text()
    assert "CustomSPMDPartitioning" not in text
    of_kernels = re.findall(r"sdy.manual_computation\(.*\n?.*", text)
    assert of_kernels and any('"fsdp"' in line and '"tensor"' in line for line in of_kernels)
