# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Operands of fewer bits, in any format ExMy: Q of `gemms`.

An operand's exponent is reduced by clipping (beyond the largest value it saturates, below the
smallest normal one it is subnormal), its mantissa by cutting bits off, as in the paper, or to the
nearest, ties to even.

Source: Lee and others, arXiv 2405.18710 (2024), for masked operands without scales; the rest is
ours: the paper does not say what becomes of what is too small, and rounding to the nearest and
scales of blocks are for comparison.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax.numerics import blocks, cast
from pqt_jax.numerics.formats import FloatFormat, as_format

Rounding = Literal["truncate", "nearest"]


@dataclasses.dataclass(frozen=True)
class Operand:
    """How one operand of a product is reduced.

    Example:
      >>> Operand("E8M3").dtype, Operand(jnp.float8_e5m2, "nearest", "ceil").scale
      (FloatFormat(exponent_bits=8, mantissa_bits=3, specials='ieee'), <ScaleRule.CEIL: 'ceil'>)

    Attributes:
      dtype: a `FloatFormat`, or a dtype or name of one.
      rounding: "truncate" cuts bits of the mantissa off; "nearest" takes the nearest value, ties to
        even.
      scale: a `ScaleRule` that gives each block a scale; None for none.
      block: rows and columns of such a block, in the operand as a matrix whose columns (of x) or
        rows (of W) are summed over.

    Raises:
      ValueError: for what is none of these.
    """

    dtype: FloatFormat
    rounding: Rounding = "truncate"
    scale: cast.Scale | None = None
    block: blocks.Block = (32, 32)

    def __init__(self, dtype, rounding="truncate", scale=None, block=(32, 32)):
        if rounding not in get_args(Rounding):
            raise ValueError(f"rounding={rounding!r}; it must be truncate or nearest")
        put = functools.partial(object.__setattr__, self)
        put("dtype", as_format(dtype))
        put("rounding", rounding)
        put("scale", None if scale is None else cast.check_scale(scale))
        put("block", blocks.check_block(block))
        if rounding == "truncate" and self.scale == cast.ScaleRule.EXACT:
            raise ValueError(
                "scale='exact' with rounding='truncate': the quotient rounds, and what is cut off "
                "then hangs on its last bit; give floor or ceil, or rounding='nearest'"
            )


def truncate(x: jax.Array, fmt: FloatFormat) -> jax.Array:
    """Round to the next value of a format towards zero, saturating.

        truncate(x) = sign(x) · min(⌊|x| / q⌋ · q, max),  q = 2^(max(⌊log2|x|⌋, 1 − bias) − m)

    Example:
      >>> truncate(jnp.array([0.24, 0.75, 2.9, -5.9, 100.0]), FloatFormat(2, 1)).tolist()
      [0.0, 0.5, 2.0, -4.0, 6.0]

    Args:
      x: float32 or bfloat16, any shape.
      fmt: a `FloatFormat`, or a dtype that names one.

    Returns:
      Shape and dtype of x. Of a format with the exponents of float32, ±Inf stays; of others it
      becomes ±max. NaN stays.

    Raises:
      TypeError: if x is neither float32 nor bfloat16.
    """
    fmt, x = as_format(fmt), jnp.asarray(x)
    word = cast.to_word(x)
    sign, magnitude = word & np.uint32(0x80000000), word & np.uint32(0x7FFFFFFF)
    cut = np.uint32(0xFFFFFFFF << (23 - fmt.mantissa_bits) & 0xFFFFFFFF)
    if fmt.exponent_bits == 8:
        kept = magnitude & cut
    else:
        small = jnp.minimum(magnitude, np.float32(fmt.max).view(np.uint32))
        steps = jnp.floor(
            cast.from_word(small, jnp.dtype("float32")) * np.float32(1 / fmt.min_subnormal)
        )
        subnormal = cast.to_word(steps * np.float32(fmt.min_subnormal))
        is_normal = small >= np.float32(fmt.min_normal).view(np.uint32)
        kept = jnp.where(is_normal, small & cut, subnormal)
    is_nan = magnitude > np.uint32(0x7F800000)
    return cast.from_word(jnp.where(is_nan, word, sign | kept), x.dtype)


def reduce(x: jax.Array, operand: Operand | None) -> jax.Array:
    """Q of matrices, float32 or bfloat16[…, M, N] → the same shape and dtype.

    Without a scale, ±Inf stays where the format has the exponents of float32: E8M7 changes nothing
    in bfloat16. With one, a block that holds Inf or NaN becomes NaN.
    """
    if operand is None or not x.size:
        return x
    fmt, rounding = operand.dtype, operand.rounding
    if operand.scale is None:
        if rounding == "truncate":
            return truncate(x, fmt)
        rounded = cast.round_to(x, fmt)
        return jnp.where(jnp.isinf(x), x, rounded) if fmt.exponent_bits == 8 else rounded
    wide = x.astype(jnp.float32).reshape(-1, *x.shape[-2:])
    m, n = x.shape[-2:]
    block = blocks.fitted(operand.block, m, n)
    padded = blocks.pad_to(wide, *block)
    scale = cast.block_scale(blocks.block_absmax(padded, block), fmt, operand.scale)
    scale = blocks.spread(scale, block)
    if rounding == "nearest":
        reduced = cast.round_scaled(padded, scale, fmt, operand.scale)
    else:
        reduced = truncate(padded * cast.reciprocal(scale), fmt) * scale
    return reduced[:, :m, :n].reshape(x.shape).astype(x.dtype)
