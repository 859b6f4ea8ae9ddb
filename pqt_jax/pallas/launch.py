# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""From `pqt_jax.numerics.reference`'s signatures to one kernel launch: padding, pieces, vmap.

    forward, backward → vmap as more matrices in the stack → shards (`sharding`) → pieces → a kernel

A stack of matrices goes through one launch. What a kernel has to know about each of them is a row
of a small table, so that matrices under vmap, with keys of their own, are just a larger stack.
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

MOST_ELEMENTS = 2**31 - 1  # of an array that a kernel indexes by 32 bits
MOST_IN_GRID = 65535  # thread blocks along a grid's second and third axis


def forward(implementation: str, interpret: bool, spec: Spec, w, b_i, words, offset):
    """ŵ and the block maxima; see `pqt_jax.numerics.reference.forward`."""
    table = partition.make_table(words, offset, w.shape[0])
    return _operation("forward", implementation, interpret, spec)(table, w, b_i)


def backward(implementation: str, interpret: bool, spec: Spec, cotangent, words, offset):
    """The block sums of ∂L/∂ŵ · R; see `pqt_jax.numerics.reference.backward`."""
    table = partition.make_table(words, offset, cotangent.shape[0])
    return _operation("backward", implementation, interpret, spec)(table, cotangent)[0]


def kernel_of(implementation: str) -> Any:
    """The module of a back-end."""
    return importlib.import_module(f"pqt_jax.pallas.{implementation}")


@functools.cache
def _operation(name: str, implementation: str, interpret: bool, spec: Spec) -> Callable[..., Any]:
    """`(table, arrays of stacked matrices…) → tuple of such`, for any batch, sharding and size."""
    local = functools.partial(_in_pieces, name, kernel_of(implementation), interpret, spec)
    # Mosaic's interpreter has ordered effects, which custom_partitioning does not lower.
    automatic = not (interpret and implementation == "mosaic")
    apply = custom_vmap(partition.sharded(local, 2 if name == "forward" else 1, automatic))

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


def _in_pieces(name: str, kernel: Any, interpret: bool, spec: Spec, table, matrices, *per_block):
    """Pad to whole tiles, and launch once, or as often as 32-bit indices need."""
    leads, m, n = matrices.shape
    matrices = blocks.pad_to(matrices, kernel.ROWS, kernel.COLUMNS)
    _, rows, columns = matrices.shape
    runs, tiles = rows // philox.ROWS, columns // 32
    fill = lambda x: jnp.pad(x, ((0, 0), (0, runs - x.shape[1]), (0, tiles - x.shape[2])))  # noqa: E731
    per_block = [fill(x) if x.shape[1:] != (runs, tiles) else x for x in per_block]
    run = functools.partial(getattr(kernel, name), spec, interpret=interpret)

    def launch(some_leads: slice, some_runs: slice):
        some_rows = slice(some_runs.start * philox.ROWS, some_runs.stop * philox.ROWS)
        moved = table[some_leads]
        if some_runs.start:  # else a kernel of its own would add nothing
            moved = moved.at[:, partition.RUN].add(jnp.uint32(some_runs.start))
        inputs = [matrices[some_leads, some_rows], *(x[some_leads, some_runs] for x in per_block)]
        outputs = run(inputs[0], *inputs[1:], moved)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    cuts = _pieces(leads, runs, columns)
    pieces = [[launch(some, run) for run in some_runs] for some, some_runs in cuts]
    joined = [
        _concatenate([_concatenate([piece[i] for piece in row], 1) for row in pieces], 0)
        for i in range(len(pieces[0][0]))
    ]
    cut = (-(-m // 32), -(-n // 32))
    full = [(m, n) if x.shape[1:] == (rows, columns) else cut for x in joined]
    return tuple(x[:, :a, :b] for x, (a, b) in zip(joined, full, strict=True))


def _concatenate(arrays: list[jax.Array], axis: int) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis)


def _pieces(leads: int, runs: int, columns: int) -> Iterator[tuple[slice, list[slice]]]:
    """Leads and runs of each launch."""
    most_runs = min(runs, MOST_IN_GRID, max(1, MOST_ELEMENTS // (columns * philox.ROWS)))
    most_leads = 1
    if most_runs == runs:
        most_leads = min(MOST_IN_GRID, max(1, MOST_ELEMENTS // (columns * philox.ROWS * runs)))
    for first in range(0, leads, most_leads):
        cuts = range(0, runs, most_runs)
        rows = [slice(start, min(start + most_runs, runs)) for start in cuts]
        yield slice(first, min(first + most_leads, leads)), rows
