# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What every kernel must do: one class of tests, which each back-end inherits with its name.

The kernels run in their interpreters; `pqt_jax.numerics.reference` says what is right, bit for bit.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import pallas
from pqt_jax.numerics import reference
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3, E4M7, E5M2, FP32, FloatFormat
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import launch
from pqt_jax.transform.perturb import perturb
from pqt_jax.transform.perturb_encoded import perturb_encoded
from support import oracle

FORMATS = [BF16, FP32, E4M7, E4M3, E5M2, E3M2, E2M3, E2M1, FloatFormat(8, 3)]
WORDS, NOWHERE = jnp.array([1, 2], jnp.uint32), jnp.zeros(3, jnp.uint32)
KEY = jax.random.key(2)
COLLECTIVE = re.compile(r"\b(?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)")
GPUS = ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@functools.cache
def hard_matrices():
    """A stack of matrices with blocks of everything that could go wrong; [2, 64, 128]."""
    w = np.random.default_rng(0).normal(0, 0.02, (2, 64, 128)).astype(np.float32)
    w[0, 3, 5] = np.nan
    w[0, 7, 40] = np.inf
    w[0, 9, 70], w[0, 9, 71] = -np.inf, np.nan
    w[0, :32, 96:] = -0.0
    w[0, 32:, :32] *= 2.0**-130  # denormals
    w[0, 32:, 32:64] *= 2.0**120
    w[1, :32, :32] = 0
    w[1, 32:, :32] = np.ldexp(1.0, np.arange(32))
    b_i = np.random.default_rng(1).uniform(
        -2, 7, (2, 2, 4)
    )  # b_t from 1, where it is clamped, to 16
    return jnp.asarray(w), jnp.asarray(b_i.round(1), jnp.float32)


def same(got, want):
    """Equal bits; one NaN is as good as another."""
    assert got.dtype == want.dtype and got.shape == want.shape
    equal = oracle.bits_of(got) == oracle.bits_of(want)
    both_nan = np.isnan(np.asarray(got, np.float32)) & np.isnan(np.asarray(want, np.float32))
    assert (equal | both_nan).all()


def parameters(shape, storage=jnp.bfloat16):
    rng = np.random.default_rng(0)
    grid = (*shape[:-2], -(-shape[-2] // 32), -(-shape[-1] // 32))
    w, b_i = rng.normal(size=shape), rng.uniform(size=grid)
    return (
        jnp.asarray(w, jnp.float32),
        jnp.asarray(b_i, jnp.float32),
        jnp.asarray(rng.normal(size=shape), storage),
    )


def sample(implementation, w, b_i, cotangent, key=KEY):
    """ŵ and both gradients."""
    function = functools.partial(perturb, implementation=implementation)
    w_hat, back = jax.vjp(lambda w, b_i: function(w, b_i, key), w, b_i)
    return (w_hat, *back(cotangent))


def check(got, want):
    """ŵ and ∂L/∂w bit for bit, ∂L/∂b up to the order of its sums."""
    same(got[0], want[0]), same(got[1], want[1])
    np.testing.assert_allclose(got[2], want[2], rtol=0, atol=1e-6 * np.abs(want[2]).max())


class KernelTests:
    """Inherit, and set `name`."""

    name: str
    automatic = True  # whether its interpreter can be placed on Auto meshes

    @pytest.fixture(autouse=True)
    def interpreting(self):
        with pallas.interpret():
            yield

    def forward(self, spec, w, b_i):
        return launch.forward(self.name, True, spec, w, b_i, WORDS, NOWHERE)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
    @pytest.mark.parametrize("fmt", FORMATS, ids=str)
    def test_forward_has_the_bits_of_the_reference(self, fmt, dtype):
        w, b_i = hard_matrices()
        spec = Spec(dtype=fmt)
        got = self.forward(spec, w.astype(dtype), b_i)
        want = reference.forward(spec, w.astype(dtype), b_i, WORDS, NOWHERE)
        same(got[0], want[0]), same(got[1], want[1])

    @pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=str)
    def test_codes_have_the_bits_of_the_reference(self, fmt):
        w, b_i = hard_matrices()
        spec = Spec(dtype=fmt, encoded=True)
        got = self.forward(spec, w, b_i)
        want = reference.forward(spec, w, b_i, WORDS, NOWHERE)
        assert got[0].dtype == want[0].dtype == jnp.uint8
        same(got[0], want[0]), same(got[1], want[1])

    @pytest.mark.parametrize("options", [{"scale": "floor", "dtype": E4M3}, {"noise": "uniform"}])
    def test_other_specs_too(self, options):
        w, b_i = hard_matrices()
        got = self.forward(Spec(**options), w, b_i)
        want = reference.forward(Spec(**options), w, b_i, WORDS, NOWHERE)
        same(got[0], want[0]), same(got[1], want[1])

    @pytest.mark.parametrize("noise", ["gauss", "uniform"])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
    def test_backward_sums_what_the_reference_sums(self, dtype, noise):
        spec, cotangent = Spec(noise=noise), parameters((2, 64, 256), dtype)[2]
        got = launch.backward(self.name, True, spec, cotangent, WORDS, NOWHERE)
        want = reference.backward(spec, cotangent, WORDS, NOWHERE)
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())

    @pytest.mark.parametrize(
        "shape",
        [
            pytest.param((1, 1), marks=pytest.mark.slow),
            (33, 1),
            (100, 70),
            (3, 33, 130),
            pytest.param((2, 2, 32, 96), marks=pytest.mark.slow),
        ],
    )
    def test_any_shape(self, shape):
        operands = parameters(shape)
        check(sample(self.name, *operands), sample("xla", *operands))

    @pytest.mark.parametrize("shape", [(0, 32), (32, 0), (0, 0), (2, 0, 5), (0, 32, 32)])
    def test_nothing_is_sampled_of_nothing(self, shape):
        operands = parameters(shape)
        found = sample(self.name, *operands)
        assert [x.shape for x in found] == [shape, shape, operands[1].shape]
        assert not found[2].any() and found[0].dtype == jnp.bfloat16
        spec = Spec(dtype=E4M3)
        codes, scale = perturb_encoded(*operands[:2], KEY, spec, implementation=self.name)
        assert codes.shape == shape and scale.shape == operands[1].shape

    def test_a_cast_alone_is_none_of_its_work(self):
        spec = Spec(noise="none")
        assert not pallas.is_supported(self.name, spec)[0]
        with pytest.raises(ValueError, match="noise='none' is a cast alone, which XLA does"):
            perturb(parameters((32, 32))[0], None, None, spec, implementation=self.name)

    def test_a_slice_knows_its_lead(self):
        w, b_i, _ = parameters((3, 32, 128))
        whole = perturb(w, b_i, KEY, implementation=self.name)
        alone = perturb(w[2], b_i[2], KEY, lead=2, implementation=self.name)
        same(alone, whole[2])

    def test_vmap_over_everything_and_over_weights_alone(self):
        w, b_i, cotangent = parameters((4, 32, 128))
        keys = jax.random.split(KEY, 4)
        run = lambda name: jax.jit(jax.vmap(functools.partial(sample, name)))  # noqa: E731
        check(run(self.name)(w, b_i, cotangent, keys), run("xla")(w, b_i, cotangent, keys))
        one = lambda name: jax.vmap(functools.partial(sample, name), (0, None, 0))  # noqa: E731
        check(one(self.name)(w, b_i[0], cotangent), one("xla")(w, b_i[0], cotangent))
        none = [x.shape for x in run(self.name)(w[:0], b_i[:0], cotangent[:0], keys[:0])]
        assert none == [x.shape for x in run("xla")(w[:0], b_i[:0], cotangent[:0], keys[:0])]

    @pytest.mark.parametrize(
        "limit",
        [pytest.param(("MAX_ELEMENTS", 64 * 128), marks=pytest.mark.slow), ("MAX_GRID", 1)],
        ids=str,
    )
    def test_large_arrays_go_in_pieces(self, monkeypatch, limit):
        operands = parameters((3, 96, 128))
        whole = sample(self.name, *operands)
        launch._operation.cache_clear()
        monkeypatch.setattr(launch, *limit)
        check(sample(self.name, *operands), whole)
        launch._operation.cache_clear()

    @pytest.mark.parametrize(
        ("shape", "axes"),
        [
            ((256, 256), P("x", "y")),
            ((8, 64, 64), P("x", "y")),
            slow((256, 256), P("y", "x")),
            slow((256, 256), P(("x", "y"), None)),
            slow((64, 512), P(None, ("y", "x"))),
            slow((64, 128), P()),
            slow((8, 32, 64), P(("x", "y"))),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
    def test_shards_have_the_bits_of_the_whole_and_do_not_communicate(self, kind, shape, axes):
        if kind is AxisType.Auto and not self.automatic:
            pytest.skip("its interpreter has ordered effects, which custom_partitioning refuses")
        compiled, got = self.on_mesh(kind, shape, axes, axes)
        check(got, sample("xla", *parameters(shape)))
        assert not COLLECTIVE.findall(compiled)

    def test_inside_shard_map_a_shard_has_the_bits_of_its_origin(self):
        w, b_i, _ = parameters((64, 64))
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

        def local(w, b_i):
            row, column = (jax.lax.axis_index(n) * s for n, s in zip("xy", w.shape, strict=True))
            return perturb(w, b_i, KEY, origin=(row, column), implementation=self.name)

        axes = P("x", "y")  # unchecked, since Triton's interpreter knows nothing of what varies
        options = {"in_specs": (axes, axes), "out_specs": axes, "check_vma": False}
        run = jax.jit(jax.shard_map(local, mesh=mesh, **options))
        same(run(w, b_i), perturb(w, b_i, KEY, implementation="xla"))

    @pytest.mark.slow
    @pytest.mark.parametrize("devices", [(1, 1), (2, 1), (1, 2), (2, 2), (8, 1)], ids=str)
    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
    def test_the_number_of_devices_changes_no_bit(self, kind, devices):
        if kind is AxisType.Auto and not self.automatic:
            pytest.skip("its interpreter has ordered effects, which custom_partitioning refuses")
        compiled, got = self.on_mesh(kind, (256, 64), P("x", "y"), P("x", "y"), devices)
        check(got, sample("xla", *parameters((256, 64))))
        assert not COLLECTIVE.findall(compiled)

    def on_mesh(self, kind, shape, axes, axes_of_bits, devices=(4, 2)):
        mesh = jax.make_mesh(devices, ("x", "y"), axis_types=(kind,) * 2)
        with jax.set_mesh(mesh):
            where = tuple(NamedSharding(mesh, p) for p in (axes, axes_of_bits, axes))
            operands = jax.device_put(parameters(shape), where)
            compiled = jax.jit(functools.partial(sample, self.name)).lower(*operands).compile()
            got = compiled(*operands)
        assert got[0].sharding.is_equivalent_to(where[0], len(shape))
        return compiled.as_text(), jax.device_get(got)

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
    def test_shards_that_cut_blocks_are_gathered(self, kind):
        if kind is AxisType.Auto and not self.automatic:
            pytest.skip("its interpreter has ordered effects, which custom_partitioning refuses")
        _, got = self.on_mesh(kind, (64, 96), P("x", "y"), P())
        check(got, sample("xla", *parameters((64, 96))))

    @pytest.mark.parametrize(
        "spec",
        [*(Spec(dtype=f) for f in (BF16, FP32, E4M3, E2M1)), Spec(dtype=E4M3, encoded=True)],
        ids=lambda spec: f"{spec.dtype}-{spec.storage}",
    )
    @pytest.mark.parametrize("gpu", GPUS)
    def test_it_lowers_for_a_gpu_that_is_not_there(self, gpu, spec):
        shape = jax.ShapeDtypeStruct
        device = AbstractDevice(device_kind=gpu, num_cores=None, platform="gpu")
        mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
        kernel = launch.load_kernel(self.name)
        table, w = shape((2, 8), jnp.uint32), shape((2, 64, 256), jnp.float32)
        b_i = shape((2, 2, 8), jnp.float32)
        cotangent = shape(w.shape, jnp.bfloat16)
        with jax.sharding.use_abstract_mesh(mesh):
            for function, operands in (
                (functools.partial(kernel.forward, spec), (w, b_i, table)),
                (functools.partial(kernel.backward, spec), (cotangent, table)),
            ):
                lowered = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",))
                assert "custom_call" in lowered.as_text()
