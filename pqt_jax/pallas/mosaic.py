# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Mosaic GPU, for Ampere and Hopper.

A matrix is viewed as [M, N/32, 32]. One warpgroup takes a tile of 32 rows and 128 columns, and each
of its warps a block of 32 × 32. Both reductions stay inside a warp and need no shared memory. A
lane has four neighbouring columns, which one load or store moves.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pqt_jax.numerics import philox, reference
from pqt_jax.numerics.partition import Stack
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import body, mosaic_ptx, placement, ptx

ROWS, COLUMNS = philox.ROWS, 128  # of a tile; w must be padded to multiples of them
_WARPS, _VECTOR = 4, 4
_SLICE = (philox.GROUP, _WARPS, COLUMNS // _WARPS)
_MAX_TILES = 4  # of one thread block, one after the other; more would need too many registers
_THREAD_BLOCKS = 512  # about as many as an A100 or H100 runs at once; with fewer, some of it idles

try:
    Tiling = plgpu.Tiling
except AttributeError:  # jax 0.10
    from jax.experimental.mosaic.gpu.fragmented_array import Tiling

# [4, warp, 32]: each lane has one row and four columns.
_LAYOUT = plgpu.Layout.TILED(
    Tiling(((philox.GROUP, _WARPS, 32), (philox.GROUP, 1, 32), (_VECTOR,))),
    warp_dims=(-6,),
    lane_dims=(-4, -2),
    vector_dim=-1,
)
_PER_WARP = _LAYOUT.reduce((0, 2))
_GRID = ("lead", "run", "step")  # of a launch on one stack
_INDEX = inspect.signature(plgpu.load).parameters.get("idx")  # jax 0.10 requires it
_LOAD_INDEX = ((),) if _INDEX and _INDEX.default is inspect.Parameter.empty else ()


def _load(ref: Any, layout: Any) -> jax.Array:
    return plgpu.load(ref, *_LOAD_INDEX, layout=layout, optimized=False)


def _store(ref: Any, value: jax.Array) -> None:
    if store := getattr(plgpu, "store", None):
        store(ref, value, optimized=False)
    else:  # jax 0.11
        ref[...] = value


def _spread(per_warp: jax.Array) -> jax.Array:
    return plgpu.layout_cast(lax.broadcast_in_dim(per_warp, _SLICE, (1,)), _LAYOUT)


def _reduce(reduction: Any, x: jax.Array) -> jax.Array:
    return reduction(reduction(x, axis=2), axis=0)  # Mosaic reduces one axis at a time


def _place(shapes: Sequence[placement.Shape]) -> tuple[Any, ...]:
    """Return the indices (stack, lead, run, step) of this thread block."""
    if len(shapes) == 1:
        return 0, *(lax.axis_index(name) for name in _GRID)
    return placement.locate(lax.axis_index("program"), shapes)


def _slices(ref: Any, lead: Any, run: Any, tile: Any) -> list[Any]:
    """Return references to the eight slices of a tile of [leads, M, N/32, 32]."""
    warps = pl.ds(tile * _WARPS, _WARPS)
    return [
        ref.at[lead, pl.ds(run * ROWS + s * philox.GROUP, philox.GROUP), warps, :]
        for s in range(philox.DRAWS)
    ]


def _load_tile(ref: Any, *at: Any) -> list[jax.Array]:
    return [_load(piece, _LAYOUT) for piece in _slices(ref, *at)]


def _per_block(ref: Any, lead: Any, run: Any, tile: Any) -> Any:
    return ref.at[lead, run, pl.ds(tile * _WARPS, _WARPS)]


def _row(table_ref: Any, lead: Any) -> list[jax.Array]:
    # Read once for all tiles of the thread block, which then share the round keys of Philox.
    return [table_ref[lead, i] for i in range(body.TABLE_ENTRIES)]


def _words(row: list[jax.Array], run: Any, tile: Any) -> philox.Words:
    iota = [plgpu.broadcasted_iota(jnp.uint32, _SLICE, d, layout=_LAYOUT) for d in range(3)]
    column = iota[1] * np.uint32(32) + iota[2] + tile.astype(jnp.uint32) * np.uint32(COLUMNS)
    return body.make_words(row, run.astype(jnp.uint32), iota[0], column)


def _forward(
    tables, matrices, bits, w_hats, absmaxes, *, spec: Spec, shapes: Any, tiles: int, inline: bool
):
    stack, lead, run, step = _place(shapes)
    row = placement.choose(stack, _row, (tables,), lead)
    decode = functools.partial(mosaic_ptx.decode, ptx.ROUNDED_NORMAL, _LAYOUT) if inline else None

    def load(w_ref, bits_ref, *at):
        rows = [x.astype(jnp.float32) for x in _load_tile(w_ref, *at)]
        return rows, _load(_per_block(bits_ref, *at), _PER_WARP)

    for t in range(tiles):
        at = lead, run, step * tiles + t
        rows, b_i = placement.choose(stack, load, (matrices, bits), *at)
        largest = _reduce(jnp.max, body.largest_magnitude(rows))
        absmax = lax.bitcast_convert_type(largest, jnp.float32)
        noise_at = body.make_noise(spec, row, _words(row, *at[1:]), decode)
        step_size = reference.block_step_size(spec, b_i)
        unit, scale = body.unit_and_scale(spec, absmax, step_size, _spread)
        w_hat = list(body.forward(spec, rows, noise_at, unit, scale))

        def store(w_hat_ref, absmax_ref, *at, w_hat=w_hat, absmax=absmax):
            for ref, value in zip(_slices(w_hat_ref, *at), w_hat, strict=True):
                _store(ref, value)
            _store(_per_block(absmax_ref, *at), absmax)

        placement.choose(stack, store, (w_hats, absmaxes), *at)


def _backward(tables, cotangents, sums, *, spec: Spec, shapes: Any, tiles: int, inline: bool):
    stack, lead, run, step = _place(shapes)
    row = placement.choose(stack, _row, (tables,), lead)
    text = ptx.SCALED_ROUNDED_NORMAL
    decode = functools.partial(mosaic_ptx.decode, text, _LAYOUT) if inline else None
    for t in range(tiles):
        at = lead, run, step * tiles + t
        rows = placement.choose(stack, _load_tile, (cotangents,), *at)
        words = _words(row, *at[1:])
        if inline and rows[0].dtype == jnp.bfloat16:
            partial = mosaic_ptx.sum_of_products(rows, words, _LAYOUT)
        else:
            partial = body.backward(rows, body.make_noise(spec, row, words, decode))
        total = _reduce(jnp.sum, partial)
        total = total * np.float32(1 / ptx.SCALE) if inline else total

        def store(ref, *at, total=total):
            _store(_per_block(ref, *at), total)

        placement.choose(stack, store, (sums,), *at)


def choose_tiles(tiled: Sequence[placement.Shape]) -> int:
    """Return how many tiles a program takes, see `placement.choose_tiles`."""
    return placement.choose_tiles(tiled, _MAX_TILES, _THREAD_BLOCKS)


def _call(function: Any, spec: Spec, stacks: Sequence[Stack], results: Any, interpret: bool):
    """Launch a kernel on stacks.

    Args:
      function: of the references of tables, matrices, numbers per block and results, each a tuple
        with one reference for each stack.
      spec: static options.
      stacks: (table, matrices, numbers per block…), padded to whole tiles.
      results: the type of each result, as tuples with one for each stack.
      interpret: run in the interpreter.
    """
    tables, matrices, *per_block = zip(*stacks, strict=True)
    tiled = [(leads, m // ROWS, n // COLUMNS) for leads, m, n in (x.shape for x in matrices)]
    tiles = choose_tiles(tiled)
    shapes = [(leads, runs, across // tiles) for leads, runs, across in tiled]
    inline = spec.noise == "gauss" and not interpret
    options = {"interpret": getattr(plgpu, "InterpretGPUParams")()} if interpret else {}  # noqa: B009
    return plgpu.kernel(
        functools.partial(function, spec=spec, shapes=shapes, tiles=tiles, inline=inline),
        out_type=results,
        grid=placement.make_grid(shapes),
        grid_names=_GRID if len(shapes) == 1 else ("program",),
        # The kernel uses no shared memory, and so needs no barriers between uses of it.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        **options,
    )(tables, tuple(x.reshape(*x.shape[:2], -1, 32) for x in matrices), *per_block)


def forward(spec: Spec, *stacks: Stack, interpret: bool = False) -> tuple[Stack, ...]:
    """Sample ŵ, with the block maxima; as `launch.forward`, of tables and of whole tiles."""
    w_hat_types = tuple(
        jax.ShapeDtypeStruct((*w.shape[:2], w.shape[2] // 32, 32), spec.storage)
        for _, w, _ in stacks
    )
    absmax_types = tuple(jax.ShapeDtypeStruct(b_i.shape, jnp.float32) for *_, b_i in stacks)
    w_hats, absmaxes = _call(_forward, spec, stacks, (w_hat_types, absmax_types), interpret)
    return tuple(
        (w_hat.reshape(w.shape), absmax)
        for w_hat, absmax, (_, w, _) in zip(w_hats, absmaxes, stacks, strict=True)
    )


def backward(spec: Spec, *stacks: Stack, interpret: bool = False) -> tuple[Stack, ...]:
    """Sum ∂L/∂ŵ · R over blocks; as `launch.backward`, of tables and of whole tiles."""
    results = tuple(
        jax.ShapeDtypeStruct((leads, m // 32, n // 32), jnp.float32)
        for leads, m, n in (cotangent.shape for _, cotangent in stacks)
    )
    (sums,) = _call(_backward, spec, stacks, (results,), interpret)
    return tuple((x,) for x in sums)
