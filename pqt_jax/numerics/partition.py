# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sampling of sharded arrays: every device works on its shard, at its place in the whole matrix.

    mesh axes     how a kernel is placed
    Manual        it is called as it is: the arrays are shards already
    Explicit      `shard_map`, with the specs that the types of the arrays name
    Auto          `custom_partitioning`, which meets the specs when XLA has settled them

The reference is placed by hand on Explicit meshes alone: elsewhere XLA partitions it.

No communication is added where a shard's edges are multiples of 32 and of the block. Where they are
not, blocks lie on more than one device; the axis in question is gathered first, and the result is
the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax.numerics import noise, philox
from pqt_jax.numerics.blocks import Block, matrix_shape

Local = Callable[..., tuple[jax.Array, ...]]

TABLE_COLUMNS = 8  # a power of two, as Triton wants it; six are used
RUN, COLUMN = 3, 4  # the first of each, in a row of a table


def make_table(words: jax.Array, offset: jax.Array, leads: int) -> jax.Array:
    """One row per matrix: key 0, key 1, lead, first run, first column, 1.0; uint32[leads, 8].

    The bits of 1.0 are there so that a compiler does not know them, see `noise.of_words`.
    """
    lead = offset[0] + lax.iota(jnp.uint32, leads)
    columns = [words[0], words[1], lead, offset[1], offset[2], noise.ONE]
    columns += [jnp.uint32(0)] * (TABLE_COLUMNS - len(columns))
    return jnp.stack([jnp.broadcast_to(column, (leads,)) for column in columns], axis=1)


def of_table(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(words, offset) of the first matrix of a table."""
    return table[0, :2], table[0, 2:5]


def is_explicit() -> bool:
    """Whether the mesh around has axes whose shardings are part of the arrays' types."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def sharded(local: Local, outputs: int, automatic: bool = True) -> Local:
    """A kernel for arrays of any sharding.

    Args:
      local: `(table, matrices [l, M, N], per block [l, M/32, N/32]…) → outputs`, on one device.
      outputs: 2 if it returns matrices and numbers per block, 1 if the latter alone.
      automatic: whether to place it on Auto meshes; else XLA gathers all it is given.
    """
    partitioned = _partitioned(local, outputs)

    def apply(table, matrices, *per_block):
        if is_explicit():
            return mapped(local, (32, 32), outputs == 2, table, matrices, *per_block)
        types = jax.sharding.get_abstract_mesh().axis_types
        if AxisType.Manual in types:
            return _of_shards(local, table, matrices, *per_block)
        if jax.device_count() == 1 or not automatic:
            return local(table, matrices, *per_block)
        return partitioned(table, matrices, *per_block)

    return apply


def _of_shards(local: Local, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """Call a kernel under `shard_map`, all it takes and gives varying as any of what it takes."""
    own = lambda x: jax.typeof(x).manual_axis_type.varying  # noqa: E731
    every = frozenset().union(*map(own, operands))

    def varying(x):
        more = tuple(every - own(x))
        return lax.pcast(x, more, to="varying") if more else x

    return tuple(map(varying, local(*map(varying, operands))))


def as_matrices(x: jax.Array, matrix_axes: tuple[int, int]) -> jax.Array:
    """A parameter, or its numbers per block, as a stack of matrices; see `blocks`.

    On a mesh with Explicit axes only the first of the axes that become one can stay on several
    devices; along the others the parameter is gathered.
    """
    shape = matrix_shape(x.shape, matrix_axes)
    if not is_explicit():
        return x.reshape(shape)
    first = _firsts(x.ndim, matrix_axes)
    given = _entries(jax.typeof(x).sharding.spec, x.ndim)
    kept = P(*(entry if axis in first else None for axis, entry in enumerate(given)))
    stack = [given[axis] if axis is not None and x.shape[axis] else None for axis in first]
    return jnp.reshape(jax.sharding.reshard(x, kept), shape, out_sharding=P(*stack))


def restored(matrices: jax.Array, like: jax.Array, matrix_axes: tuple[int, int]) -> jax.Array:
    """The inverse of `as_matrices`: in the shape of a parameter, and where that is."""
    if not is_explicit():
        return matrices.reshape(like.shape)
    first = _firsts(like.ndim, matrix_axes)
    given = jax.typeof(like).sharding.spec
    entries = _entries(given, like.ndim)
    kept = P(*(entry if axis in first else None for axis, entry in enumerate(entries)))
    return jax.sharding.reshard(jnp.reshape(matrices, like.shape, out_sharding=kept), given)


def _firsts(ndim: int, matrix_axes: tuple[int, int]) -> list[int | None]:
    """The first of the axes of a parameter that become the stack, the rows and the columns."""
    rows, columns = matrix_axes
    return [0 if ndim > rows + columns else None, ndim - columns - rows, ndim - columns]


def mapped(
    local: Local, block: Block, whole: bool, table, matrices, *per_block
) -> tuple[jax.Array, ...]:
    """Place `local` on a mesh with Explicit axes.

    Args:
      local, table, matrices, per_block: as for `sharded`.
      block: whole ones stay on one device.
      whole: whether the first result is matrices, which go back to where these were.
    """
    mesh, given = jax.sharding.get_abstract_mesh(), jax.typeof(matrices).sharding.spec
    spec = servable(given, matrices.shape, block, mesh)
    reshard = jax.sharding.reshard
    results = jax.shard_map(
        functools.partial(_at_its_place, local, spec, mesh),
        in_specs=(P(spec[0], None), spec, *(spec for _ in per_block)),
        out_specs=spec,
        check_vma=False,
    )(
        reshard(table, P(spec[0], None)),
        reshard(matrices, spec),
        *(reshard(x, spec) for x in per_block),
    )
    if whole:  # back to how the matrices came
        results = (reshard(results[0], given), *results[1:])
    return results


def over_blocks(function: Callable[..., jax.Array], block: Block, matrices, *per_block):
    """`function(matrices, *per_block)` → matrices, placed where a mesh has Explicit axes."""
    if not is_explicit():
        return function(matrices, *per_block)
    table = jnp.zeros((matrices.shape[0], TABLE_COLUMNS), jnp.uint32)  # of no use here
    local = lambda _, *operands: (function(*operands),)  # noqa: E731
    return mapped(local, block, True, table, matrices, *per_block)[0]


def beside(per_block: jax.Array, matrices: jax.Array, block: Block) -> jax.Array:
    """Numbers per block moved to where their blocks are, on a mesh with Explicit axes."""
    if not is_explicit():
        return per_block
    mesh, given = jax.sharding.get_abstract_mesh(), jax.typeof(matrices).sharding.spec
    return jax.sharding.reshard(per_block, servable(given, matrices.shape, block, mesh))


def _partitioned(local: Local, outputs: int) -> Local:
    function = custom_partitioning(lambda *operands: local(*operands))

    def partition(mesh, arguments, results):
        matrices = arguments[1]
        spec = servable(matrices.sharding.spec, matrices.shape, (32, 32), mesh)
        placed, table = NamedSharding(mesh, spec), NamedSharding(mesh, P(spec[0], None))
        lowered = functools.partial(_at_its_place, local, spec, mesh)
        return mesh, lowered, (placed,) * outputs, (table, *[placed] * (len(arguments) - 1))

    # l, i, j: axes of matrices; bi, bj: of blocks, which `partition` ties to i and j.
    rule = "l t, l i j, l bi bj -> l i j, l bi bj" if outputs == 2 else "l t, l i j -> l bi bj"
    function.def_partition(partition=partition, sharding_rule=rule)
    return function


def servable(spec: P, shape: tuple[int, ...], block: Block, mesh: Any) -> P:
    """The part of a spec under which every shard of [l, M, N] holds whole blocks and runs."""
    entries = _entries(spec, 3)
    wholes = (1, max(philox.ROWS, block[0]), block[1])
    for axis, (size, whole) in enumerate(zip(shape, wholes, strict=True)):
        shards = math.prod(mesh.shape[name] for name in _names(entries[axis]))
        if shards > 1 and size % (shards * whole):
            entries[axis] = None
    return P(*entries)


def _entries(spec: P, ndim: int) -> list[Any]:
    return [*spec, *[None] * (ndim - len(spec))]


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _at_its_place(local: Local, spec: P, mesh: Any, table, matrices, *per_block):
    """Run on one shard, with its global offsets in the table."""
    for column, axis, unit in ((RUN, 1, philox.ROWS), (COLUMN, 2, 1)):
        index = jnp.uint32(0)
        for name in _names(spec[axis]):
            index = index * jnp.uint32(mesh.shape[name]) + lax.axis_index(name).astype(jnp.uint32)
        table = table.at[:, column].add(index * jnp.uint32(matrices.shape[axis] // unit))
    return local(table, matrices, *per_block)
