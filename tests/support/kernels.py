# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The tests of a kernel: one class, which each back-end inherits with its name.

The kernels run in their interpreters and must equal `pqt_jax.numerics.reference` bit for bit. The
quick cases take each value of each axis at least once (format, dtype, noise, shape, kind of mesh);
the slow ones take their products.
"""

import contextlib
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import pallas
from pqt_jax.numerics import keys, reference
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3, E4M7, E5M2, FP32, FloatFormat
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import launch
from pqt_jax.transform.perturb import perturb, perturb_tree
from pqt_jax.transform.perturb_encoded import perturb_encoded
from pqt_jax.transform.rules import Rule
from support import oracle

FORMATS = [BF16, FP32, E4M7, E4M3, E5M2, E3M2, E2M3, E2M1, FloatFormat(8, 3)]
WORDS, ORIGIN = np.array([1, 2], np.uint32), np.zeros(3, np.uint32)
COLLECTIVE = re.compile(r"\b(?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)")
GPUS = {"A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3"}
TPUS = ("TPU v5 lite", "TPU v6 lite")

QUICK = {(BF16, "f32"), (FP32, "bf16"), (E4M3, "bf16"), (E2M1, "f32")}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def formats_and_dtypes():
    for fmt in FORMATS:
        for name, dtype in (("f32", jnp.float32), ("bf16", jnp.bfloat16)):
            marks = [] if (fmt, name) in QUICK else [pytest.mark.slow]
            yield pytest.param(fmt, dtype, marks=marks, id=f"{fmt}-{name}")


def lower_for(device_kind, function, *operands):
    """The text of a jitted function, lowered for one device of a kind that is not at hand."""
    is_tpu = device_kind in TPUS
    device = AbstractDevice(
        device_kind=device_kind,
        num_cores=1 if is_tpu else None,
        platform="tpu" if is_tpu else "gpu",
    )
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = function.trace(*operands)
        return traced.lower(lowering_platforms=("tpu" if is_tpu else "cuda",)).as_text()


def name_of(spec):
    return f"{spec.dtype}-{spec.storage}"


def key():
    return jax.random.key(2)


@functools.cache
def hard_matrices():
    """A stack [2, 64, 128] with NaN, Inf, −0, zeros, denormals and large numbers in its blocks."""
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
    """Equal bits, except that a NaN may have any bits."""
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


@functools.partial(jax.jit, static_argnums=0)
def sample(implementation, w, b_i, cotangent, one_key=None):
    """ŵ and both gradients, as one program."""
    one_key = key() if one_key is None else one_key
    function = functools.partial(perturb, implementation=implementation)
    w_hat, back = jax.vjp(lambda w, b_i: function(w, b_i, one_key), w, b_i)
    return (w_hat, *back(cotangent))


def check(got, want):
    """ŵ and ∂L/∂w bit for bit, ∂L/∂b up to the order of its sums."""
    same(got[0], want[0]), same(got[1], want[1])
    np.testing.assert_allclose(got[2], want[2], rtol=0, atol=1e-6 * np.abs(want[2]).max())


class KernelTests:
    """Inherit, and set `name`."""

    name: str
    automatic = True  # whether its interpreter works on Auto meshes

    @pytest.fixture(autouse=True)
    def interpreting(self):
        with pallas.interpret():
            yield

    def forward(self, spec, w, b_i):
        return launch.forward(self.name, True, spec, (w, b_i, WORDS, ORIGIN))[0]

    @pytest.mark.parametrize(("fmt", "dtype"), list(formats_and_dtypes()))
    def test_forward_has_the_bits_of_the_reference(self, fmt, dtype):
        w, b_i = hard_matrices()
        spec = Spec(dtype=fmt)
        got = self.forward(spec, w.astype(dtype), b_i)
        want = reference.forward(spec, w.astype(dtype), b_i, WORDS, ORIGIN)
        same(got[0], want[0]), same(got[1], want[1])

    @pytest.mark.parametrize("fmt", [E4M3, slow(E5M2)], ids=str)
    def test_codes_have_the_bits_of_the_reference(self, fmt):
        w, b_i = hard_matrices()
        spec = Spec(dtype=fmt, encoded=True)
        got = self.forward(spec, w, b_i)
        want = reference.forward(spec, w, b_i, WORDS, ORIGIN)
        assert got[0].dtype == want[0].dtype == jnp.uint8
        same(got[0], want[0]), same(got[1], want[1])

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{"scale": "floor", "dtype": E4M3}, {"noise": "uniform"}])
    def test_other_specs_too(self, options):
        w, b_i = hard_matrices()
        got = self.forward(Spec(**options), w, b_i)
        want = reference.forward(Spec(**options), w, b_i, WORDS, ORIGIN)
        same(got[0], want[0]), same(got[1], want[1])

    @pytest.mark.parametrize(
        ("dtype", "noise"),
        [
            (jnp.bfloat16, "gauss"),
            (jnp.float32, "uniform"),
            slow(jnp.bfloat16, "uniform"),
            slow(jnp.float32, "gauss"),
        ],
        ids=str,
    )
    def test_backward_has_the_sums_of_the_reference(self, dtype, noise):
        spec, cotangent = Spec(noise=noise), parameters((2, 64, 256), dtype)[2]
        ((got,),) = launch.backward(self.name, True, spec, (cotangent, WORDS, ORIGIN))
        want = reference.backward(spec, cotangent, WORDS, ORIGIN)
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())

    @pytest.mark.parametrize(
        "shape",
        [(3, 33, 130), slow((1, 1)), slow((33, 1)), slow((100, 70)), slow((2, 2, 32, 96))],
        ids=str,
    )
    def test_any_shape(self, shape):
        operands = parameters(shape)
        check(sample(self.name, *operands), sample("xla", *operands))

    @pytest.mark.parametrize(
        "shape", [(0, 32), slow((32, 0)), slow((0, 0)), slow((2, 0, 5)), (0, 32, 32)], ids=str
    )
    def test_arrays_without_elements(self, shape):
        operands = parameters(shape)
        got = sample(self.name, *operands)
        assert [x.shape for x in got] == [shape, shape, operands[1].shape]
        assert not got[2].any() and got[0].dtype == jnp.bfloat16
        spec = Spec(dtype=E4M3)
        codes, scale = perturb_encoded(*operands[:2], key(), spec, implementation=self.name)
        assert codes.shape == shape and scale.shape == operands[1].shape

    def test_a_cast_without_noise_is_not_supported(self):
        spec = Spec(noise="none")
        assert not pallas.is_supported(self.name, spec)[0]
        with pytest.raises(ValueError, match="noise='none' is a cast alone, which XLA does"):
            perturb(parameters((32, 32))[0], None, None, spec, implementation=self.name)

    @pytest.mark.slow
    def test_a_slice_knows_its_lead(self):
        w, b_i, _ = parameters((3, 32, 128))
        whole = perturb(w, b_i, key(), implementation=self.name)
        alone = perturb(w[2], b_i[2], key(), lead=2, implementation=self.name)
        same(alone, whole[2])

    def test_vmap_over_everything(self):
        w, b_i, cotangent = parameters((4, 32, 128))
        keys = jax.random.split(key(), 4)

        def run(name, *operands):
            return jax.jit(jax.vmap(functools.partial(sample, name)))(*operands)

        check(run(self.name, w, b_i, cotangent, keys), run("xla", w, b_i, cotangent, keys))

    @pytest.mark.slow
    def test_vmap_over_weights_alone_and_over_nothing(self):
        w, b_i, cotangent = parameters((4, 32, 128))
        keys = jax.random.split(key(), 4)

        def over_weights(name):
            return jax.vmap(functools.partial(sample, name), (0, None, 0))(w, b_i[0], cotangent)

        def over_nothing(name):
            run = jax.jit(jax.vmap(functools.partial(sample, name)))
            return [x.shape for x in run(w[:0], b_i[:0], cotangent[:0], keys[:0])]

        check(over_weights(self.name), over_weights("xla"))
        assert over_nothing(self.name) == over_nothing("xla")

    @pytest.mark.parametrize(
        "limit",
        [slow(("MAX_ELEMENTS", 64 * 128)), slow(("MAX_GRID", 1))],
        ids=str,
    )
    def test_large_arrays_go_in_pieces(self, monkeypatch, limit):
        operands = parameters((2, 96, 128))
        want = sample("xla", *operands)
        launch._operation.cache_clear()
        monkeypatch.setattr(launch, *limit)
        sample.clear_cache()
        check(sample(self.name, *operands), want)
        launch._operation.cache_clear()
        sample.clear_cache()

    @pytest.mark.parametrize(
        ("kind", "shape", "axes"),
        [
            (AxisType.Auto, (256, 256), P("x", "y")),
            (AxisType.Explicit, (8, 64, 64), P("x", "y")),
            slow(AxisType.Auto, (8, 64, 64), P("x", "y")),
            slow(AxisType.Explicit, (256, 256), P("x", "y")),
            *(
                slow(kind, shape, axes)
                for kind in (AxisType.Auto, AxisType.Explicit)
                for shape, axes in (
                    ((256, 256), P("y", "x")),
                    ((256, 256), P(("x", "y"), None)),
                    ((64, 512), P(None, ("y", "x"))),
                    ((64, 128), P()),
                    ((8, 32, 64), P(("x", "y"))),
                )
            ),
        ],
        ids=str,
    )
    def test_shards_have_the_bits_of_the_whole_and_do_not_communicate(self, kind, shape, axes):
        if kind is AxisType.Auto and not self.automatic:
            pytest.skip(
                "its interpreter has ordered effects, which custom_partitioning cannot lower"
            )
        compiled, got = self.on_mesh(kind, shape, axes, axes)
        check(got, sample("xla", *parameters(shape)))
        assert not COLLECTIVE.findall(compiled)

    def test_inside_shard_map_parameters_of_any_sharding_may_be_sampled_together(self, monkeypatch):
        """The first varies over both axes, the second over one, the third over none."""
        monkeypatch.setattr(pallas, "KERNELS", (self.name,))
        axes = {"a": P("x", "y"), "b": P("y"), "c": P()}
        params, bits = {}, {}
        for path, shape in {"a": (64, 64), "b": (64, 32), "c": (32, 32)}.items():
            params[path], bits[path], _ = parameters(shape)
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        local = functools.partial(perturb_tree, key=key(), rules=(Rule(".*"),))
        options = {"in_specs": (axes, axes), "out_specs": axes, "check_vma": False}
        got = jax.jit(jax.shard_map(local, mesh=mesh, **options))(params, bits)
        for path, place in axes.items():  # each shard has the noise of a whole matrix
            rows, columns = got[path].addressable_shards[0].data.shape
            for i, j in itertools.product(*(range(0, n, 32) for n in got[path].shape)):
                if i % rows or j % columns:
                    continue
                w, b_i = params[path][i : i + rows, j : j + columns], bits[path]
                b_i = b_i[i // 32 : (i + rows) // 32, j // 32 : (j + columns) // 32]
                alone = perturb(w, b_i, keys.param_key(key(), path), implementation="xla")
                same(got[path][i : i + rows, j : j + columns], alone)
            assert got[path].sharding.spec == place

    def test_inside_shard_map_a_shard_has_the_bits_of_its_origin(self):
        w, b_i, _ = parameters((64, 64))
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

        def local(w, b_i):
            row, column = (jax.lax.axis_index(n) * s for n, s in zip("xy", w.shape, strict=True))
            return perturb(w, b_i, key(), origin=(row, column), implementation=self.name)

        axes = P("x", "y")  # check_vma=False: the interpreter of Triton does not support the check
        options = {"in_specs": (axes, axes), "out_specs": axes, "check_vma": False}
        run = jax.jit(jax.shard_map(local, mesh=mesh, **options))
        same(run(w, b_i), perturb(w, b_i, key(), implementation="xla"))

    @pytest.mark.slow
    @pytest.mark.parametrize("devices", [(1, 1), (2, 1), (1, 2), (2, 2), (8, 1)], ids=str)
    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
    def test_the_number_of_devices_changes_no_bit(self, kind, devices):
        if kind is AxisType.Auto and not self.automatic:
            pytest.skip(
                "its interpreter has ordered effects, which custom_partitioning cannot lower"
            )
        compiled, got = self.on_mesh(kind, (256, 64), P("x", "y"), P("x", "y"), devices)
        check(got, sample("xla", *parameters((256, 64))))
        assert not COLLECTIVE.findall(compiled)

    @pytest.mark.parametrize("kind", [None, AxisType.Auto, slow(AxisType.Explicit)], ids=str)
    def test_parameters_that_share_a_launch_are_as_each_alone(self, monkeypatch, kind):
        if kind is AxisType.Auto and not self.automatic:
            pytest.skip(
                "its interpreter has ordered effects, which custom_partitioning cannot lower"
            )
        monkeypatch.setattr(pallas, "KERNELS", (self.name,))
        axes = {"a": P("x", "y"), "b": P("y"), "c": P()}
        shapes = {"a": (256, 128), "b": (2, 96, 64), "c": (33, 70)}
        operands = {path: parameters(shape) for path, shape in shapes.items()}
        want = {
            path: sample("xla", *own, keys.param_key(key(), path)) for path, own in operands.items()
        }

        def sample_tree(operands):
            w, b_i, cotangent = ({path: x[i] for path, x in operands.items()} for i in range(3))
            function = functools.partial(perturb_tree, key=key(), rules=(Rule(".*"),))
            w_hat, back = jax.vjp(function, w, b_i)
            return w_hat, *back(cotangent)

        mesh = None
        if kind is not None:
            mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
            places = {path: NamedSharding(mesh, p) for path, p in axes.items()}
            operands = {path: jax.device_put(x, places[path]) for path, x in operands.items()}
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            compiled = jax.jit(sample_tree).lower(operands).compile()
            got = jax.device_get(compiled(operands))
        for path in shapes:
            check([x[path] for x in got], want[path])
        assert not COLLECTIVE.findall(compiled.as_text())

    def test_a_shared_launch_is_differentiated_twice(self, monkeypatch):
        """Of two parameters, one of which the function does not use."""
        monkeypatch.setattr(pallas, "KERNELS", (self.name,))
        params, bits = {}, {}
        for path, shape in {"a": (32, 64), "b": (64, 32), "unused": (32, 32)}.items():
            params[path], bits[path], _ = parameters(shape)

        def second(rules):
            def energy(bits):
                w_hat = perturb_tree(params, bits, key(), rules)
                return sum(jnp.sum(jnp.sin(w_hat[path].astype(jnp.float32))) for path in "ab")

            def norm(bits):
                return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(energy)(bits)))

            return jax.jit(jax.grad(norm))(bits)

        got = second((Rule(".*"),))
        monkeypatch.setattr(pallas, "KERNELS", ())
        want = second((Rule(".*"),))
        for path, x in want.items():
            np.testing.assert_allclose(got[path], x, rtol=1e-5, atol=1e-6 * np.abs(x).max())
        assert np.abs(want["a"]).min() > 0 and not want["unused"].any()

    def test_runs_side_by_side_may_share_a_launch(self):
        spec = Spec()
        several = [parameters((3, 64, 96)), parameters((3, 32, 128))]
        words = jax.random.key_data(jax.random.split(key(), 3))

        def forward(*operands):
            stacks = [(w[None], b_i[None], words, ORIGIN) for w, b_i, words in operands]
            return launch.forward(self.name, True, spec, *stacks)

        got = jax.vmap(forward)(*[(w, b_i, words) for w, b_i, _ in several])
        for own, (w, b_i, _) in zip(got, several, strict=True):
            for run in range(3):
                want = reference.forward(spec, w[run, None], b_i[run, None], words[run], ORIGIN)
                same(own[0][run], want[0]), same(own[1][run], want[1])

    def on_mesh(self, kind, shape, axes, axes_of_bits, devices=(4, 2)):
        mesh = jax.make_mesh(devices, ("x", "y"), axis_types=(kind,) * 2)
        with jax.set_mesh(mesh):
            where = tuple(NamedSharding(mesh, p) for p in (axes, axes_of_bits, axes))
            operands = jax.device_put(parameters(shape), where)
            compiled = jax.jit(functools.partial(sample, self.name)).lower(*operands).compile()
            got = compiled(*operands)
        assert got[0].sharding.is_equivalent_to(where[0], len(shape))
        return compiled.as_text(), jax.device_get(got)

    @pytest.mark.parametrize("kind", [AxisType.Auto, slow(AxisType.Explicit)], ids=str)
    def test_blocks_across_shards_are_gathered(self, kind):
        if kind is AxisType.Auto and not self.automatic:
            pytest.skip(
                "its interpreter has ordered effects, which custom_partitioning cannot lower"
            )
        _, got = self.on_mesh(kind, (64, 96), P("x", "y"), P())
        check(got, sample("xla", *parameters((64, 96))))


class GpuKernelTests(KernelTests):
    """For kernels of GPUs: that they compile to the kernel language of one."""

    @pytest.mark.parametrize(
        ("gpu", "spec"),
        [
            ("H100", Spec(dtype=BF16)),
            ("A100", Spec(dtype=E2M1)),
            ("H100", Spec(dtype=E4M3, encoded=True)),
            *(slow("H100", Spec(dtype=fmt)) for fmt in (FP32, E4M3, E2M1)),
            *(slow("A100", Spec(dtype=fmt)) for fmt in (BF16, FP32, E4M3)),
            slow("A100", Spec(dtype=E4M3, encoded=True)),
        ],
        ids=lambda x: x if isinstance(x, str) else name_of(x),
    )
    def test_it_lowers_for_a_gpu(self, gpu, spec):
        shape = jax.ShapeDtypeStruct
        kernel = launch.load_kernel(self.name)
        table, w = shape((2, 8), jnp.uint32), shape((2, 64, 256), jnp.float32)
        b_i = shape((2, 2, 8), jnp.float32)
        cotangent = shape(w.shape, jnp.bfloat16)
        for function, operands in (
            (kernel.forward, (table, w, b_i)),
            (kernel.backward, (table, cotangent)),
        ):
            run = jax.jit(lambda *stack, function=function: function(spec, stack))
            assert "custom_call" in lower_for(GPUS[gpu], run, *operands)
