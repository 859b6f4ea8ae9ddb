# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What the kernels compute on a GPU, by an interpreter of the PTX that is compiled for one."""

import functools
import importlib.util
import itertools
import math
import os
import re
import subprocess
import sys
from typing import NamedTuple

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
    want = np.asarray(noise.noise_from_words("gauss", (jnp.asarray(DRAWS),), 0))
    got = noise_of(text, ptx.CONSTANTS[text], PAIRS)
    np.testing.assert_array_equal(got, np.stack([want, want[::-1]]) * scale)
    if scale == 1:
        assert not np.signbit(got[got == 0]).any()
    changed = (ptx.CONSTANTS[text][0] + 1, *ptx.CONSTANTS[text][1:])
    assert (noise_of(text, changed, PAIRS) != got).any()


# Of Σ_B (∂L/∂ŵ · R), as a share of Σ_B |∂L/∂ŵ · R|; the largest that was measured is 5.5e-8.
TOLERANCE = 1e-7
CASES = [
    ("backward", "bfloat16", "BF16", "alone"),
    ("backward", "float32", "FP32", "alone"),
    ("forward", "float32", "BF16", "alone"),
    ("forward", "bfloat16", "BF16", "alone"),
    ("forward", "float32", "E4M3", "alone"),
    ("forward", "float32", "E4M3 codes", "alone"),
    ("forward", "float32", "E2M1", "alone"),
    ("backward", "bfloat16", "BF16", "shared"),
    ("forward", "float32", "BF16", "shared"),
    ("forward", "float32", "E2M1", "shared"),
]
WORDS, OFFSET = np.array([0xDEADBEEF, 0x12345678], np.uint32), np.array([3, 7, 64], np.uint32)
COLUMNS = {"mosaic": 128, "triton": 32}  # of a tile; in the cases a program takes one tile
KERNEL = {"mosaic": r"\.entry anonymous_mosaic_gpu_kernel", "triton": r"\.entry _(for|back)ward"}


class Kernel(NamedTuple):
    """The PTX of a kernel, and its grid."""

    implementation: str
    text: str
    grid: tuple[int, int, int]

    def run(self, tables, operands, results):
        """Run it on lists with an array for each stack. Results are changed."""
        groups = [[tables], operands, results]
        if self.implementation == "triton":
            buffers = [x for lists in groups for own in lists for x in own]
        else:  # pointers in the order of first use, where the default of a switch comes first
            order = [len(tables) - 1, *range(len(tables) - 1)]
            buffers = [own[k] for lists in groups for k in order for own in lists]
        interpreter.run(self.text, buffers, self.grid)


@pytest.fixture(
    scope="module", params=itertools.product(("mosaic", "triton"), ("80", "90")), ids="-".join
)
def compiled(request, tmp_path_factory):
    """Return a function from a case to the kernel of a back-end, for an architecture."""
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
        grids = [
            (n // COLUMNS[implementation], m // 32, leads)
            for leads, m, n in compile_ptx.SHAPES[case[-1]]
        ]
        grid = grids[0] if len(grids) == 1 else (sum(map(math.prod, grids)), 1, 1)
        return Kernel(implementation, text, grid)

    return compile_case


def place(k):
    """The words of the key, and the offset, of a stack: each has its own."""
    return WORDS + np.uint32(k), OFFSET + np.uint32(k) * np.array([1, 2, 32], np.uint32)


def run_kernel(kernel, operands, results):
    """Run a kernel on stacks; operands and results are lists with an array for each stack."""
    tables = [
        np.array(partition.make_table(*map(jnp.asarray, place(k)), len(matrices)))
        for k, matrices in enumerate(operands[0])
    ]
    kernel.run(tables, operands, results)
    return list(zip(*results, strict=True))


def grids(matrices):
    return [np.zeros((len(x), x.shape[1] // 32, x.shape[2] // 32), np.float32) for x in matrices]


def run_forward(kernel, spec, matrices, bits):
    w_hats = [np.zeros(w.shape, spec.storage) for w in matrices]
    return run_kernel(kernel, [matrices, bits], [w_hats, grids(matrices)])


def run_backward(kernel, cotangents):
    return [sums for (sums,) in run_kernel(kernel, [cotangents], [grids(cotangents)])]


def hard_matrices(dtype, shape):
    """w with all that is hard but denormals, repeated to a shape, and b_i, as NumPy arrays.

    A GPU computes with denormals, and the reference on a CPU takes them for zeros.
    """
    w, b_i = (np.array(x) for x in kernels.hard_matrices())
    w[np.abs(w) < 2.0**-126] = 0
    b_i[1, 1, 3] = np.nan
    leads, m, n = shape
    w, b_i = np.tile(w.astype(jnp.dtype(dtype)), (1, 2, 3)), np.tile(b_i, (1, 2, 3))
    return (
        np.ascontiguousarray(w[-leads:, -m:, :n]),
        np.ascontiguousarray(b_i[-leads:, -(m // 32) :, : n // 32]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", [x for x in CASES if x[0] == "forward"], ids="-".join)
def test_the_forward_kernel_equals_the_reference(compiled, case):
    kernel, spec = compiled(*case), compile_ptx.make_spec(case[2])
    stacks = [hard_matrices(case[1], shape) for shape in compile_ptx.SHAPES[case[3]]]
    operands = list(zip(*stacks, strict=True))
    got = run_forward(kernel, spec, *operands)
    wrong = run_forward(with_another_threshold(kernel), spec, *operands)
    for k, (w, b_i) in enumerate(stacks):
        want = reference.forward(spec, w, b_i, *place(k))
        for mine, expected in zip(got[k], want, strict=True):
            kernels.same(jnp.asarray(mine), expected)
        assert (oracle.bits_of(wrong[k][0]) != oracle.bits_of(np.asarray(want[0]))).any()


def with_another_threshold(kernel):
    """The kernel with |R| ≥ 1 for a few more draws, as a control."""
    threshold = ptx.CONSTANTS[ptx.ROUNDED_NORMAL][0]
    changed = re.sub(rf"\b({threshold}|{threshold:#x})\b", str(threshold + 0x02000200), kernel.text)
    assert changed != kernel.text
    return kernel._replace(text=changed)


def gradients(kind, dtype, k, shape):
    """Gradients, and the exact block sums of their products with R, and of their magnitudes."""
    leads, m, n = shape
    rng = np.random.default_rng(3)
    g = rng.normal(0, 1, shape)
    if kind == "wide":  # magnitudes over 30 powers of two in each block
        g *= np.exp2(rng.uniform(-30, 0, g.shape))
    g = np.asarray(jnp.asarray(g, dtype))
    codes = noise.noise_codes("gauss", *place(k), leads, m // 32, n)
    r = np.asarray(noise.noise_tile("gauss", codes), np.float64).reshape(g.shape)
    products = g.astype(np.float64) * r
    blocks = products.reshape(leads, m // 32, 32, n // 32, 32)
    return g, blocks.sum((2, 4)), np.abs(blocks).sum((2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "wide"])
@pytest.mark.parametrize("case", [x for x in CASES if x[0] == "backward"], ids="-".join)
def test_the_backward_kernel_sums_within_its_tolerance(compiled, case, kind):
    kernel = compiled(*case)
    stacks = [
        gradients(kind, case[1], k, shape) for k, shape in enumerate(compile_ptx.SHAPES[case[3]])
    ]
    cotangents = [g for g, _, _ in stacks]
    got = run_backward(kernel, cotangents)
    wrong = run_backward(with_another_threshold(kernel), cotangents)
    for k, (_, exact, magnitudes) in enumerate(stacks):
        assert (np.abs(got[k] - exact) / magnitudes).max() < TOLERANCE
        assert (np.abs(wrong[k] - exact) / magnitudes).max() > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", [x for x in CASES if x[0] == "backward"], ids="-".join)
def test_a_gradient_that_is_not_finite_shows_in_its_block_alone(compiled, case):
    shapes = compile_ptx.SHAPES[case[3]]
    first, *others = (gradients("normal", case[1], k, x)[0] for k, x in enumerate(shapes))
    g = first.copy()
    g[1, 40, 70], g[0, 3, 200] = np.nan, np.inf
    finite, *of_others = map(np.isfinite, run_backward(compiled(*case), [g, *others]))
    assert all(x.all() for x in of_others)
    bad = np.zeros_like(finite)
    bad[1, 1, 2] = bad[0, 0, 6] = True
    np.testing.assert_array_equal(finite, ~bad)
