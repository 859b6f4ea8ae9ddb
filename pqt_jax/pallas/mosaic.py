# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Mosaic GPU, for Ampere and Hopper.

A matrix is viewed as [M, N/32, 32]. One warpgroup takes a tile of 32 rows and 128 columns, and each
of its warps a block of 32 × 32. Both reductions stay inside a warp and need no shared memory. A
lane has four neighbouring columns, which one load or store moves.
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
from pqt_jax.pallas import body, mosaic_ptx, ptx

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


def _tile(tiles: int, t: int):
    """Return the indices (lead, run, tile) of tile t of this thread block."""
    lead, run, first = (lax.axis_index(name) for name in ("lead", "run", "tile"))
    return lead, run, first * tiles + t


def _slices(ref: Any, lead: Any, run: Any, tile: Any) -> list[Any]:
    """Return references to the eight slices of a tile of [leads, M, N/32, 32]."""
    warps = pl.ds(tile * _WARPS, _WARPS)
    return [
        ref.at[lead, pl.ds(run * ROWS + s * philox.GROUP, philox.GROUP), warps, :]
        for s in range(philox.DRAWS)
    ]


def _row(table_ref: Any) -> list[jax.Array]:
    # Read once for all tiles of the thread block, which then share the round keys of Philox.
    return [table_ref[lax.axis_index("lead"), i] for i in range(body.TABLE_ENTRIES)]


def _words(row: list[jax.Array], run: Any, tile: Any) -> philox.Words:
    iota = [plgpu.broadcasted_iota(jnp.uint32, _SLICE, d, layout=_LAYOUT) for d in range(3)]
    column = iota[1] * np.uint32(32) + iota[2] + tile.astype(jnp.uint32) * np.uint32(COLUMNS)
    return body.make_words(row, run.astype(jnp.uint32), iota[0], column)


def _forward(
    table_ref, w_ref, bits_ref, out_ref, absmax_ref, *, spec: Spec, tiles: int, inline: bool
):
    row = _row(table_ref)
    decode = functools.partial(mosaic_ptx.decode, ptx.ROUNDED_NORMAL, _LAYOUT) if inline else None
    for t in range(tiles):
        at = _tile(tiles, t)
        lead, run, tile = at
        per_block = pl.ds(tile * _WARPS, _WARPS)
        rows = [_load(ref, _LAYOUT).astype(jnp.float32) for ref in _slices(w_ref, *at)]
        largest = _reduce(jnp.max, body.largest_magnitude(rows))
        absmax = lax.bitcast_convert_type(largest, jnp.float32)
        b_i = _load(bits_ref.at[lead, run, per_block], _PER_WARP)
        noise_at = body.make_noise(spec, row, _words(row, run, tile), decode)
        w_hat = body.forward(spec, rows, noise_at, absmax, b_i, _spread)
        for ref, value in zip(_slices(out_ref, *at), w_hat, strict=True):
            _store(ref, value)
        _store(absmax_ref.at[lead, run, per_block], absmax)


def _backward(table_ref, cotangent_ref, out_ref, *, spec: Spec, tiles: int, inline: bool):
    row = _row(table_ref)
    text = ptx.SCALED_ROUNDED_NORMAL
    decode = functools.partial(mosaic_ptx.decode, text, _LAYOUT) if inline else None
    for t in range(tiles):
        at = _tile(tiles, t)
        lead, run, tile = at
        rows = [_load(ref, _LAYOUT) for ref in _slices(cotangent_ref, *at)]
        words = _words(row, run, tile)
        if inline and cotangent_ref.dtype == jnp.bfloat16:
            partial = mosaic_ptx.sum_of_products(rows, words, _LAYOUT)
        else:
            partial = body.backward(rows, body.make_noise(spec, row, words, decode))
        total = _reduce(jnp.sum, partial)
        total = total * np.float32(1 / ptx.SCALE) if inline else total
        _store(out_ref.at[lead, run, pl.ds(tile * _WARPS, _WARPS)], total)


def tiles_per_block(runs: int, columns: int) -> int:
    """Return how many tiles a thread block takes, see `body.choose_tiles`."""
    return body.choose_tiles(runs, columns, _MAX_TILES, _THREAD_BLOCKS)


def _kernel(function: Any, spec: Spec, shape: tuple[int, ...], out_type: Any, interpret: bool):
    leads, m, n = shape
    columns = n // COLUMNS
    tiles = tiles_per_block(leads * (m // ROWS), columns)
    options = {"interpret": getattr(plgpu, "InterpretGPUParams")()} if interpret else {}  # noqa: B009
    return plgpu.kernel(
        functools.partial(
            function, spec=spec, tiles=tiles, inline=spec.noise == "gauss" and not interpret
        ),
        out_type=out_type,
        grid=(leads, m // ROWS, columns // tiles),
        grid_names=("lead", "run", "tile"),
        # The kernel uses no shared memory, and so needs no barriers between uses of it.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        **options,
    )


def forward(spec: Spec, w, b_i, table, *, interpret: bool = False):
    """Sample ŵ, with the block maxima; shapes as for `launch.forward`, padded to whole tiles."""
    leads, m, n = w.shape
    out_type = (
        jax.ShapeDtypeStruct((leads, m, n // 32, 32), spec.storage),
        jax.ShapeDtypeStruct((leads, m // 32, n // 32), jnp.float32),
    )
    kernel = _kernel(_forward, spec, w.shape, out_type, interpret)
    w_hat, absmax = kernel(table, w.reshape(leads, m, n // 32, 32), b_i)
    return w_hat.reshape(w.shape), absmax


def backward(spec: Spec, cotangent, table, *, interpret: bool = False):
    """Return block sums of ∂L/∂ŵ · R; shapes as for `launch.backward`, padded to whole tiles."""
    leads, m, n = cotangent.shape
    out_type = jax.ShapeDtypeStruct((leads, m // 32, n // 32), jnp.float32)
    kernel = _kernel(_backward, spec, cotangent.shape, out_type, interpret)
    return kernel(table, cotangent.reshape(leads, m, n // 32, 32))
