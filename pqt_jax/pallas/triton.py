# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Pallas Triton: one warp for each block of 32 × 32."""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jax has deprecated this back-end
    from jax.experimental.pallas import triton as plt

from pqt_jax.numerics import philox
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import body, ptx

ROWS, COLUMNS = philox.ROWS, 32  # of a tile; w must be padded to multiples of them
_SLICE = (philox.GROUP, COLUMNS)
_MAX_TILES = 2  # of one program, one after the other
_PROGRAMS = 2048  # about as many as an A100 or H100 runs at once


def _spread(per_block: jax.Array) -> jax.Array:
    return jnp.broadcast_to(per_block, _SLICE)


def _reduce(reduction: Any, x: jax.Array) -> jax.Array:
    return reduction(reduction(x, axis=1), axis=0)  # Triton reduces one axis at a time


def _slices(tile: int) -> list[Any]:
    """Return the indices of the eight slices of a tile."""
    columns = pl.ds(tile * COLUMNS, COLUMNS)
    return [(pl.ds(s * philox.GROUP, philox.GROUP), columns) for s in range(philox.DRAWS)]


def _load(ref: Any, tile: int) -> list[jax.Array]:
    return [ref[at].astype(jnp.float32) for at in _slices(tile)]


def _decode(text: str, word: jax.Array) -> jax.Array:
    """Apply one of the texts in `ptx`, whose constants become registers of the text."""
    moves = ""
    for i, constant in enumerate(ptx.CONSTANTS[text], start=2):
        text = text.replace(f"${i}", f"constant{i}")
        moves += f".reg .b32 constant{i};\nmov.b32 constant{i}, {constant:#010x};\n"
    text = text.replace("{", "{\n" + moves, 1)
    like = [jax.ShapeDtypeStruct(word.shape, jnp.int32)]  # jax lowers no unsigned result
    (pair,) = plt.elementwise_inline_asm(
        text, args=[word], constraints="=r,r", pack=1, result_shape_dtypes=like
    )
    return lax.bitcast_convert_type(pair, jnp.uint32)


def _multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Return `a · b + c`, rounded once; XLA tells Triton not to fuse products into sums."""
    like = [jax.ShapeDtypeStruct(a.shape, jnp.float32)]
    (total,) = plt.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;",
        args=[a, b, c],
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=like,
    )
    return total


def _noises(spec: Spec, table_ref: Any, tiles: int, text: str | None) -> Iterator[body.Noise]:
    """Yield the noise of each tile of this program; they share the round keys of Philox."""
    q, column = (lax.broadcasted_iota(jnp.uint32, _SLICE, d) for d in range(2))
    first, run = (pl.program_id(axis).astype(jnp.uint32) for axis in (0, 1))
    row = [table_ref[i] for i in range(body.TABLE_ENTRIES)]
    decode = functools.partial(_decode, text) if text else None
    for t in range(tiles):
        tile = first * np.uint32(tiles) + np.uint32(t)
        words = body.make_words(row, run, q, column + tile * np.uint32(COLUMNS))
        yield body.make_noise(spec, row, words, decode)


def _forward(
    table_ref, w_ref, bits_ref, out_ref, absmax_ref, *, spec: Spec, tiles: int, inline: bool
):
    text = ptx.ROUNDED_NORMAL if inline else None
    multiply_add = _multiply_add if inline else body.multiply_add
    for t, noise_at in enumerate(_noises(spec, table_ref, tiles, text)):
        rows = _load(w_ref, t)
        largest = _reduce(jnp.max, body.largest_magnitude(rows))
        absmax = lax.bitcast_convert_type(largest, jnp.float32)
        w_hat = body.forward(spec, rows, noise_at, absmax, bits_ref[0, t], _spread, multiply_add)
        for at, value in zip(_slices(t), w_hat, strict=True):
            out_ref[at] = value
        absmax_ref[0, t] = absmax


def _backward(table_ref, cotangent_ref, out_ref, *, spec: Spec, tiles: int, inline: bool):
    text = ptx.SCALED_ROUNDED_NORMAL if inline else None
    multiply_add = _multiply_add if inline else body.multiply_add
    for t, noise_at in enumerate(_noises(spec, table_ref, tiles, text)):
        total = _reduce(jnp.sum, body.backward(_load(cotangent_ref, t), noise_at, multiply_add))
        out_ref[0, t] = total * np.float32(1 / ptx.SCALE) if inline else total


def _call(function: Any, spec: Spec, shape, operands, out_shape, interpret: bool):
    """Call a kernel on matrices of a shape, and on arrays of one number per block of them."""
    leads, m, n = shape
    tiles = body.choose_tiles(leads * (m // ROWS), n // COLUMNS, _MAX_TILES, _PROGRAMS)

    def tile_of(array: Any) -> pl.BlockSpec:
        sides = (ROWS, COLUMNS * tiles) if array.shape == shape else (1, tiles)
        return pl.BlockSpec((None, *sides), lambda tile, run, lead: (lead, run, tile))

    table = pl.BlockSpec((None, 8), lambda tile, run, lead: (lead, 0))
    inline = spec.noise == "gauss" and not interpret
    return pl.pallas_call(
        functools.partial(function, spec=spec, tiles=tiles, inline=inline),
        grid=(n // (COLUMNS * tiles), m // ROWS, leads),  # neighbours run at the same time
        in_specs=[table, *(tile_of(x) for x in operands[1:])],
        out_specs=jax.tree.map(tile_of, out_shape),
        out_shape=out_shape,
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=1, num_stages=1),
    )(*operands)


def forward(spec: Spec, w, b_i, table, *, interpret: bool = False):
    """Sample ŵ, with the block maxima; shapes as for `launch.forward`, padded to whole tiles."""
    kind = jax.typeof(w).manual_axis_type  # says what w varies over, under shard_map
    out_shape = (
        jax.ShapeDtypeStruct(w.shape, spec.storage, manual_axis_type=kind),
        jax.ShapeDtypeStruct(b_i.shape, jnp.float32, manual_axis_type=kind),
    )
    return _call(_forward, spec, w.shape, (table, w, b_i), out_shape, interpret)


def backward(spec: Spec, cotangent, table, *, interpret: bool = False):
    """Return block sums of ∂L/∂ŵ · R; shapes as for `launch.backward`, padded to whole tiles."""
    leads, m, n = cotangent.shape
    kind = jax.typeof(cotangent).manual_axis_type
    shape = (leads, m // 32, n // 32)
    out_shape = jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=kind)
    return _call(_backward, spec, cotangent.shape, (table, cotangent), out_shape, interpret)
