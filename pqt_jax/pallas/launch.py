# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Kernel launches behind the functions of `pqt_jax.numerics.reference`.

    forward, backward → vmap: larger stacks → one shard (`partition`) → padded tiles → launches

One launch samples whole stacks of matrices. A small table has one row per matrix, with its key and
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
from pqt_jax.numerics.partition import Stack
from pqt_jax.numerics.spec import Spec

MAX_ELEMENTS = 2**31 - 1  # of an array that a kernel indexes with 32 bits
MAX_GRID = 65535  # thread blocks along the second and the third axis of a grid


def forward(implementation: str, interpret: bool, spec: Spec, *stacks: Stack) -> tuple[Stack, ...]:
    """Sample ŵ, with the block maxima: (w, b_i, words, offset) → (ŵ, max_B|w|) for each stack."""
    with_tables = [(_make_table(w, *place), w, b_i) for w, b_i, *place in stacks]
    return _operation("forward", implementation, interpret, spec)(*with_tables)


def backward(implementation: str, interpret: bool, spec: Spec, *stacks: Stack) -> tuple[Stack, ...]:
    """Sum ∂L/∂ŵ · R over blocks: (∂L/∂ŵ, words, offset) → (block sums,) for each stack."""
    with_tables = [(_make_table(g, *place), g) for g, *place in stacks]
    return _operation("backward", implementation, interpret, spec)(*with_tables)


def _make_table(matrices: jax.Array, words: jax.Array, offset: jax.Array) -> jax.Array:
    return partition.make_table(words, offset, matrices.shape[0])


def load_kernel(implementation: str) -> Any:
    """Return the module of a back-end."""
    return importlib.import_module(f"pqt_jax.pallas.{implementation}")


@functools.cache
def _operation(name: str, implementation: str, interpret: bool, spec: Spec) -> Callable[..., Any]:
    """Make `(*stacks) → stacks`, with tables first, for any batch, sharding and size."""
    local = functools.partial(_launch, name, load_kernel(implementation), interpret, spec)
    # The interpreter of Mosaic has ordered effects, which custom_partitioning cannot lower.
    automatic = not (interpret and implementation == "mosaic")
    has_matrices = name == "forward"
    apply = custom_vmap(partition.partition_kernel(local, has_matrices, automatic, spec.sharding))

    @apply.def_vmap
    def _(size, in_batched, *stacks):
        if not size:  # nothing to launch
            like = jax.tree.map(_without_batch, stacks, tuple(in_batched))
            shapes = jax.eval_shape(apply, *like)
            empty = jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), shapes)
            return empty, jax.tree.map(lambda _: True, empty)

        def merge(x, is_batched):
            batched = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return batched.reshape(-1, *batched.shape[2:])

        merged = jax.tree.map(merge, stacks, tuple(in_batched))
        outputs = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), apply(*merged))
        return outputs, jax.tree.map(lambda _: True, outputs)

    return jax.jit(apply)


def _without_batch(x: jax.Array, is_batched: bool) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[is_batched:], x.dtype)


def _launch(
    name: str, kernel: Any, interpret: bool, spec: Spec, *stacks: Stack
) -> tuple[Stack, ...]:
    """Pad to whole tiles, and launch the kernel once, or more often if 32-bit indices need it."""
    padded = [_pad(kernel, *stack) for stack in stacks]
    run_kernel = functools.partial(getattr(kernel, name), spec, interpret=interpret)
    if len(stacks) > 1 and sum(matrices.size for _, matrices, *_ in padded) <= MAX_ELEMENTS:
        outputs = run_kernel(*padded)
    else:
        outputs = [_launch_pieces(run_kernel, *stack) for stack in padded]
    return tuple(
        tuple(_trim(x, whole[1].shape, stack[1].shape) for x in own)
        for own, whole, stack in zip(outputs, padded, stacks, strict=True)
    )


def _pad(kernel: Any, table: jax.Array, matrices: jax.Array, *per_block: jax.Array) -> Stack:
    matrices = blocks.pad_to(matrices, kernel.ROWS, kernel.COLUMNS)
    runs, tiles = -(-matrices.shape[1] // philox.ROWS), -(-matrices.shape[2] // 32)
    return table, matrices, *(_pad_grid(x, runs, tiles) for x in per_block)


def _trim(x: jax.Array, padded: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """Cut an output on padded matrices, or on their blocks, to what matrices of a shape need."""
    _, m, n = shape
    a, b = (m, n) if x.shape == padded else (-(-m // 32), -(-n // 32))
    return x[:, :a, :b]


def _launch_pieces(run_kernel: Any, table, matrices, *per_block) -> Stack:
    """Launch a kernel on one stack, in pieces if it is too large, and join their outputs."""
    leads, rows, columns = matrices.shape

    def launch(lead_slice: slice, run_slice: slice) -> Stack:
        row_slice = slice(run_slice.start * philox.ROWS, run_slice.stop * philox.ROWS)
        rows_of_table = table[lead_slice]
        if run_slice.start:  # adding 0 would cost a launch
            rows_of_table = rows_of_table.at[:, partition.RUN].add(jnp.uint32(run_slice.start))
        inputs = [matrices[lead_slice, row_slice], *(x[lead_slice, run_slice] for x in per_block)]
        return run_kernel((rows_of_table, *inputs))[0]

    pieces = [
        [launch(lead_slice, run_slice) for run_slice in run_slices]
        for lead_slice, run_slices in _launch_slices(leads, -(-rows // philox.ROWS), columns)
    ]
    return tuple(
        _concatenate([_concatenate([piece[i] for piece in row], 1) for row in pieces], 0)
        for i in range(len(pieces[0][0]))
    )


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
