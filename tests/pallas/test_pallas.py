# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The choice between implementations, and the code that the kernels share."""

import functools
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pqt_jax import pallas
from pqt_jax.lab.programs import make_programs
from pqt_jax.lab.sweep_arms import Arm
from pqt_jax.models import Llama2Config
from pqt_jax.numerics import noise
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import launch, placement
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.config.schema import RunConfig, default
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import init_state
from pqt_jax.training.step import build_train_step
from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.perturb import perturb, perturb_tree
from pqt_jax.transform.rules import Rule
from support import kernels

pytestmark = pytest.mark.jax_version

W, B_I = np.ones((32, 32), np.float32), np.ones((1, 1), np.float32)


def make_key():
    return jax.random.key(0)


@pytest.mark.parametrize("kind", ["gauss", "uniform"])
def test_noise_from_words_is_noise_from_codes(kind):
    draws = jnp.arange(2**16, dtype=jnp.uint32)
    others = draws[::-1] * np.uint32(40503) & np.uint32(0xFFFF)
    words = (draws | others << 16, others | draws << 16, draws * 65537, others)
    codes = words
    if kind == "gauss":
        codes = (noise.rounded_normal_codes(words),)
    tile = noise.noise_tile(kind, tuple(x.reshape(1, 1, 4, -1) for x in codes))
    for s in range(8):
        got, want = noise.noise_from_words(kind, words, s), tile[0, 0, s].ravel()
        np.testing.assert_array_equal(
            np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32)
        )


@pytest.mark.parametrize("name", pallas.KERNELS)
def test_an_explicit_request_that_cannot_be_met_says_why(name):
    with pytest.raises(ValueError, match=f"implementation='{name}': .*(GPU|TPU|jax 0.11)"):
        perturb(W, B_I, make_key(), implementation=name)
    with pallas.interpret(), pytest.raises(ValueError, match="blocks are 16x16"):
        perturb(W, jnp.ones((2, 2)), make_key(), Spec(block=(16, 16)), implementation=name)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="implementation='cuda'; it must be one of mosaic, triton"):
        perturb(W, B_I, make_key(), implementation="cuda")


def test_without_a_gpu_none_is_xla_and_loads_no_kernel():
    assert pallas.choose_implementation(None, Spec()) == "xla"
    code = (
        "import sys, jax, jax.numpy as jnp, pqt_jax;"
        "pqt_jax.perturb(jnp.ones((32, 32)), jnp.ones((1, 1)), jax.random.key(0));"
        "print({'jax.experimental.pallas.triton', 'jax.experimental.pallas.mosaic_gpu',"
        "'pqt_jax.pallas.launch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_inside_interpret_none_is_the_best_kernel():
    with pallas.interpret():
        best = next(name for name in pallas.KERNELS if pallas.is_supported(name)[0])
        assert pallas.choose_implementation(None, Spec()) == best
        assert pallas.choose_implementation(None, Spec(block=(64, 64))) == "xla"


def test_a_device_is_judged_by_its_capability(monkeypatch):
    class Device:
        platform, device_kind = "gpu", "a GPU"

    for capability, good in (("9.0", True), ("8.0", True), ("7.5", False), ("gfx90a", False)):
        Device.compute_capability = capability
        monkeypatch.setattr(jax, "devices", lambda: [Device])
        assert pallas.is_supported("triton")[0] == good


def test_pieces_cover_everything_once():
    for most, in_grid in ((10**9, 65535), (4096, 65535), (10**9, 2)):
        launch.MAX_ELEMENTS, before = most, (launch.MAX_ELEMENTS, launch.MAX_GRID)
        launch.MAX_GRID = in_grid
        try:
            cuts = list(launch._launch_slices(5, 7, 64))
        finally:
            launch.MAX_ELEMENTS, launch.MAX_GRID = before
        seen = np.zeros((5, 7), int)
        for leads, runs in cuts:
            for run in runs:
                seen[leads, run] += 1
                size = seen[leads, run].size
                assert size * 64 * 32 <= max(most, 64 * 32)
        assert (seen == 1).all()


@pytest.mark.parametrize(
    "shapes", [[(1, 24, 6)], [(1, 2, 3), (2, 2, 2)], [(1, 1, 1)] * 7, [(3, 5, 2), (1, 1, 7)]]
)
def test_the_programs_of_a_launch_take_each_tile_once(shapes):
    tiles = placement.choose_tiles(shapes, 4, 8)
    steps = [(leads, runs, across // tiles) for leads, runs, across in shapes]
    assert all(across % tiles == 0 for _, _, across in shapes)
    programs = jnp.arange(math.prod(placement.make_grid(steps)), dtype=jnp.int32)
    if len(shapes) == 1:  # the three axes of its grid are the place
        assert placement.make_grid(steps) == steps[0]
        return
    place = jax.vmap(functools.partial(placement.locate, shapes=steps))(programs)
    got = [tuple(int(x) for x in at) for at in zip(*place, strict=True)]
    want = [(k, *at) for k, shape in enumerate(steps) for at in np.ndindex(*shape)]
    assert got == want


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([2**20] * 9, [8, 1]),
        ([2**23, 1, 2**23, 2**22, 2**22], [1, 1, 1, 2]),  # one that is too large is alone
        ([768 * 768] * 4 + [768 * 2048] * 3, [7]),  # a layer of Llama2-134M
        ([768 * 768] * 4 + [768 * 3072] * 2, [6]),  # of GPT2-124M
        ([2048 * 2048] * 4 + [2048 * 5461] * 3, [2, 2, 1, 1, 1]),  # of Llama2-1B
    ],
)
def test_small_matrices_share_a_launch_in_order(sizes, groups):
    stacks = {str(i): (jax.ShapeDtypeStruct((1, n), jnp.float32),) for i, n in enumerate(sizes)}
    got = pallas.share_launches("mosaic", stacks)
    assert [len(group) for group in got] == groups
    assert [path for group in got for path in group] == list(stacks)
    for alone in ("mosaic_tpu", "xla"):
        assert pallas.share_launches(alone, stacks) == [(path,) for path in stacks]


def test_what_has_another_dtype_or_format_has_a_launch_of_its_own(count_kernels):
    rules = [Rule("fp8/.*", 4.0, dtype="float8_e4m3fn"), Rule(".*")]
    like = jax.ShapeDtypeStruct
    params = {
        "fp8": {"a": like((32, 128), jnp.float32), "b": like((64, 128), jnp.float32)},
        "x": like((32, 128), jnp.float32),
        "y": like((32, 128), jnp.bfloat16),
        "z": like((3, 64, 128), jnp.float32),
    }
    bits = param_transform(rules).init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params))
    run = jax.jit(lambda params, key: perturb_tree(params, bits, key, rules))
    assert count_kernels(run, params, jax.eval_shape(make_key)) == 3


@pytest.fixture(params=["mosaic", "triton"])
def lower_for_gpu(monkeypatch, request):
    """A function (jitted function, arguments) → (its text for an H100, number of kernel calls)."""
    if request.param == "mosaic" and jax.__version_info__ < (0, 11):
        pytest.skip("Mosaic GPU needs jax 0.11")
    monkeypatch.setattr(pallas, "KERNELS", (request.param,))
    monkeypatch.setattr(pallas, "_unsuited_device", lambda _: None)  # as on one GPU
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    target = {"mosaic": "mosaic_gpu", "triton": "triton"}[request.param]

    def lower(function, *arguments):
        text = kernels.lower_for(kernels.GPUS["H100"], function, *arguments)
        return text, len(re.findall(rf"custom_call @[\w.$]*{target}\w*", text))

    return lower


@pytest.fixture
def count_kernels(lower_for_gpu):
    """A function (jitted function, arguments) → number of kernel calls."""
    return lambda *some: lower_for_gpu(*some)[1]


def test_on_a_gpu_only_the_kernel_computes_with_weights_and_bits(lower_for_gpu):
    """Each small operation is one more launch, which may cost as much as the kernel (LOG.md)."""
    like = jax.ShapeDtypeStruct
    operands = (like((64, 256), jnp.float32), like((2, 8), jnp.float32))
    key = make_key()
    sample = jax.jit(lambda w, b_i: perturb(w, b_i, key))
    text, count = lower_for_gpu(sample, *operands)
    assert count == 1
    text = re.sub(r"custom_call .*", "", text)  # the kernel itself
    of_weights = [line for line in text.splitlines() if re.search(r"x(f32|bf16)>", line)]
    assert not [line for line in of_weights if not re.search("reshape|call|func|return", line)]
    assert "scatter" not in text  # the table is made by one operation


# One launch samples the seven matrices of a layer: forward, again under remat, and backward.
TINY = Llama2Config(256, d_model=64, num_layers=3, num_heads=2, d_ff=96, remat=True)


def test_on_a_gpu_the_models_layers_are_sampled_by_kernels(count_kernels):
    config = default(TINY)
    optimizer = make_optimizer(config)
    graph, state = init_state(config, optimizer)
    step = build_train_step(config, graph, optimizer)
    batch = jax.ShapeDtypeStruct((2, 33), jnp.int32)
    assert count_kernels(step, state, batch, jax.eval_shape(lambda: jax.random.key(0))) == 3


@pytest.mark.slow
def test_on_a_gpu_the_labs_runs_side_by_side_are_sampled_by_kernels(count_kernels):
    """One launch samples the matrices of all runs of a program."""
    arm = Arm("gaussws", from_values(RunConfig, default(TINY).to_dict()), {})
    programs = make_programs(arm)
    state, keys = jax.eval_shape(lambda: programs.begin([(1e-3, seed) for seed in range(4)]))
    batch = jax.ShapeDtypeStruct((4, 2, 33), jnp.int32)
    assert count_kernels(programs.step_of(1), state, batch, keys) == 3


def test_on_a_gpu_shards_are_sampled_by_kernels_under_shard_map(count_kernels):
    """JAX checks what varies between devices (`check_vma`), in gradients too."""
    spec = Spec()

    def local(w, b_i):
        row = jax.lax.axis_index("x") * w.shape[0]
        return perturb(w, b_i, make_key(), spec, origin=(row, 0))

    def loss(w, b_i):
        sample = jax.shard_map(local, in_specs=(P("x"), P("x")), out_specs=P("x"))
        return sample(w, b_i).astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 64), (2, 2))]
    assert count_kernels(jax.jit(jax.grad(loss, (0, 1))), *shapes) == 2
