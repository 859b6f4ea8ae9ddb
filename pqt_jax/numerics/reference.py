# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sampling as XLA compiles it: the reference that the kernels must equal, on every platform.

    forward    w, b_i, key → ŵ, max_B|w|
    backward   ∂L/∂ŵ, key  → Σ_B (∂L/∂ŵ · R)

Both work on stacks of matrices [leads, M, N] with one number per block [leads, gm, gn].
"""

import functools

import jax
import jax.numpy as jnp

from pqt_jax.numerics import bit_width, blocks, cast, partition, philox
from pqt_jax.numerics.formats import BF16, FP32
from pqt_jax.numerics.noise import materialize, noise_codes, noise_rows, noise_tile
from pqt_jax.numerics.spec import Spec


def cast_blocks(spec: Spec, w: jax.Array) -> jax.Array:
    """The cast alone, `cast(w)`: [leads, M, N] → the same shape in `spec.storage`."""
    return partition.over_blocks(functools.partial(_cast_blocks, spec), spec.block, w)


def _cast_blocks(spec: Spec, w: jax.Array) -> jax.Array:
    _, m, n = w.shape
    padded = blocks.pad_to(w, *spec.block)
    scale = grid_scale(spec, blocks.block_absmax(padded, spec.block))
    if scale is not None:
        scale = blocks.spread(scale, spec.block)
    return _cast(spec, padded.astype(jnp.float32), scale)[:, :m, :n]


def step_of(spec: Spec, b_i: jax.Array) -> jax.Array:
    """`2^(1 − b_t)` of each block, by operations whose bits are the same anywhere; no gradient."""
    b_t = bit_width.bit_width(b_i, spec.target_bits, spec.init_bits)
    return bit_width.undifferentiable_step_size(b_t)


def grid_scale(spec: Spec, absmax: jax.Array) -> jax.Array | None:
    """The scale of each block from its maximum; None where the format has float32's exponents."""
    if spec.dtype.exponent_bits == 8:
        return None
    return cast.block_scale(absmax, spec.dtype, spec.scale)


def to_grid(spec: Spec, x: jax.Array, scale: jax.Array | None) -> jax.Array:
    """float32 x on the (scaled) grid of a format other than bfloat16 and float32, or its codes."""
    if scale is None:
        return jnp.where(jnp.isinf(x), x, cast.round_to(x, spec.dtype))  # Inf stays, as in BF16
    if spec.encoded:
        return cast.encode(cast.round_unscaled(x, scale, spec.dtype, spec.scale), spec.dtype)
    return cast.round_scaled(x, scale, spec.dtype, spec.scale)


def _cast(spec: Spec, x: jax.Array, scale: jax.Array | None) -> jax.Array:
    if spec.dtype == FP32:
        return x
    if spec.dtype == BF16:
        return cast.round_to_bfloat16(x)
    return to_grid(spec, x, scale).astype(spec.storage)  # exact: it holds every value of the grid


@functools.partial(jax.jit, static_argnums=0)
def forward(spec: Spec, w, b_i, words, offset) -> tuple[jax.Array, jax.Array]:
    """ŵ and the block maxima.

    Args:
      spec: static.
      w: float32 or bfloat16 [leads, M, N].
      b_i: float32 [leads, gm, gn], one for each block.
      words: uint32[2], the key.
      offset: uint32[3], global (lead, run of 32 rows, column) of the first element.

    Returns:
      (ŵ [leads, M, N] in `spec.storage`, max_B|w| float32 [leads, gm, gn]).
    """
    if partition.is_explicit():

        def local(table, w, b_i):
            return forward(spec, w, b_i, *partition.of_table(table))

        table = partition.make_table(words, offset, w.shape[0])
        w_hat, absmax = partition.mapped(local, spec.block, True, table, w, b_i)
        return w_hat, absmax
    leads, m, n = w.shape
    padded = blocks.pad_to(w, max(philox.ROWS, spec.block[0]), spec.block[1])
    _, rows, columns = padded.shape
    runs = rows // philox.ROWS
    absmax = blocks.block_absmax(blocks.pad_to(w, *spec.block), spec.block)

    def tile(per_block):
        """One number per block → broadcastable against [leads, runs, 8, 4, columns]."""
        # Spread over columns first, as an array: XLA vectorizes what is a row of numbers.
        over_columns = materialize(
            lambda _, x: blocks.repeat(x, spec.block[1], axis=2), words, per_block
        )
        if spec.block[0] % philox.ROWS == 0:
            over_runs = blocks.repeat(over_columns, spec.block[0] // philox.ROWS, axis=1)
            return over_runs[:, :, None, None, :]
        over_rows = blocks.repeat(over_columns, spec.block[0], axis=1)
        over_rows = blocks.pad_to(over_rows, philox.ROWS, 1)
        return over_rows.reshape(leads, runs, philox.DRAWS, philox.GROUP, columns)

    codes = noise_codes(spec.noise, words, offset, leads, runs, columns)
    wide = padded.astype(jnp.float32).reshape(leads, runs, philox.DRAWS, philox.GROUP, columns)
    noisy = wide + noise_tile(spec.noise, codes) * tile(absmax * step_of(spec, b_i))
    scale = grid_scale(spec, absmax)
    w_hat = _cast(spec, noisy, None if scale is None else tile(scale))
    return w_hat.reshape(leads, rows, columns)[:, :m, :n], absmax


@functools.partial(jax.jit, static_argnums=0)
def backward(spec: Spec, cotangent, words, offset):
    """The block sums of ∂L/∂ŵ · R.

    Args:
      spec: static.
      cotangent: float32 or bfloat16 [leads, M, N].
      words, offset: as for `forward`.

    Returns:
      float32 [leads, gm, gn].
    """
    if partition.is_explicit():

        def local(table, cotangent):
            return (backward(spec, cotangent, *partition.of_table(table)),)

        table = partition.make_table(words, offset, cotangent.shape[0])
        return partition.mapped(local, spec.block, False, table, cotangent)[0]
    leads, m, n = cotangent.shape
    padded = blocks.pad_to(cotangent, max(philox.ROWS, spec.block[0]), spec.block[1])
    _, rows, columns = padded.shape
    runs = rows // philox.ROWS

    def wide(x):
        return _widen(x).reshape(leads, runs, philox.DRAWS, philox.GROUP, columns)

    codes = noise_codes(spec.noise, words, offset, leads, runs, columns)
    if spec.block[0] % philox.ROWS == 0:
        # Sum the rows that one call serves as slices, before any reduction that XLA gets to see.
        def over_draws(_, padded, codes):
            g = wide(padded)
            return sum(g[:, :, s] * noise_rows(spec.noise, codes, s) for s in range(philox.DRAWS))

        partial = materialize(over_draws, words, padded, codes).reshape(leads, -1, columns)
        per_run = blocks.block_sum(partial, (philox.GROUP, spec.block[1]))
        product = blocks.block_sum(per_run, (spec.block[0] // philox.ROWS, 1))
    else:
        product = (wide(padded) * noise_tile(spec.noise, codes)).reshape(leads, rows, columns)
        product = blocks.block_sum(product, spec.block)
    _, gm, gn = blocks.grid_shape(cotangent.shape, spec.block, (1, 1))
    return product[:, :gm, :gn]


@jax.custom_jvp
def _widen(x: jax.Array) -> jax.Array:
    """To float32 by bits, which XLA's CPU compiler vectorizes in a reduction."""
    return cast.from_word(cast.to_word(x), jnp.dtype(jnp.float32))


_widen.defjvp(lambda x, tangent: (_widen(x[0]), tangent[0].astype(jnp.float32)))
