# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sampling in plain jnp, which XLA compiles for any device; kernels must equal it bit for bit.

    forward    w, b_i, key → ŵ, max_B|w|
    backward   ∂L/∂ŵ, key  → Σ_B (∂L/∂ŵ · R)

Both take stacks of matrices [leads, M, N] with one number per block [leads, gm, gn].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pqt_jax.numerics import bit_width, blocks, cast, partition, philox
from pqt_jax.numerics.formats import BF16, FP32
from pqt_jax.numerics.noise import materialize, noise_codes, noise_of_slice, noise_tile
from pqt_jax.numerics.spec import Spec

_HALVINGS = 2  # of the scale of rule "ceil"; on normal weights a third one is never the best


def cast_blocks(spec: Spec, w: jax.Array, chosen: jax.Array | None = None) -> jax.Array:
    """Cast without noise, `cast(w)`: [leads, M, N] → the same shape in `spec.storage`.

    Args:
      spec: static options.
      w: float32 or bfloat16 [leads, M, N].
      chosen: bool[leads, gm, gn], the blocks that are rounded to the format; None for all.
    """
    operands = (w,) if chosen is None else (w, partition.reshard_like(chosen, w, spec.block))
    return partition.map_blocks(functools.partial(_cast_blocks, spec), spec.block, *operands)


def _cast_blocks(spec: Spec, w: jax.Array, chosen: jax.Array | None = None) -> jax.Array:
    _, m, n = w.shape
    padded = blocks.pad_to(w, *spec.block)
    scale = scale_blocks(spec, padded)
    if scale is not None:
        scale = blocks.spread(scale, spec.block)
    wide = padded.astype(jnp.float32)
    rounded = _cast(spec, wide, scale)
    if chosen is not None:
        others = wide if spec.storage == jnp.float32 else cast.round_to_bfloat16(wide)
        rounded = jnp.where(blocks.spread(chosen, spec.block), rounded, others)
    return rounded[:, :m, :n]


def scale_blocks(spec: Spec, w: jax.Array) -> jax.Array | None:
    """Return the scale of each block, by any rule; None for a format with float32's exponents.

    Errors are summed in float32. Where two scales of rule "mse" have the same error but for the
    rounding of that sum, two compilers may choose differently.

    Args:
      spec: static options.
      w: float32 or bfloat16 [leads, M, N], M and N multiples of the block.

    Returns:
      float32 [leads, M/bm, N/bn].
    """
    absmax = blocks.block_absmax(w, spec.block)
    if spec.scale != cast.ScaleRule.MSE or spec.dtype.exponent_bits == 8:
        return grid_scale(spec, absmax)
    best = largest = cast.block_scale(absmax, spec.dtype, cast.ScaleRule.CEIL)
    wide = w.astype(jnp.float32)
    unit = blocks.spread(cast.reciprocal(largest), spec.block)  # so that no square underflows
    least = jnp.full_like(largest, jnp.inf)
    for halvings in range(_HALVINGS + 1):
        scale = jnp.maximum(largest * np.float32(0.5**halvings), np.float32(2.0**-126))
        rounded = cast.round_scaled(wide, blocks.spread(scale, spec.block), spec.dtype)
        error = blocks.block_sum(jnp.square((wide - rounded) * unit), spec.block)
        best, least = jnp.where(error < least, scale, best), jnp.minimum(error, least)
    return best


def block_step_size(
    spec: Spec, b_i: jax.Array, multiply: philox.Multiply = philox.multiply
) -> jax.Array:
    """Return `2^(1 − b_t)` of each block, with the same bits on every platform; no gradient."""
    b_t = bit_width.bit_width(b_i, spec.target_bits, spec.init_bits)
    return bit_width.undifferentiable_step_size(b_t, multiply)


def grid_scale(spec: Spec, absmax: jax.Array) -> jax.Array | None:
    """Return the scale of each block; None for a format with the exponents of float32."""
    if spec.dtype.exponent_bits == 8:
        return None
    return cast.block_scale(absmax, spec.dtype, spec.scale)


def round_to_grid(spec: Spec, x: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Round float32 x to the (scaled) grid of a format other than BF16 and FP32; or encode it."""
    if scale is None:
        return jnp.where(jnp.isinf(x), x, cast.round_to(x, spec.dtype))  # keep Inf, as BF16 does
    if spec.encoded:
        return cast.encode(cast.divide(x, scale, spec.scale), spec.dtype)
    return cast.round_scaled(x, scale, spec.dtype, spec.scale)


def _cast(spec: Spec, x: jax.Array, scale: jax.Array | None) -> jax.Array:
    if spec.dtype == FP32:
        return x
    if spec.dtype == BF16:
        return cast.round_to_bfloat16(x)
    return round_to_grid(spec, x, scale).astype(spec.storage)  # exact: it holds the whole grid


@functools.partial(jax.jit, static_argnums=0)
def forward(spec: Spec, w, b_i, words, offset) -> tuple[jax.Array, jax.Array]:
    """Sample ŵ, and return it with the block maxima.

    Args:
      spec: static options.
      w: float32 or bfloat16 [leads, M, N].
      b_i: float32 [leads, gm, gn], one per block.
      words: uint32[2], the key.
      offset: uint32[3], global (lead, run of 32 rows, column) of the first element.

    Returns:
      (ŵ [leads, M, N] in `spec.storage`, max_B|w| float32 [leads, gm, gn]).
    """
    if partition.is_explicit():

        def local(stack):
            table, w, b_i = stack
            return (forward(spec, w, b_i, *partition.words_and_offset(table)),)

        table = partition.make_table(words, offset, w.shape[0])
        ((w_hat, absmax),) = partition.map_shards(local, spec.block, True, (table, w, b_i))
        return w_hat, absmax
    _, m, n = w.shape
    absmax = blocks.block_absmax(blocks.pad_to(w, *spec.block), spec.block)
    padded = blocks.pad_to(w, max(philox.ROWS, spec.block[0]), spec.block[1])
    w_hat = _by_platform(functools.partial(_sample, spec), padded, absmax, b_i, words, offset)
    return w_hat[:, :m, :n], absmax


def _by_platform(function: Callable[..., jax.Array], *operands: Any) -> jax.Array:
    """Call `function(rows, *operands)` with the rows of a slice: eight on a TPU, four elsewhere.

    Eight rows fill a tile of a TPU. With slices of four, XLA stores several arrays of the matrix's
    size there, to change their tiles. A CPU computes eight rows of noise in twice the time of four.
    """
    tpu, default = (functools.partial(function, rows) for rows in (8, philox.GROUP))
    return lax.platform_dependent(*operands, tpu=tpu, default=default)


def _sample(spec: Spec, rows: int, w, absmax, b_i, words, offset) -> jax.Array:
    """Return ŵ of whole blocks and runs."""
    leads, m, columns = w.shape
    runs = m // philox.ROWS
    view = (leads, runs, philox.ROWS // rows, rows, columns)

    def tile(x):
        """Spread numbers per block so that they broadcast against the view."""
        # Over columns first, and materialized: XLA vectorizes operations on a row of numbers.
        x = materialize(lambda _, x: blocks.repeat(x, spec.block[1], axis=2), words, x)
        if spec.block[0] % philox.ROWS == 0:
            return blocks.repeat(x, spec.block[0] // philox.ROWS, axis=1)[:, :, None, None, :]
        return blocks.pad_to(blocks.repeat(x, spec.block[0], axis=1), philox.ROWS, 1).reshape(view)

    codes = noise_codes(spec.noise, words, offset, leads, runs, columns, rows)
    wide = w.astype(jnp.float32).reshape(view)
    if rows != philox.GROUP:
        wide = lax.optimization_barrier(wide)  # else XLA undoes the view, and stores spread numbers
    noisy = wide + noise_tile(spec.noise, codes) * tile(absmax * block_step_size(spec, b_i))
    scale = grid_scale(spec, absmax)
    return _cast(spec, noisy, None if scale is None else tile(scale)).reshape(w.shape)


@functools.partial(jax.jit, static_argnums=0)
def backward(spec: Spec, cotangent, words, offset):
    """Return the block sums of ∂L/∂ŵ · R.

    Args:
      spec: static options.
      cotangent: float32 or bfloat16 [leads, M, N].
      words, offset: as for `forward`.

    Returns:
      float32 [leads, gm, gn].
    """
    if partition.is_explicit():

        def local(stack):
            table, cotangent = stack
            return ((backward(spec, cotangent, *partition.words_and_offset(table)),),)

        table = partition.make_table(words, offset, cotangent.shape[0])
        return partition.map_shards(local, spec.block, False, (table, cotangent))[0][0]
    padded = blocks.pad_to(cotangent, max(philox.ROWS, spec.block[0]), spec.block[1])
    product = _by_platform(functools.partial(_block_sums, spec), padded, words, offset)
    _, gm, gn = blocks.grid_shape(cotangent.shape, spec.block, (1, 1))
    return product[:, :gm, :gn]


def _block_sums(spec: Spec, rows: int, cotangent, words, offset) -> jax.Array:
    """Return Σ_B (∂L/∂ŵ · R) of whole blocks and runs."""
    leads, m, columns = cotangent.shape
    runs, slices = m // philox.ROWS, philox.ROWS // rows
    if spec.block[0] % philox.ROWS:
        codes = noise_codes(spec.noise, words, offset, leads, runs, columns, rows)
        product = _widen(cotangent) * noise_tile(spec.noise, codes).reshape(cotangent.shape)
        return blocks.block_sum(product, spec.block)

    # The rows of one Philox call are summed as slices, before XLA sees a reduction: its own
    # reductions over that axis are slow.
    def sum_over_slices(words, offset, cotangent):
        draws = philox.stream_words(words, offset, leads, runs, columns, rows)
        g = cotangent.reshape(leads, runs, slices, rows, columns)
        return sum(_widen(g[:, :, t]) * noise_of_slice(spec.noise, draws, t) for t in range(slices))

    partial = materialize(sum_over_slices, words, offset, cotangent)
    per_run = blocks.block_sum(partial.reshape(leads, -1, columns), (rows, spec.block[1]))
    return blocks.block_sum(per_run, (spec.block[0] // philox.ROWS, 1))


@jax.custom_jvp
def _widen(x: jax.Array) -> jax.Array:
    """Convert to float32 by bit operations, which XLA on CPU vectorizes inside a reduction."""
    return cast.from_word(cast.to_word(x), jnp.dtype(jnp.float32))


@_widen.defjvp
def _widen_jvp(primals, tangents):
    return _widen(primals[0]), tangents[0].astype(jnp.float32)
