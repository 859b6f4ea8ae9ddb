# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Kernel launches behind the signatures of `pqt_jax.numerics.reference`.

    forward, backward → vmap: a larger stack → one shard (`partition`) → padded tiles → launches

One launch samples a whole stack of matrices. A small table has one row per matrix, with its key and
its global index. Matrices under vmap, each with its own key, are therefore just a larger stack.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from pqt_jax.numerics import blocks, partition, philox
from pqt_jax.numerics.spec import Spec

MAX_ELEMENTS = 2**31 - 1  # of an array that a kernel indexes with 32 bits
MAX_GRID = 65535  # thread blocks along the second and the third axis of a grid


def forward(implementation: str, interpret: bool, spec: Spec, w, b_i, words, offset):
    """Sample ŵ, with the block maxima; see `pqt_jax.numerics.reference.forward`."""
    table = partition.make_table(words, offset, w.shape[0])
    return _operation("forward", implementation, interpret, spec)(table, w, b_i)


def backward(implementation: str, interpret: bool, spec: Spec, cotangent, words, offset):
    """Return the block sums of ∂L/∂ŵ · R; see `pqt_jax.numerics.reference.backward`."""
    table = partition.make_table(words, offset, cotangent.shape[0])
    return _operation("backward", implementation, interpret, spec)(table, cotangent)[0]


def load_kernel(implementation: str) -> Any:
    """Return the module of a back-end."""
    return importlib.import_module(f"pqt_jax.pallas.{implementation}")


@functools.cache
def _operation(name: str, implementation: str, interpret: bool, spec: Spec) -> Callable[..., Any]:
    """Make `(table, stacked arrays…) → stacked arrays`, for any batch, sharding and size."""
    local = functools.partial(_launch, name, load_kernel(implementation), interpret, spec)
    # The interpreter of Mosaic has ordered effects, which custom_partitioning cannot lower.
    automatic = not (interpret and implementation == "mosaic")
    apply = custom_vmap(partition.partition_kernel(local, 2 if name == "forward" else 1, automatic))

    @apply.def_vmap
    def _(size, in_batched, *operands):
        if not size:  # nothing to launch
            shapes = [
                x.shape[is_batched:] for x, is_batched in zip(operands, in_batched, strict=True)
            ]
            like = [jax.ShapeDtypeStruct(s, x.dtype) for s, x in zip(shapes, operands, strict=True)]
            empty = [jnp.zeros((0, *x.shape), x.dtype) for x in jax.eval_shape(apply, *like)]
            return tuple(empty), (True,) * len(empty)
        batched = [
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(operands, in_batched, strict=True)
        ]
        merged = [x.reshape(-1, *x.shape[2:]) for x in batched]
        outputs = [x.reshape(size, -1, *x.shape[1:]) for x in apply(*merged)]
        return tuple(outputs), (True,) * len(outputs)

    return jax.jit(apply)


def _launch(name: str, kernel: Any, interpret: bool, spec: Spec, table, matrices, *per_block):
    """Pad to whole tiles, and launch the kernel once, or more often if 32-bit indices need it."""
    leads, m, n = matrices.shape
    matrices = blocks.pad_to(matrices, kernel.ROWS, kernel.COLUMNS)
    _, rows, columns = matrices.shape
    runs, tiles = rows // philox.ROWS, columns // 32
    per_block = [_pad_grid(x, runs, tiles) for x in per_block]
    run_kernel = functools.partial(getattr(kernel, name), spec, interpret=interpret)

    def launch(lead_slice: slice, run_slice: slice):
        row_slice = slice(run_slice.start * philox.ROWS, run_slice.stop * philox.ROWS)
        rows_of_table = table[lead_slice]
        if run_slice.start:  # adding 0 would cost a launch
            rows_of_table = rows_of_table.at[:, partition.RUN].add(jnp.uint32(run_slice.start))
        inputs = [matrices[lead_slice, row_slice], *(x[lead_slice, run_slice] for x in per_block)]
        outputs = run_kernel(inputs[0], *inputs[1:], rows_of_table)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    pieces = [
        [launch(lead_slice, run_slice) for run_slice in run_slices]
        for lead_slice, run_slices in _launch_slices(leads, runs, columns)
    ]
    joined = [
        _concatenate([_concatenate([piece[i] for piece in row], 1) for row in pieces], 0)
        for i in range(len(pieces[0][0]))
    ]
    grid = (-(-m // 32), -(-n // 32))
    sizes = [(m, n) if x.shape[1:] == (rows, columns) else grid for x in joined]
    return tuple(x[:, :a, :b] for x, (a, b) in zip(joined, sizes, strict=True))


def _pad_grid(per_block: jax.Array, runs: int, tiles: int) -> jax.Array:
    if per_block.shape[1:] == (runs, tiles):
        return per_block
    _, gm, gn = per_block.shape
    return jnp.pad(per_block, ((0, 0), (0, runs - gm), (0, tiles - gn)))


def _concatenate(arrays: list[jax.Array], axis: int) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis)


def _launch_slices(leads: int, runs: int, columns: int) -> Iterator[tuple[slice, list[slice]]]:
    """Yield the leads of a row of launches, and the runs of each launch in it."""
    max_runs = min(runs, MAX_GRID, max(1, MAX_ELEMENTS // (columns * philox.ROWS)))
    max_leads = 1
    if max_runs == runs:
        max_leads = min(MAX_GRID, max(1, MAX_ELEMENTS // (columns * philox.ROWS * runs)))
    for first in range(0, leads, max_leads):
        starts = range(0, runs, max_runs)
        run_slices = [slice(start, min(start + max_runs, runs)) for start in starts]
        yield slice(first, min(first + max_leads, leads)), run_slices
