# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Pallas Triton: one warp for each block of 32 × 32."""

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jax has deprecated this back-end
    from jax.experimental.pallas import triton as plt

from pqt_jax.numerics import philox, reference
from pqt_jax.numerics.partition import Stack
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import body, placement, ptx

ROWS, COLUMNS = philox.ROWS, 32  # of a tile; w must be padded to multiples of them
_SLICE = (philox.GROUP, COLUMNS)
_MAX_TILES = 2  # of one program, one after the other
_PROGRAMS = 2048  # about as many as an A100 or H100 runs at once


def _spread(per_block: jax.Array) -> jax.Array:
    return jnp.broadcast_to(per_block, _SLICE)


def _reduce(reduction: Any, x: jax.Array) -> jax.Array:
    return reduction(reduction(x, axis=1), axis=0)  # Triton reduces one axis at a time


def _place(shapes: Sequence[placement.Shape]) -> tuple[Any, ...]:
    """Return the indices (stack, lead, run, step) of this program."""
    if len(shapes) == 1:
        return 0, *(pl.program_id(axis) for axis in (2, 1, 0))
    return placement.locate(pl.program_id(0), shapes)


def _slices(lead: Any, run: Any, tile: Any) -> list[Any]:
    """Return the indices of the eight slices of a tile of [leads, M, N]."""
    columns = pl.ds(tile * COLUMNS, COLUMNS)
    return [
        (lead, pl.ds(run * ROWS + s * philox.GROUP, philox.GROUP), columns)
        for s in range(philox.DRAWS)
    ]


def _load(ref: Any, *at: Any) -> list[jax.Array]:
    return [ref[index].astype(jnp.float32) for index in _slices(*at)]


def _row(table_ref: Any, lead: Any) -> list[jax.Array]:
    return [table_ref[lead, i] for i in range(body.TABLE_ENTRIES)]


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


def _noises(
    spec: Spec, row: list[jax.Array], run: jax.Array, step: jax.Array, tiles: int, text: str | None
) -> Iterator[tuple[jax.Array, body.Noise]]:
    """Yield (tile, its noise) for each tile of a program; they share the round keys of Philox."""
    q, column = (lax.broadcasted_iota(jnp.uint32, _SLICE, d) for d in range(2))
    decode = functools.partial(_decode, text) if text else None
    for t in range(tiles):
        tile = step * tiles + t
        first = tile.astype(jnp.uint32) * np.uint32(COLUMNS)
        words = body.make_words(row, run.astype(jnp.uint32), q, column + first)
        yield tile, body.make_noise(spec, row, words, decode)


def _forward(*refs, spec: Spec, shapes: Sequence[placement.Shape], tiles: int, inline: bool):
    tables, matrices, bits, w_hats, absmaxes = placement.split_refs(refs, len(shapes))
    stack, lead, run, step = _place(shapes)
    row = placement.choose(stack, _row, (tables,), lead)
    text = ptx.ROUNDED_NORMAL if inline else None
    multiply_add = _multiply_add if inline else body.multiply_add

    def load(w_ref, bits_ref, *at):
        return _load(w_ref, *at), bits_ref[at]

    for tile, noise_at in _noises(spec, row, run, step, tiles, text):
        at = lead, run, tile
        rows, b_i = placement.choose(stack, load, (matrices, bits), *at)
        largest = _reduce(jnp.max, body.largest_magnitude(rows))
        absmax = lax.bitcast_convert_type(largest, jnp.float32)
        step_size = reference.block_step_size(spec, b_i)
        unit, scale = body.unit_and_scale(spec, absmax, step_size, _spread)
        w_hat = list(body.forward(spec, rows, noise_at, unit, scale, multiply_add))

        def store(w_hat_ref, absmax_ref, *at, w_hat=w_hat, absmax=absmax):
            for index, value in zip(_slices(*at), w_hat, strict=True):
                w_hat_ref[index] = value
            absmax_ref[at] = absmax

        placement.choose(stack, store, (w_hats, absmaxes), *at)


def _backward(*refs, spec: Spec, shapes: Sequence[placement.Shape], tiles: int, inline: bool):
    tables, cotangents, sums = placement.split_refs(refs, len(shapes))
    stack, lead, run, step = _place(shapes)
    row = placement.choose(stack, _row, (tables,), lead)
    text = ptx.SCALED_ROUNDED_NORMAL if inline else None
    multiply_add = _multiply_add if inline else body.multiply_add
    for tile, noise_at in _noises(spec, row, run, step, tiles, text):
        rows = placement.choose(stack, _load, (cotangents,), lead, run, tile)
        total = _reduce(jnp.sum, body.backward(rows, noise_at, multiply_add))
        total = total * np.float32(1 / ptx.SCALE) if inline else total

        def store(ref, *at, total=total):
            ref[at] = total

        placement.choose(stack, store, (sums,), lead, run, tile)


def choose_tiles(tiled: Sequence[placement.Shape]) -> int:
    """Return how many tiles a program takes, see `placement.choose_tiles`."""
    return placement.choose_tiles(tiled, _MAX_TILES, _PROGRAMS)


def _call(function: Any, spec: Spec, stacks: Sequence[Stack], results: Any, interpret: bool):
    """Launch a kernel on stacks; the arguments are those of the function in `mosaic`."""
    operands = [x for own in zip(*stacks, strict=True) for x in own]
    tiled = [(leads, m // ROWS, n // COLUMNS) for leads, m, n in (x[1].shape for x in stacks)]
    tiles = choose_tiles(tiled)
    shapes = [(leads, runs, across // tiles) for leads, runs, across in tiled]
    inline = spec.noise == "gauss" and not interpret
    return pl.pallas_call(
        functools.partial(function, spec=spec, shapes=shapes, tiles=tiles, inline=inline),
        grid=placement.make_grid(shapes)[::-1],  # neighbours along the columns run at the same time
        out_shape=results,
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=1, num_stages=1),
    )(*operands)


def forward(spec: Spec, *stacks: Stack, interpret: bool = False) -> tuple[Stack, ...]:
    """Sample ŵ, with the block maxima; as `launch.forward`, of tables and of whole tiles."""
    results = [body.like(w.shape, spec.storage, w) for _, w, _ in stacks]
    results += [body.like(b_i.shape, jnp.float32, w) for _, w, b_i in stacks]
    outputs = _call(_forward, spec, stacks, tuple(results), interpret)
    return tuple(zip(outputs[: len(stacks)], outputs[len(stacks) :], strict=True))


def backward(spec: Spec, *stacks: Stack, interpret: bool = False) -> tuple[Stack, ...]:
    """Sum ∂L/∂ŵ · R over blocks; as `launch.backward`, of tables and of whole tiles."""
    results = tuple(
        body.like((leads, m // 32, n // 32), jnp.float32, g)
        for g in (g for _, g in stacks)
        for leads, m, n in [g.shape]
    )
    return tuple((x,) for x in _call(_backward, spec, stacks, results, interpret))
