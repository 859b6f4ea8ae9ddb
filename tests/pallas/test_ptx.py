# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What the kernels compute on a GPU, by an interpreter of the PTX that is compiled for one."""

import functools
import importlib.util
import itertools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import noise, partition, reference
from pqt_jax.pallas import ptx
from support import compile_ptx, kernels, oracle, paths
from support import ptx as interpreter

DRAWS = np.arange(2**16, dtype=np.uint32)
PAIRS = DRAWS | DRAWS[::-1] << 16  # each draw in either half


def noise_of(text, constants, words):
    """R of both halves of words, float32[2, …]."""
    pairs = interpreter.run_text(text, constants, words)
    return np.stack([pairs << 16, pairs & np.uint32(0xFFFF0000)]).view(np.float32)


@pytest.mark.parametrize(
    "text, scale",
    [(ptx.ROUNDED_NORMAL, 1), (ptx.SCALED_ROUNDED_NORMAL, ptx.SCALE)],
    ids=["forward", "backward"],
)
def test_each_draw_gives_its_noise(text, scale):
    want = np.asarray(noise.rounded_normal_code(jnp.asarray(DRAWS)), np.int32) - np.float32(2)
    got = noise_of(text, ptx.CONSTANTS[text], PAIRS)
    np.testing.assert_array_equal(got, np.stack([want, want[::-1]]) * scale)
    if scale == 1:
        assert not np.signbit(got[got == 0]).any()
    changed = (ptx.CONSTANTS[text][0] + 1, *ptx.CONSTANTS[text][1:])
    assert (noise_of(text, changed, PAIRS) != got).any()


# Of Σ_B (∂L/∂ŵ · R), as a share of Σ_B |∂L/∂ŵ · R|; the largest that was measured is 5.5e-8.
TOLERANCE = 1e-7
CASES = [
    ("backward", "bfloat16", "BF16"),
    ("backward", "float32", "FP32"),
    ("forward", "float32", "BF16"),
    ("forward", "bfloat16", "BF16"),
    ("forward", "float32", "E4M3"),
    ("forward", "float32", "E4M3 codes"),
    ("forward", "float32", "E2M1"),
]
WORDS, OFFSET = np.array([0xDEADBEEF, 0x12345678], np.uint32), np.array([3, 7, 64], np.uint32)
LEADS, M, N = compile_ptx.SHAPE
# Of thread blocks of one tile, as for small matrices: along columns, rows and the stack.
GRIDS = {"mosaic": (N // 128, M // 32, LEADS), "triton": (N // 32, M // 32, LEADS)}
KERNEL = {"mosaic": r"\.entry anonymous_mosaic_gpu_kernel", "triton": r"\.entry _(for|back)ward"}


@pytest.fixture(
    scope="module", params=itertools.product(("mosaic", "triton"), ("80", "90")), ids="-".join
)
def compiled(request, tmp_path_factory):
    """Return (PTX, grid) of a kernel of a back-end, for an architecture."""
    implementation, arch = request.param
    if jax.__version_info__ < (0, 11):
        pytest.skip("the extra 'aot' needs jax 0.11")
    missing = [x for x in ("jax_cuda12_plugin", "triton") if not importlib.util.find_spec(x)]
    if missing:
        pytest.skip(f"needs the extra 'aot': {', '.join(missing)}")

    @functools.cache
    def compile_case(*case):
        folder = tmp_path_factory.mktemp("compiled")
        command = [sys.executable, compile_ptx.__file__, str(folder), arch, implementation, *case]
        path = os.pathsep.join((str(paths.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # what is found there leaves no PTX
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"  # as users compile
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        texts = [x.read_text() for x in (folder / "kept").glob("*.ptx")]
        (text,) = [x for x in texts if re.search(KERNEL[implementation], x)]
        return text, GRIDS[implementation]

    return compile_case


def table():
    """The operand by which a kernel knows its keys and its place, as `partition` makes it."""
    return np.array(partition.make_table(jnp.asarray(WORDS), jnp.asarray(OFFSET), LEADS))


def run_forward(kernel, spec, w, b_i):
    w_hat = np.zeros(w.shape, spec.storage)
    absmax = np.zeros((LEADS, M // 32, N // 32), np.float32)
    interpreter.run(kernel[0], [table(), w, b_i, w_hat, absmax], kernel[1])
    return w_hat, absmax


def run_backward(kernel, cotangent):
    sums = np.zeros((LEADS, M // 32, N // 32), np.float32)
    interpreter.run(kernel[0], [table(), cotangent, sums], kernel[1])
    return sums


def hard_matrices(dtype):
    """w with all that is hard but denormals, twice side by side, and b_i, as NumPy arrays.

    A GPU computes with denormals, and the reference on a CPU takes them for zeros.
    """
    w, b_i = (np.array(x) for x in kernels.hard_matrices())
    w[np.abs(w) < 2.0**-126] = 0
    b_i[1, 1, 3] = np.nan
    return np.tile(w.astype(jnp.dtype(dtype)), 2), np.tile(b_i, 2)


@pytest.mark.slow
@pytest.mark.parametrize("case", [x for x in CASES if x[0] == "forward"], ids="-".join)
def test_the_forward_kernel_equals_the_reference(compiled, case):
    kernel, spec = compiled(*case), compile_ptx.make_spec(case[2])
    w, b_i = hard_matrices(case[1])
    want = reference.forward(spec, w, b_i, WORDS, OFFSET)
    for got, expected in zip(run_forward(kernel, spec, w, b_i), want, strict=True):
        kernels.same(jnp.asarray(got), expected)
    other, _ = run_forward(with_another_threshold(*kernel), spec, w, b_i)
    assert (oracle.bits_of(other) != oracle.bits_of(np.asarray(want[0]))).any()


def with_another_threshold(text, grid):
    """The kernel with |R| ≥ 1 for a few more draws, as a control."""
    threshold = ptx.CONSTANTS[ptx.ROUNDED_NORMAL][0]
    changed = re.sub(rf"\b({threshold}|{threshold:#x})\b", str(threshold + 0x02000200), text)
    assert changed != text
    return changed, grid


def gradients(kind, dtype):
    """Gradients, and the exact block sums of their products with R, and of their magnitudes."""
    rng = np.random.default_rng(3)
    g = rng.normal(0, 1, compile_ptx.SHAPE)
    if kind == "wide":  # magnitudes over 30 powers of two in each block
        g *= np.exp2(rng.uniform(-30, 0, g.shape))
    g = np.asarray(jnp.asarray(g, dtype))
    codes = noise.noise_codes("gauss", WORDS, OFFSET, LEADS, M // 32, N)
    r = np.asarray(noise.noise_tile("gauss", codes), np.float64).reshape(g.shape)
    products = g.astype(np.float64) * r
    blocks = products.reshape(LEADS, M // 32, 32, N // 32, 32)
    return g, blocks.sum((2, 4)), np.abs(blocks).sum((2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "wide"])
@pytest.mark.parametrize("case", [x for x in CASES if x[0] == "backward"], ids="-".join)
def test_the_backward_kernel_sums_within_its_tolerance(compiled, case, kind):
    kernel = compiled(*case)
    g, exact, magnitudes = gradients(kind, case[1])
    error = np.abs(run_backward(kernel, g) - exact) / magnitudes
    assert error.max() < TOLERANCE
    wrong = np.abs(run_backward(with_another_threshold(*kernel), g) - exact) / magnitudes
    assert wrong.max() > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", [x for x in CASES if x[0] == "backward"], ids="-".join)
def test_a_gradient_that_is_not_finite_shows_in_its_block_alone(compiled, case):
    g, exact, magnitudes = gradients("normal", case[1])
    g = g.copy()
    g[1, 40, 70], g[0, 3, 200] = np.nan, np.inf
    finite = np.isfinite(run_backward(compiled(*case), g))
    bad = np.zeros_like(finite)
    bad[1, 1, 2] = bad[0, 0, 6] = True
    np.testing.assert_array_equal(finite, ~bad)
