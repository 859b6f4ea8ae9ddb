# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sampling of sharded arrays: each device works on its shard, with the shard's global index.

    mesh axes     how a kernel is called
    Manual        directly: the arrays are shards already
    Explicit      under `shard_map`, with the specs in the types of the arrays
    Auto          under `custom_partitioning`, which gets the specs that XLA has chosen

The reference needs this on Explicit meshes only. Elsewhere XLA partitions it.

Nothing is communicated where the edges of shards are multiples of 32 and of the block. Otherwise a
block would lie on several devices. The axis in question is then gathered first, and the result is
the same.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax.numerics import noise, philox
from pqt_jax.numerics.blocks import Block, first_axes, matrix_shape

# What belongs to one stack of matrices: (table, matrices [l, M, N], per block [l, M/32, N/32]…),
# or what is computed of it: (matrices, per block…), or numbers per block alone.
Stack = tuple[jax.Array, ...]
LocalFunction = Callable[..., tuple[Stack, ...]]  # (*stacks) → stacks, on one device

TABLE_COLUMNS = 8  # Triton needs a power of two; six are used
RUN, COLUMN = 3, 4  # columns of the table: first run of 32 rows, first column of the matrix


def make_table(words: jax.Array, offset: jax.Array, leads: int) -> jax.Array:
    """Tabulate what the noise of each matrix depends on.

    Args:
      words: uint32[2], the key.
      offset: uint32[3], global (lead, run of 32 rows, column) of the first element.
      leads: number of stacked matrices.

    Returns:
      uint32[leads, 8]; a row is key 0, key 1, lead, first run, first column, the bits of 1.0, 0, 0.
      The bits of 1.0 are an operand, so that the compiler does not know them: see
      `noise.noise_from_words`.
    """
    lead = offset[0] + lax.iota(jnp.uint32, leads)
    columns = [words[0], words[1], lead, offset[1], offset[2], noise.ONE]
    columns += [jnp.uint32(0)] * (TABLE_COLUMNS - len(columns))
    return jnp.stack([jnp.broadcast_to(column, (leads,)) for column in columns], axis=1)


def words_and_offset(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (words, offset) of the first matrix of a table; the inverse of `make_table`."""
    return table[0, :2], table[0, 2:5]


def is_explicit() -> bool:
    """Whether the current mesh has axes whose shardings are part of the types of arrays."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def partition_kernel(
    local: LocalFunction,
    has_matrices: bool,
    automatic: bool = True,
    sharding: P | None = None,
) -> LocalFunction:
    """Make a kernel work on arrays of any sharding.

    Args:
      local: `(*stacks) → stacks`, on one device.
      has_matrices: whether it returns (matrices, numbers per block) of each stack, or only numbers.
      automatic: whether to partition it on Auto meshes; if not, XLA gathers its operands.
      sharding: of the matrices on Auto meshes, if it is known; else XLA is asked.
    """

    def apply(*stacks: Stack) -> tuple[Stack, ...]:
        mesh = jax.sharding.get_abstract_mesh()
        if is_explicit():
            return map_shards(local, (32, 32), has_matrices, *stacks)
        if AxisType.Manual in mesh.axis_types:  # each alone: they may vary over different axes
            return tuple(_call_in_shard_map(local, stack) for stack in stacks)
        if sharding is not None and not mesh.empty:
            return map_shards(local, (32, 32), has_matrices, *stacks, sharding=sharding)
        if jax.device_count() == 1 or not automatic:
            return local(*stacks)
        return _partition_automatically(local, has_matrices, stacks)

    return apply


def _call_in_shard_map(local: LocalFunction, stack: Stack) -> Stack:
    """Call a kernel on one stack under `shard_map`.

    Every operand and output is marked as varying over each mesh axis that any operand varies over.
    """

    def varying_axes(x):
        return jax.typeof(x).manual_axis_type.varying

    all_axes = frozenset().union(*map(varying_axes, stack))

    def mark_varying(x):
        missing = tuple(all_axes - varying_axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    (outputs,) = local(tuple(map(mark_varying, stack)))
    return tuple(map(mark_varying, outputs))


def as_matrices(x: jax.Array, matrix_axes: tuple[int, int]) -> jax.Array:
    """Reshape a parameter, or its numbers per block, to a stack of matrices; see `blocks`.

    On a mesh with Explicit axes, when several axes of a parameter become one, the first of them may
    stay sharded. The parameter is gathered along the others.
    """
    shape = matrix_shape(x.shape, matrix_axes)
    if not is_explicit():
        return x.reshape(shape)
    first = first_axes(x.ndim, matrix_axes)
    entries = _entries(jax.typeof(x).sharding.spec, x.ndim)
    kept = P(*(entry if axis in first else None for axis, entry in enumerate(entries)))
    stack = [entries[axis] if axis is not None and x.shape[axis] else None for axis in first]
    return jnp.reshape(jax.sharding.reshard(x, kept), shape, out_sharding=P(*stack))


def from_matrices(matrices: jax.Array, like: jax.Array, matrix_axes: tuple[int, int]) -> jax.Array:
    """Reshape and reshard a stack of matrices like a parameter; the inverse of `as_matrices`."""
    if not is_explicit():
        return matrices.reshape(like.shape)
    first = first_axes(like.ndim, matrix_axes)
    spec = jax.typeof(like).sharding.spec
    entries = _entries(spec, like.ndim)
    kept = P(*(entry if axis in first else None for axis, entry in enumerate(entries)))
    return jax.sharding.reshard(jnp.reshape(matrices, like.shape, out_sharding=kept), spec)


def map_shards(
    local: LocalFunction,
    block: Block,
    has_matrices: bool,
    *stacks: Stack,
    sharding: P | None = None,
) -> tuple[Stack, ...]:
    """Call a function on each shard, on a mesh with Explicit axes, or of a known sharding.

    Args:
      local, stacks: as for `partition_kernel`.
      block: a block stays on one device.
      has_matrices: whether the first output of each stack is matrices, which then get the sharding
        of the stack's own.
      sharding: of the matrices on a mesh with Auto axes; None on one with Explicit axes, whose
        arrays know theirs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if sharding is None:
        reshard: Any = jax.sharding.reshard
        originals = [jax.typeof(stack[1]).sharding.spec for stack in stacks]
    else:
        reshard, originals = lax.with_sharding_constraint, [sharding] * len(stacks)
    specs = tuple(
        whole_block_spec(spec, stack[1].shape, block, mesh)
        for spec, stack in zip(originals, stacks, strict=True)
    )
    in_specs = tuple(
        (P(spec[0], None), *[spec] * (len(stack) - 1))
        for spec, stack in zip(specs, stacks, strict=True)
    )
    results = jax.shard_map(
        functools.partial(_call_on_shards, local, specs, mesh),
        in_specs=in_specs,
        out_specs=specs,
        check_vma=False,
    )(*jax.tree.map(reshard, stacks, in_specs))
    if not has_matrices:
        return results
    pairs = zip(results, originals, strict=True)
    return tuple((reshard(matrices, spec), *rest) for (matrices, *rest), spec in pairs)


def map_blocks(function: Callable[..., jax.Array], block: Block, matrices, *per_block):
    """Apply `function(matrices, *per_block) → matrices`, by shards on a mesh with Explicit axes."""
    if not is_explicit():
        return function(matrices, *per_block)

    def local(stack):
        return ((function(*stack[1:]),),)

    table = jnp.zeros((matrices.shape[0], TABLE_COLUMNS), jnp.uint32)  # map_shards needs one
    return map_shards(local, block, True, (table, matrices, *per_block))[0][0]


def reshard_like(per_block: jax.Array, matrices: jax.Array, block: Block) -> jax.Array:
    """Reshard numbers per block like the blocks of matrices, on a mesh with Explicit axes."""
    if not is_explicit():
        return per_block
    mesh, spec = jax.sharding.get_abstract_mesh(), jax.typeof(matrices).sharding.spec
    return jax.sharding.reshard(per_block, whole_block_spec(spec, matrices.shape, block, mesh))


def _partition_automatically(
    local: LocalFunction, has_matrices: bool, stacks: tuple[Stack, ...]
) -> tuple[Stack, ...]:
    """Call a kernel on an Auto mesh. `custom_partitioning` takes flat lists of arrays."""
    width, outputs = len(stacks[0]), 1 + has_matrices

    def split(flat: Sequence[Any], each: int) -> list[tuple[Any, ...]]:
        return [tuple(flat[i : i + each]) for i in range(0, len(flat), each)]

    def call(function, *flat):
        return tuple(x for stack in function(*split(flat, width)) for x in stack)

    def partition(mesh, arguments, results):
        specs = [
            whole_block_spec(matrices.sharding.spec, matrices.shape, (32, 32), mesh)
            for _, matrices, *_ in split(arguments, width)
        ]
        shardings = [
            (NamedSharding(mesh, P(spec[0], None)), *[NamedSharding(mesh, spec)] * (width - 1))
            for spec in specs
        ]
        lowered = functools.partial(call, functools.partial(_call_on_shards, local, specs, mesh))
        of_results = tuple(x for own in shardings for x in own[1:2] * outputs)
        return mesh, lowered, of_results, tuple(x for own in shardings for x in own)

    # l, i, j: axes of matrices; bi, bj: of blocks, which `partition` shards like i and j.
    def rule(*arrays: str) -> str:
        each = range(len(stacks))
        return ", ".join(" ".join(f"{axis}{k}" for axis in x.split()) for k in each for x in arrays)

    per_stack = ("l t", "l i j", "l bi bj")
    function = custom_partitioning(functools.partial(call, local))
    function.def_partition(
        partition=partition,
        sharding_rule=f"{rule(*per_stack[:width])} -> {rule(*per_stack[-outputs:])}",
    )
    flat = function(*(x for stack in stacks for x in stack))
    return tuple(split(flat, outputs))


def whole_block_spec(spec: P, shape: tuple[int, ...], block: Block, mesh: Any) -> P:
    """Drop from a spec the axes on which a shard of [l, M, N] would cut a block or a run."""
    entries = _entries(spec, 3)
    units = (1, max(philox.ROWS, block[0]), block[1])
    for axis, (size, unit) in enumerate(zip(shape, units, strict=True)):
        shards = math.prod(mesh.shape[name] for name in _axis_names(entries[axis]))
        if shards > 1 and size % (shards * unit):
            entries[axis] = None
    return P(*entries)


def _entries(spec: P, ndim: int) -> list[Any]:
    return [*spec, *[None] * (ndim - len(spec))]


def _axis_names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _call_on_shards(local: LocalFunction, specs: Sequence[P], mesh: Any, *stacks: Stack):
    """Call a function on shards, whose global offsets are added to their tables first."""
    moved = []
    for spec, (table, matrices, *per_block) in zip(specs, stacks, strict=True):
        for column, axis, unit in ((RUN, 1, philox.ROWS), (COLUMN, 2, 1)):
            at = jnp.uint32(0)
            for name in _axis_names(spec[axis]):
                at = at * jnp.uint32(mesh.shape[name]) + lax.axis_index(name).astype(jnp.uint32)
            table = table.at[:, column].add(at * jnp.uint32(matrices.shape[axis] // unit))
        moved.append((table, matrices, *per_block))
    return local(*moved)
