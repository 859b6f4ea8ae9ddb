# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Operands rounded to any format ExMy: the function Q of `gemms`.

The exponent is reduced by saturation: a value larger than the format's maximum becomes the maximum,
and a value below the smallest normal number becomes subnormal. The mantissa is truncated, as in the
paper, or rounded to nearest, ties to even.

Source: Lee and others, arXiv 2405.18710 (2024), for truncated operands without scales. The paper
does not define the treatment of values that are too small; subnormals are this library's choice.
Rounding to nearest and scales of blocks are additions, for comparison.
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
    """The reduction of one operand of a product.

    Example:
      >>> Operand("E8M3").dtype, Operand(jnp.float8_e5m2, "nearest", "ceil").scale
      (FloatFormat(exponent_bits=8, mantissa_bits=3, specials='ieee'), <ScaleRule.CEIL: 'ceil'>)

    Attributes:
      dtype: a `FloatFormat`, or a dtype or name that stands for one.
      rounding: "truncate" drops bits of the mantissa; "nearest" takes the nearest value, ties to
        even.
      scale: a `ScaleRule` that gives each block a scale, or None for no scales.
      block: rows and columns of a block. The operand counts as a matrix: the product sums over the
        columns of x and over the rows of W.

    Raises:
      ValueError: if an argument is not one of these.
    """

    dtype: FloatFormat
    rounding: Rounding = "truncate"
    scale: cast.Scale | None = None
    block: blocks.Block = (32, 32)

    def __init__(self, dtype, rounding="truncate", scale=None, block=(32, 32)):
        if rounding not in get_args(Rounding):
            raise ValueError(f"rounding={rounding!r}; it must be truncate or nearest")
        set_field = functools.partial(object.__setattr__, self)  # the dataclass is frozen
        set_field("dtype", as_format(dtype))
        set_field("rounding", rounding)
        set_field("scale", None if scale is None else cast.check_scale(scale))
        set_field("block", blocks.check_block(block))
        if rounding == "truncate" and self.scale == cast.ScaleRule.EXACT:
            raise ValueError(
                "scale='exact' with rounding='truncate': the division by the scale rounds, so the "
                "result of truncating would depend on its last bit; give floor or ceil, or "
                "rounding='nearest'"
            )


def truncate(x: jax.Array, fmt: FloatFormat) -> jax.Array:
    """Round towards zero to a value of a format, with saturation at its maximum.

        truncate(x) = sign(x) · min(⌊|x| / q⌋ · q, max),  q = 2^(max(⌊log2|x|⌋, 1 − bias) − m)

    Example:
      >>> truncate(jnp.array([0.24, 0.75, 2.9, -5.9, 100.0]), FloatFormat(2, 1)).tolist()
      [0.0, 0.5, 2.0, -4.0, 6.0]

    Args:
      x: float32 or bfloat16, any shape.
      fmt: a `FloatFormat`, or a dtype that stands for one.

    Returns:
      An array with the shape and dtype of x. NaN stays NaN. ±Inf stays if the format has the eight
      exponent bits of float32; otherwise it becomes ±max.

    Raises:
      TypeError: if x is neither float32 nor bfloat16.
    """
    fmt, x = as_format(fmt), jnp.asarray(x)
    word = cast.to_word(x)
    sign, magnitude = word & np.uint32(0x80000000), word & np.uint32(0x7FFFFFFF)
    mask = np.uint32(0xFFFFFFFF << (23 - fmt.mantissa_bits) & 0xFFFFFFFF)
    if fmt.exponent_bits == 8:
        truncated = magnitude & mask
    else:
        saturated = jnp.minimum(magnitude, np.float32(fmt.max).view(np.uint32))
        steps = jnp.floor(
            cast.from_word(saturated, jnp.dtype("float32")) * np.float32(1 / fmt.min_subnormal)
        )
        subnormal = cast.to_word(steps * np.float32(fmt.min_subnormal))
        is_normal = saturated >= np.float32(fmt.min_normal).view(np.uint32)
        truncated = jnp.where(is_normal, saturated & mask, subnormal)
    is_nan = magnitude > np.uint32(0x7F800000)
    return cast.from_word(jnp.where(is_nan, word, sign | truncated), x.dtype)


def reduce(x: jax.Array, operand: Operand | None) -> jax.Array:
    """Q: round matrices to the format of an operand.

    Without scales, E8M7 changes no bfloat16: ±Inf stays if the format has eight exponent bits.
    With scales, a block that contains Inf or NaN becomes NaN.

    Args:
      x: float32 or bfloat16[…, M, N].
      operand: how to round; None returns x.

    Returns:
      An array with the shape and dtype of x.
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
    block = blocks.fit_block(operand.block, m, n)
    padded = blocks.pad_to(wide, *block)
    scale = cast.block_scale(blocks.block_absmax(padded, block), fmt, operand.scale)
    scale = blocks.spread(scale, block)
    if rounding == "nearest":
        reduced = cast.round_scaled(padded, scale, fmt, operand.scale)
    else:
        reduced = truncate(padded * cast.reciprocal(scale), fmt) * scale
    return reduced[:, :m, :n].reshape(x.shape).astype(x.dtype)
