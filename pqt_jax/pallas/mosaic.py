# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Mosaic GPU, for Ampere and Hopper.

A matrix is seen as [M, N/32, 32]. One warpgroup takes a run of 32 rows of 128 columns at a time,
each warp a block of 32 × 32: both reductions stay inside a warp and need no shared memory. A lane
holds four neighbouring columns, which one load or store moves.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pqt_jax.numerics import philox
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import body

ROWS, COLUMNS = philox.ROWS, 128  # of a tile; w must be padded to multiples
_WARPS, _VECTOR = 4, 4
_SLICE = (philox.GROUP, _WARPS, COLUMNS // _WARPS)
_MOST_TILES = 4  # one after the other in a thread block; more need more registers than they gain
_THREAD_BLOCKS = 512  # about what an A100 or H100 holds at once; fewer leave some of it idle

try:
    Tiling = plgpu.Tiling
except AttributeError:  # jax 0.10
    from jax.experimental.mosaic.gpu.fragmented_array import Tiling

# [4, warp, 32]: each lane one row and four columns.
_LAYOUT = plgpu.Layout.TILED(
    Tiling(((philox.GROUP, _WARPS, 32), (philox.GROUP, 1, 32), (_VECTOR,))),
    warp_dims=(-6,),
    lane_dims=(-4, -2),
    vector_dim=-1,
)
_PER_WARP = _LAYOUT.reduce((0, 2))
_INDEX = inspect.signature(plgpu.load).parameters.get("idx")  # jax 0.10 needs it, 0.11 warns of it
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
    return reduction(reduction(x, axis=2), axis=0)  # one axis at a time is what Mosaic can


def _tile(tiles: int, t: int):
    """(lead, run, tile) of this thread block's tile t."""
    lead, run, first = (lax.axis_index(name) for name in ("lead", "run", "tile"))
    return lead, run, first * tiles + t


def _slices(ref: Any, lead: Any, run: Any, tile: Any) -> list[Any]:
    """The eight slices of a tile, as references into [leads, M, N/32, 32]."""
    warps = pl.ds(tile * _WARPS, _WARPS)
    return [
        ref.at[lead, pl.ds(run * ROWS + s * philox.GROUP, philox.GROUP), warps, :]
        for s in range(philox.DRAWS)
    ]


def _row(table_ref: Any) -> list[jax.Array]:
    # Once for all tiles, so that they share the round keys.
    return [table_ref[lax.axis_index("lead"), i] for i in range(body.ENTRIES)]


def _noise(spec: Spec, row: list[jax.Array], run: Any, tile: Any) -> body.Noise:
    iota = [plgpu.broadcasted_iota(jnp.uint32, _SLICE, d, layout=_LAYOUT) for d in range(3)]
    column = iota[1] * np.uint32(32) + iota[2] + tile.astype(jnp.uint32) * np.uint32(COLUMNS)
    return body.noise_of(spec, row, run.astype(jnp.uint32), iota[0], column)


def _forward(table_ref, w_ref, bits_ref, out_ref, absmax_ref, *, spec: Spec, tiles: int):
    row = _row(table_ref)
    for t in range(tiles):
        at = _tile(tiles, t)
        lead, run, tile = at
        per_block = pl.ds(tile * _WARPS, _WARPS)
        rows = [_load(ref, _LAYOUT).astype(jnp.float32) for ref in _slices(w_ref, *at)]
        largest = _reduce(jnp.max, body.magnitude(rows))
        absmax = lax.bitcast_convert_type(largest, jnp.float32)
        b_i = _load(bits_ref.at[lead, run, per_block], _PER_WARP)
        w_hat = body.forward(spec, rows, _noise(spec, row, run, tile), absmax, b_i, _spread)
        for ref, value in zip(_slices(out_ref, *at), w_hat, strict=True):
            _store(ref, value)
        _store(absmax_ref.at[lead, run, per_block], absmax)


def _backward(table_ref, cotangent_ref, out_ref, *, spec: Spec, tiles: int):
    row = _row(table_ref)
    for t in range(tiles):
        at = _tile(tiles, t)
        lead, run, tile = at
        rows = [_load(ref, _LAYOUT).astype(jnp.float32) for ref in _slices(cotangent_ref, *at)]
        total = _reduce(jnp.sum, body.backward(rows, _noise(spec, row, run, tile)))
        _store(out_ref.at[lead, run, pl.ds(tile * _WARPS, _WARPS)], total)


def tiles_per_block(runs: int, columns: int) -> int:
    """Tiles that a thread block takes of a run; fewer where there would be too few thread blocks.

    Args:
      runs: of 32 rows, of all matrices of a launch.
      columns: tiles across a matrix, which the result divides.
    """
    few = runs * columns // _THREAD_BLOCKS
    return next(t for t in range(_MOST_TILES, 0, -1) if columns % t == 0 and t <= max(few, 1))


def _kernel(function: Any, spec: Spec, shape: tuple[int, ...], out_type: Any, interpret: bool):
    leads, m, n = shape
    columns = n // COLUMNS
    tiles = tiles_per_block(leads * (m // ROWS), columns)
    options = {"interpret": getattr(plgpu, "InterpretGPUParams")()} if interpret else {}  # noqa: B009
    return plgpu.kernel(
        functools.partial(function, spec=spec, tiles=tiles),
        out_type=out_type,
        grid=(leads, m // ROWS, columns // tiles),
        grid_names=("lead", "run", "tile"),
        # No shared memory is used, so no barriers between its uses are needed.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        **options,
    )


def forward(spec: Spec, w, b_i, table, *, interpret: bool = False):
    """ŵ and the block maxima; shapes as for `launch.forward`, padded to whole tiles."""
    leads, m, n = w.shape
    out_type = (
        jax.ShapeDtypeStruct((leads, m, n // 32, 32), spec.storage),
        jax.ShapeDtypeStruct((leads, m // 32, n // 32), jnp.float32),
    )
    kernel = _kernel(_forward, spec, w.shape, out_type, interpret)
    w_hat, absmax = kernel(table, w.reshape(leads, m, n // 32, 32), b_i)
    return w_hat.reshape(w.shape), absmax


def backward(spec: Spec, cotangent, table, *, interpret: bool = False):
    """Block sums of ∂L/∂ŵ · R; shapes as for `launch.backward`, padded to whole tiles."""
    leads, m, n = cotangent.shape
    out_type = jax.ShapeDtypeStruct((leads, m // 32, n // 32), jnp.float32)
    kernel = _kernel(_backward, spec, cotangent.shape, out_type, interpret)
    return kernel(table, cotangent.reshape(leads, m, n // 32, 32))
