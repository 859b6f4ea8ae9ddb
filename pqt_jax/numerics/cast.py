# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rounding to any format by bit arithmetic, block scales, codes, and ml_dtypes arrays on the host.

`astype` is not used, for three reasons. XLA on CPU cannot cast to the float6 types. A cast to
float8_e4m3fn overflows to NaN. Under jit, XLA may drop a round trip float32 → bfloat16 → float32.
Integer operations have none of these problems, and give the same bits on every back-end.
"""

import enum
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pqt_jax.numerics.formats import BF16, FloatFormat, as_format

_SIGN = np.uint32(0x80000000)
_INF = np.uint32(0x7F800000)


class ScaleRule(enum.StrEnum):
    """The rule by which the scale of a block is computed from its largest magnitude.

    Functions take a member or its name.

    Attributes:
      FLOOR: `2^(⌊log2 absmax⌋ − emax)`, the rule of OCP MX. Values near the block maximum may
        saturate.
      CEIL: the least power of two with `absmax ≤ max · scale`. Nothing saturates, unless
        `max · scale` is beyond float32; then the scale is half as large.
      EXACT: `absmax / max`, which is not a power of two. The largest weight is represented exactly
        up to rounding. The scale takes 32 bits instead of eight, and products with it round.
      MSE: the power of two with the least mean squared error, among that of "ceil", its half and
        its quarter. Large weights may saturate, so that small ones have finer steps.
    """

    FLOOR = "floor"
    CEIL = "ceil"
    EXACT = "exact"
    MSE = "mse"


Scale = ScaleRule | Literal["floor", "ceil", "exact", "mse"]


def check_scale(scale: Scale | str) -> ScaleRule:
    """Return the rule of a name.

    Raises:
      ValueError: if no rule has this name.
    """
    try:
        return ScaleRule(scale)
    except ValueError:
        names = ", ".join(ScaleRule)
        raise ValueError(f"scale={scale!r}; it must be one of {names}") from None


def to_word(x: jax.Array) -> jax.Array:
    """Return the float32 bit pattern (uint32) of a float32 or bfloat16 array.

    Raises:
      TypeError: for any other dtype.
    """
    if x.dtype == jnp.bfloat16:
        return lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << np.uint32(16)
    if x.dtype == jnp.float32:
        return lax.bitcast_convert_type(x, jnp.uint32)
    raise TypeError(f"dtype {x.dtype} is not served; give float32 or bfloat16")


def from_word(word: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return the array of float32 bit patterns; bfloat16 takes the upper half of each."""
    if dtype == jnp.bfloat16:
        return lax.bitcast_convert_type((word >> np.uint32(16)).astype(jnp.uint16), jnp.bfloat16)
    return lax.bitcast_convert_type(word, jnp.float32)


def _float_word(value: float) -> np.uint32:
    return np.float32(value).view(np.uint32)


def _round_mantissa(magnitude: jax.Array, mantissa_bits: int) -> jax.Array:
    """Round a word without sign to its top `mantissa_bits` of 23, nearest even; also subnormals."""
    drop = 23 - mantissa_bits
    if drop == 0:
        return magnitude
    odd = (magnitude >> np.uint32(drop)) & np.uint32(1)
    if mantissa_bits == 0:  # the last bit kept is the implicit one, which is 0 for subnormals only
        odd = (magnitude >= np.uint32(1 << 23)).astype(jnp.uint32)
    up = magnitude + (odd + np.uint32((1 << (drop - 1)) - 1))
    return up & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)


def round_to_bfloat16(x: jax.Array) -> jax.Array:
    """Round float32 to bfloat16, nearest even; overflow becomes ±Inf, and Inf and NaN stay.

    Args:
      x: float32 or bfloat16, any shape.

    Returns:
      bfloat16 of the same shape, equal to `x.astype(bfloat16)`; XLA never drops this rounding.
    """
    if x.dtype == jnp.bfloat16:
        return x
    word = to_word(x)
    # The lower half is cut off by `from_word`. No carry of a number reaches the sign.
    rounded = word + (((word >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    quiet = word | np.uint32(0x00400000)
    return from_word(jnp.where((word & ~_SIGN) > _INF, quiet, rounded), jnp.bfloat16)


def round_to(x: jax.Array, fmt: FloatFormat) -> jax.Array:
    """Round to the nearest value of a format, ties to even, saturating.

        round_to(x) = sign(x) · min(⌊|x| / q⌉ · q, max),  q = 2^(max(⌊log2|x|⌋, 1 − bias) − m)

    Example:
      >>> from pqt_jax.numerics.formats import E2M1
      >>> round_to(jnp.array([0.25, 0.75, 2.5, -5.0, 100.0]), E2M1).tolist()
      [0.0, 1.0, 2.0, -4.0, 6.0]

    Args:
      x: float32 or bfloat16, any shape. Its dtype must hold every value of the format.
      fmt: a `FloatFormat`, or a dtype that names one.

    Returns:
      Shape and dtype of x. ±0 keep their sign, ±Inf becomes ±max, NaN stays NaN.

    Raises:
      TypeError: if x is neither float32 nor bfloat16.
      ValueError: if the dtype of x cannot hold every value of the format.
    """
    fmt = as_format(fmt)
    x = jnp.asarray(x)
    word = to_word(x)
    if x.dtype == jnp.bfloat16 and fmt.mantissa_bits > BF16.mantissa_bits:
        raise ValueError(f"round_to: bfloat16 cannot hold {fmt}; give x as float32")
    if fmt.exponent_bits == 8:  # the exponents of float32: the mantissa is rounded in place
        magnitude = word & ~_SIGN
        rounded = _round_mantissa(magnitude, fmt.mantissa_bits)
        rounded = jnp.minimum(rounded, _float_word(fmt.max))
        return from_word(jnp.where(magnitude > _INF, word, (word & _SIGN) | rounded), x.dtype)
    power, total = _rounding_sum(word, fmt)
    rounded = to_word(total - power * np.float32(2.0 ** (23 - fmt.mantissa_bits)))
    return from_word((word & _SIGN) | rounded, x.dtype)


def _rounding_sum(word: jax.Array, fmt: FloatFormat) -> tuple[jax.Array, jax.Array]:
    """Round |x| by a sum of float32, whose last place is the step of the grid at x.

        power = max(2^⌊log2 s⌋, 2^(1 − bias)),  total = s + power · 2^(23 − m),  s = min(|x|, max)

    Saturating first keeps the sum finite, and changes no result, since the largest value is on the
    grid. Products with a power of two are exact, so that it makes no difference whether a compiler
    fuses them into a sum. Denormals of float32, which some hardware takes for 0, round to 0 anyway.

    Args:
      word: uint32, the float32 bit pattern of x.
      fmt: a format of fewer than eight exponent bits.

    Returns:
      (power, total), float32. The lowest bits of total count the steps from 0; NaN stays NaN.
    """
    float32 = jnp.dtype(jnp.float32)
    small = jnp.minimum(jnp.abs(from_word(word, float32)), np.float32(fmt.max))
    power = from_word(jnp.maximum(to_word(small) & _INF, _float_word(fmt.min_normal)), float32)
    return power, small + power * np.float32(2.0 ** (23 - fmt.mantissa_bits))


def block_scale(absmax: jax.Array, fmt: FloatFormat, rule: Scale) -> jax.Array:
    """Compute the scale of a block from its largest magnitude, by a `ScaleRule`.

        "floor"  2^(⌊log2 absmax⌋ − emax)
        "ceil"   the least 2^e with absmax ≤ max · 2^e; max · 2^e is finite in float32
        "exact"  absmax · (1 / max)

    Example:
      >>> from pqt_jax.numerics.formats import E2M1
      >>> [block_scale(jnp.float32(7.0), E2M1, rule).item() for rule in ("floor", "ceil")]
      [1.0, 2.0]

    Args:
      absmax: float32, any shape, not negative.
      fmt: the element format.
      rule: one of these; "mse" depends on all weights of a block (`reference.scale_blocks`).

    Returns:
      float32 of the same shape, from 2^-126 to 2^126; a power of two, except for "exact". NaN where
      absmax is Inf or NaN, so that a weight that is not finite shows in its whole block.

    Raises:
      ValueError: for another rule.
    """
    word, rule = to_word(absmax), check_scale(rule)
    if rule == ScaleRule.MSE:
        raise ValueError("scale='mse'; give floor, ceil or exact, which the largest magnitude sets")
    if rule == ScaleRule.EXACT:
        # A product, since XLA turns a division by a constant into one in some programs only.
        inverse = np.float32(1 / fmt.max)
        scale = jnp.maximum(absmax * inverse, np.float32(2.0**-126))
        return jnp.where(word >= _INF, jnp.float32(jnp.nan), scale)
    exponent = (word >> np.uint32(23)).astype(jnp.int32) - fmt.emax
    if rule == ScaleRule.CEIL:
        mantissa = np.uint32(0x007FFFFF)
        exponent += ((word & mantissa) > (_float_word(fmt.max) & mantissa)).astype(jnp.int32)
    # Above, a value that rounds up to a power of two could be 2^128, which is Inf.
    highest = min(253, 254 - fmt.emax)
    power = jnp.clip(exponent, 1, highest).astype(jnp.uint32) << np.uint32(23)
    return from_word(jnp.where(word >= _INF, np.uint32(0x7FC00000), power), jnp.dtype(jnp.float32))


def reciprocal(scale: jax.Array) -> jax.Array:
    """Return `1 / scale` of a power of two from 2^-126 to 2^126, by its bits; undefined for NaN."""
    return from_word(np.uint32(0x7F000000) - to_word(scale), jnp.dtype(jnp.float32))


def divide(x: jax.Array, scale: jax.Array, rule: Scale = ScaleRule.CEIL) -> jax.Array:
    """Return `x / scale`, by an exact product where the rule gives powers of two.

    Args:
      x: float32, any shape.
      scale: from `block_scale`, broadcasting against x.
      rule: the rule that the scale was computed by.

    Returns:
      float32 of x's shape, to be rounded to the unscaled grid by `round_to` or `encode`.
    """
    return x / scale if rule == ScaleRule.EXACT else x * reciprocal(scale)


def round_scaled(
    x: jax.Array, scale: jax.Array, fmt: FloatFormat, rule: Scale = ScaleRule.CEIL
) -> jax.Array:
    """Round to a scaled grid, `scale · round_to(x / scale, fmt)`, saturating at ±scale · max.

    Args:
      x, scale, rule: as for `divide`.
      fmt: the element format.

    Returns:
      float32 of x's shape.
    """
    return round_to(divide(x, scale, rule), fmt) * scale


def encode(x: jax.Array, fmt: FloatFormat) -> jax.Array:
    """Round to the nearest value of a format, as `round_to` does, and return its code.

    Example:
      >>> from pqt_jax.numerics.formats import E2M1
      >>> encode(jnp.array([0.0, 0.5, 1.6, -5.9, 100.0]), E2M1).tolist()
      [0, 1, 3, 15, 7]

    Args:
      x: float32 or bfloat16, any shape.
      fmt: a format of fewer than eight exponent bits.

    Returns:
      uint32 of x's shape, the code in the lowest `fmt.bits` bits. The code of NaN is
      `fmt.nan_code`, with sign bit 0, since the sign of NaN differs between kinds of hardware.

    Raises:
      ValueError: for a format of eight exponent bits, whose codes are the upper bits of float32.
    """
    fmt = as_format(fmt)
    if fmt.exponent_bits == 8:
        raise ValueError(f"encode: {fmt} has the exponents of float32; take the upper bits of x")
    word = to_word(x)
    power, total = _rounding_sum(word, fmt)
    # The lowest bits of total count steps: 2^m from 0 to the least normal number, whose code is
    # 2^m. Each further exponent adds 2^m to the code. What lies above the code is cut off.
    m, sign = fmt.mantissa_bits, np.uint32(1 << (fmt.bits - 1))
    first = _float_word(fmt.min_normal) >> np.uint32(23 - m)
    code = to_word(total) + ((to_word(power) >> np.uint32(23 - m)) - first)
    code = (code & (sign - np.uint32(1))) | ((word >> np.uint32(32 - fmt.bits)) & sign)
    return jnp.where(jnp.isnan(x), np.uint32(fmt.nan_code), code)


def to_ml_dtypes(x: jax.Array | np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Convert values on a format's grid to the ml_dtypes array of that format, on the host.

    Args:
      x: values on the unscaled grid of `fmt`, any float dtype, any shape.
      fmt: a format that ml_dtypes has.

    Returns:
      NumPy array of dtype `fmt.dtype`, the same shape; `.astype(float32)` gives x back exactly.

    Raises:
      ValueError: if ml_dtypes has no such type, or if some value is not on the grid.
    """
    fmt = as_format(fmt)
    if fmt.dtype is None:
        raise ValueError(f"to_ml_dtypes: ml_dtypes has no type for {fmt}")
    wide = np.asarray(x).astype(np.float64)
    with np.errstate(over="ignore"):  # the comparison below finds an overflow
        stored = wide.astype(np.float32).astype(fmt.dtype)
    wrong = (stored.astype(np.float64) != wide) & ~np.isnan(wide)
    if fmt.specials == "none":
        wrong |= np.isnan(wide)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"to_ml_dtypes: {wide[first]} at {first} is not a value of {fmt}")
    return stored
