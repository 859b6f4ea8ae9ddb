# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Mosaic TPU, for v5e, v5p and newer.

A vector register has eight rows of 128 lanes. A program takes a strip of eight runs of 32 rows, so
that a number for each block fills registers too. It goes along the strip by 128 columns at a time.
A register of Philox words has the calls of two runs, in its upper and its lower four rows. Arrays
are not padded: programs at the edges compute more than is stored.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pqt_jax.numerics import noise, philox, reference
from pqt_jax.numerics.partition import Stack
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import body, tpu_registers

ROWS, COLUMNS = 1, 1  # to whose multiples w must be padded
_RUNS, _LANES = tpu_registers.ROWS, tpu_registers.LANES
_STRIP = _RUNS * philox.ROWS  # rows of a program
_MOST_COLUMNS = 2048  # of a program; in float32 that is 2 MB of w, and as much for the next one
_STEPS = _LANES * 32 // _MOST_COLUMNS  # programs along a strip whose numbers per block share one
_OPERATIONS = 60  # of a weight, about; for XLA, which plans by them


def _choose_multiply(interpret: bool) -> philox.Multiply:
    """Choose the way to products of 64 bits: v6e and newer have an instruction for the high word.

    By compiled programs it is faster there (v6e: 299 bundles instead of 503 for 128 columns
    forward), and slower on v5e and v5p, which have none (611 instead of 497). Mosaic of jax before
    0.12 does not know it.
    """
    has_instruction = (
        jax.__version_info__ >= (0, 12) and not interpret and pltpu.get_tpu_info().generation >= 6
    )
    return philox.multiply_by_mulhi if has_instruction else philox.multiply_by_halves


def _noise_of_runs(
    spec: Spec, row: Sequence[jax.Array], strip: Any, column: Any, multiply: philox.Multiply
) -> Any:
    """Return R of eight runs of 128 columns, as four float32 registers for each."""
    q, lane = (tpu_registers.index(axis).astype(jnp.uint32) for axis in range(2))
    columns = column.astype(jnp.uint32) + lane
    noises = []
    for pair in range(0, _RUNS, 2):
        run = strip.astype(jnp.uint32) * np.uint32(_RUNS) + (np.uint32(pair) + (q >> np.uint32(2)))
        q_of_run = q & np.uint32(philox.GROUP - 1)
        words = body.make_words(row, run, q_of_run, columns, multiply)
        noises += zip(*(_slices_of_two_runs(spec, word) for word in words), strict=True)
    return noises


def _slices_of_two_runs(spec: Spec, word: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return R of eight rows of two runs, from one word of their Philox calls.

    The lower half of a word is the draw of the first four rows, the upper half of the others.
    """
    swapped = pltpu.roll(word, philox.GROUP, 0)
    is_low = tpu_registers.index(0) < philox.GROUP
    first = jnp.where(is_low, word << np.uint32(16), swapped)
    second = jnp.where(is_low, swapped << np.uint32(16), word)
    return noise.noise_of_upper_half(spec.noise, first), noise.noise_of_upper_half(
        spec.noise, second
    )


def _row(table_ref: Any) -> list[jax.Array]:
    return [table_ref[0, i] for i in range(body.TABLE_ENTRIES)]


def _first_group(step: jax.Array, width: int) -> jax.Array:
    """Return where the 128 columns that a program begins with are in the numbers of 128 blocks."""
    return lax.rem(step, np.int32(_STEPS)) * np.int32(width // _LANES)


def _at(r: int, c: jax.Array) -> tuple[Any, Any]:
    """Return the index of the r-th run of the c-th 128 columns in the matrix of a program."""
    columns = pl.ds(pl.multiple_of(c * np.int32(_LANES), _LANES), _LANES)
    return pl.ds(philox.ROWS * r, philox.ROWS), columns


def _load(
    ref: Any, c: jax.Array, shape: tuple[int, int], place: tuple[Any, Any]
) -> list[jax.Array]:
    """Load eight runs of the c-th 128 columns of a program; what is beyond the edges is 0.

    Nothing is done where no block is at an edge.

    Args:
      ref: reference to the matrix of a program.
      c: int32 scalar.
      shape: of the whole matrix.
      place: the first row and the first column of the program in it.
    """
    runs = [ref[_at(r, c)].astype(jnp.float32) for r in range(_RUNS)]
    if all(size % 32 == 0 for size in shape):
        return runs
    row, column = (lax.broadcasted_iota(jnp.int32, runs[0].shape, axis) for axis in range(2))
    rows, columns = (size - first for size, first in zip(shape, place, strict=True))
    inside = column < columns - c * _LANES
    return [
        jnp.where(inside & (row < rows - philox.ROWS * r), x, jnp.zeros_like(x))
        for r, x in enumerate(runs)
    ]


def _for_each_group(columns: int, first_column: Any, width: int, step: Any, carry: Any) -> Any:
    """Call `step(c, carry)` for each 128 columns of a program that the matrix has."""
    groups = (jnp.minimum(width, columns - first_column) + (_LANES - 1)) // _LANES
    return lax.fori_loop(np.int32(0), groups, step, carry)


def _slices(run: jax.Array) -> list[jax.Array]:
    return [run[i : i + _RUNS] for i in range(0, philox.ROWS, _RUNS)]


def _largest_magnitude(run: jax.Array) -> jax.Array:
    """Return the largest magnitude over the slices of a run, as int32 bit patterns.

    As `body.largest_magnitude`, but by signed numbers, which a TPU compares in one instruction.
    """
    words = [lax.bitcast_convert_type(w, jnp.int32) for w in _slices(run)]
    return functools.reduce(jnp.maximum, [word & np.int32(0x7FFFFFFF) for word in words])


def _forward(
    table_ref,
    w_ref,
    bits_ref,
    w_hat_ref,
    absmax_ref,
    *,
    spec: Spec,
    shape: tuple[int, int],
    multiply: philox.Multiply,
):
    strip, step = pl.program_id(1), pl.program_id(2)
    width = w_ref.shape[1]
    place = strip * _STRIP, step * width
    row = _row(table_ref)
    sizes = reference.block_step_size(spec, bits_ref[...], multiply)
    first = _first_group(step, width)

    def sample(c, absmaxes):
        runs = _load(w_ref, c, shape, place)
        largest = tpu_registers.reduce_blocks(
            jnp.maximum, [_largest_magnitude(run) for run in runs]
        )
        absmax = lax.bitcast_convert_type(largest, jnp.float32)
        unit, scale = body.unit_and_scale(spec, absmax, tpu_registers.spread(sizes, first + c))
        noises = _noise_of_runs(spec, row, strip, place[1] + c * _LANES, multiply)
        for r, (w, slices) in enumerate(zip(runs, noises, strict=True)):
            of_run = jnp.concatenate(slices, axis=0)
            own = unit[r : r + 1], None if scale is None else scale[r : r + 1]
            (w_hat,) = body.forward(spec, [w], lambda _, of_run=of_run: of_run, *own)
            w_hat_ref[_at(r, c)] = w_hat
        return tpu_registers.collect(absmaxes, first + c, absmax)

    absmax_ref[...] = _for_each_group(shape[1], place[1], width, sample, absmax_ref[...])


def _backward(
    table_ref, g_ref, sums_ref, *, spec: Spec, shape: tuple[int, int], multiply: philox.Multiply
):
    strip, step = pl.program_id(1), pl.program_id(2)
    width = g_ref.shape[1]
    place = strip * _STRIP, step * width
    row = _row(table_ref)
    first = _first_group(step, width)

    def add_up(c, sums):
        noises = _noise_of_runs(spec, row, strip, place[1] + c * _LANES, multiply)
        products = [
            body.backward(_slices(g), slices.__getitem__)
            for g, slices in zip(_load(g_ref, c, shape, place), noises, strict=True)
        ]
        return tpu_registers.collect(
            sums, first + c, tpu_registers.reduce_blocks(jnp.add, products)
        )

    sums_ref[...] = _for_each_group(shape[1], place[1], width, add_up, sums_ref[...])


def _call(function: Any, spec: Spec, stack: Stack, results: Sequence[Any], interpret: Any) -> Any:
    """Launch a kernel on one stack.

    Args:
      function: of the references of the table's row, the matrix, numbers per block and results.
      spec: static options.
      stack: (table, matrices, numbers per block…).
      results: types of the results: of matrices and numbers per block, or of the latter alone.
      interpret: run in an interpreter, that of Pallas (True) or that of TPUs (its options).
    """
    table, matrices, *per_block = stack
    leads, m, n = matrices.shape
    width = min(_MOST_COLUMNS, _LANES * pl.cdiv(n, _LANES))
    of_matrix = pl.BlockSpec((None, _STRIP, width), lambda lead, i, j: (lead, i, j))
    of_blocks = pl.BlockSpec(
        (None, _RUNS, _LANES), lambda lead, i, j: (lead, i, j // np.int32(_STEPS))
    )
    of_row = pl.BlockSpec(
        (None, 1, table.shape[1]), lambda lead, i, j: (lead, 0, 0), memory_space=pltpu.SMEM
    )

    arrays = (matrices, *per_block, *results)
    return pl.pallas_call(
        functools.partial(function, spec=spec, shape=(m, n), multiply=_choose_multiply(interpret)),
        grid=(leads, pl.cdiv(m, _STRIP), pl.cdiv(n, width)),
        in_specs=[of_row, of_matrix, *[of_blocks] * len(per_block)],
        out_specs=[of_matrix, of_blocks][-len(results) :],
        out_shape=results,
        interpret=interpret,
        name=f"pqt{function.__name__}",  # in profiles
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=_OPERATIONS * matrices.size,
            transcendentals=0,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
        ),
    )(table[:, None], matrices, *per_block)


def forward(spec: Spec, *stacks: Stack, interpret: Any = False) -> tuple[Stack, ...]:
    """Sample ŵ, with the block maxima; as `launch.forward`, by a launch for each stack."""

    def launch(table, w, b_i):
        results = body.like(w.shape, spec.storage, w), body.like(b_i.shape, jnp.float32, w)
        return _call(_forward, spec, (table, w, b_i), results, interpret)

    return tuple(launch(*stack) for stack in stacks)


def backward(spec: Spec, *stacks: Stack, interpret: Any = False) -> tuple[Stack, ...]:
    """Sum ∂L/∂ŵ · R over blocks; as `launch.backward`, by a launch for each stack."""

    def launch(table, g):
        leads, m, n = g.shape
        result = body.like((leads, pl.cdiv(m, 32), pl.cdiv(n, 32)), jnp.float32, g)
        return _call(_backward, spec, (table, g), (result,), interpret)

    return tuple(launch(*stack) for stack in stacks)
