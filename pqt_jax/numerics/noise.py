# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Draws → noise R: the rounded normal of Gaussian weight sampling, and uniform noise.

    "gauss"    R = ⌊N(0, 1)/2⌉ ∈ {−2, …, 2}:  P(0) = 0.683, P(±1) = 0.157, P(±2) = 0.0013 each
    "uniform"  R = (draw + ½)/65536 − ½

The rounded normal comes from integer thresholds on a 16-bit draw. The top bit of the draw is the
sign. The other 15 bits are an integer u that gives the magnitude: |R| ≥ 1 if u < 10398, and |R| = 2
if u < 88. The total variation distance from the exact law is 3e-5; |R| ≥ 3, of probability 5.7e-7,
is left out. R = 0 is +0, for either sign bit.

Where noise is stored, it is stored as codes. The eight draws of one Philox call make eight 3-bit
codes in one uint32, half a byte per weight: R in two's complement, of draw 2k at bit 3k and of draw
2k + 1 at bit 16 + 3k.

Source: arXiv 2505.11170 (2025), section on the noise distribution; thresholds derived here.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pqt_jax.numerics import philox

Kind = Literal["gauss", "uniform", "none"]
KINDS = ("gauss", "uniform", "none")

ONE_BELOW = 10398  # of 32768: |R| >= 1
TWO_BELOW = 88  # of 32768: |R| == 2
ONE = np.uint32(0x3F800000)  # the bits of 1.0

Codes = tuple[jax.Array, ...]


def materialize(function: Callable[..., Any], *operands: Any) -> Any:
    """Compute `function(*operands)` once, where XLA would recompute it in each consumer.

    An optimization barrier prevents that. On CPU, XLA of jax 0.10 drops barriers before it fuses,
    and would run Philox eight times; there, a conditional that is always taken prevents it.
    """
    if jax.__version_info__ >= (0, 11):
        return lax.optimization_barrier(function(*operands))

    function = jax.jit(function, inline=True)  # traced once for the three calls

    def conditional(*operands):
        words = jax.tree.leaves(operands)[0]  # the key; uint32 words whose values XLA cannot know
        taken = (words[0] & np.uint32(1)) <= np.uint32(1) + (words[1] >> np.uint32(31))
        zeros = jax.tree.map(_zeros, jax.eval_shape(function, *operands))
        return lax.cond(taken, lambda args: function(*args), lambda _: zeros, operands)

    def barrier(*operands):
        return lax.optimization_barrier(function(*operands))

    return lax.platform_dependent(*operands, cpu=conditional, default=barrier)


def _zeros(like: Any) -> jax.Array:
    """Make zeros of a shape and dtype that vary over the same mesh axes as the original."""
    zeros = jnp.zeros(like.shape, like.dtype)
    varying = tuple(getattr(like.manual_axis_type, "varying", ()))
    return lax.pcast(zeros, varying, to="varying") if varying else zeros


def rounded_normal_codes(words: Codes) -> jax.Array:
    """Return the codes of the eight draws of each Philox call.

    Both halves of a word are compared at once. A sum with `2^15 − threshold` has the top bit of a
    half set where the 15 bits of u reach the threshold.

    Example:
      >>> words = [jnp.uint32(x) for x in (87 << 16, 88, 10398, 65535)]  # draws 0, 87, 88, 0, …
      >>> codes = rounded_normal_codes(words)
      >>> rounded_normal(codes, jnp.arange(8, dtype=jnp.uint32)).tolist()
      [2.0, 2.0, 1.0, 2.0, 0.0, 2.0, 0.0, 2.0]

    Args:
      words: four uint32 arrays, from `philox.stream_words`.

    Returns:
      uint32 of the words' shape.
    """
    top = np.uint32(0x80008000)
    packed = jnp.zeros_like(words[0])
    for k, word in enumerate(words):
        u = word & ~top
        below_one = ~(u + np.uint32((0x8000 - ONE_BELOW) * 0x10001))
        below_two = ~(u + np.uint32((0x8000 - TWO_BELOW) * 0x10001))
        bit2 = word & below_one & top  # R < 0
        bit1 = bit2 | (below_two & top)  # R is −2, −1 or 2
        bit0 = below_one & ~below_two & top  # R is −1 or 1
        codes = bit2 | (bit1 >> np.uint32(1)) | (bit0 >> np.uint32(2))
        packed |= codes >> np.uint32(13 - 3 * k)
    return packed


def rounded_normal(codes: jax.Array, s: jax.Array) -> jax.Array:
    """Return R of draw s, an array of uint32 that broadcasts against the codes: float32."""
    bits_above = np.uint32(29) - (s >> np.uint32(1)) * np.uint32(3) - ((s & np.uint32(1)) << 4)
    at_the_top = lax.bitcast_convert_type(codes << bits_above, jnp.int32)
    return (at_the_top >> np.int32(29)).astype(jnp.float32)


def uniform(draw: jax.Array) -> jax.Array:
    """Return uniform R of a draw."""
    odd = (draw.astype(jnp.int32) * 2) - 65535
    return odd.astype(jnp.float32) * np.float32(2.0**-17)


def noise_from_words(
    kind: Kind, words: Codes, s: int, one: jax.Array | np.uint32 = ONE
) -> jax.Array:
    """Return R of the rows that use draw `s`, from the words of their Philox calls.

    This way is faster where codes need not be stored, as in a kernel.

    Args:
      kind: "gauss" or "uniform".
      words: four uint32 arrays, from `philox.stream_words`.
      s: 0 to 7.
      one: the bits of 1.0. A GPU combines x, y and one constant in one instruction, but not x and
        two constants. If `one` is an operand, and not a constant, one instruction is saved.

    Returns:
      float32 of the words' shape.
    """
    if kind == "uniform":
        return uniform(philox.draw(words, s))
    return _rounded_normal_of_upper(words[s // 2] if s % 2 else words[s // 2] << 16, one)


def noise_of_slice(kind: Kind, words: Codes, t: int) -> jax.Array:
    """Return R of a slice of every run, from words of as many rows as the slice has.

    Args:
      kind: "gauss" or "uniform".
      words: four uint32[leads, runs, rows, columns], from `philox.stream_words`.
      t: index of the slice, less than 32 / rows.

    Returns:
      float32 of the words' shape.
    """
    if words[0].shape[2] == philox.GROUP:
        return noise_from_words(kind, words, t)
    return noise_of_upper_half(kind, _upper_half(words, t))


def noise_of_upper_half(kind: Kind, word: jax.Array) -> jax.Array:
    """Return R, float32, of the draws in the upper halves of uint32 words of any shape."""
    if kind == "uniform":
        return uniform(word >> np.uint32(16))
    return _rounded_normal_of_upper(word)


def _upper_half(words: Codes, t: int) -> jax.Array:
    """Return the draws of slice t of eight rows, in the upper halves of words; the rest is 0."""
    row = lax.broadcasted_iota(jnp.uint32, words[t].shape, 2)
    return jnp.where(row < philox.GROUP, words[t] << 16, words[t] & np.uint32(0xFFFF0000))


def _rounded_normal_of_upper(upper: jax.Array, one: jax.Array | np.uint32 = ONE) -> jax.Array:
    """Return R of the draw in the upper half of a word; what is in the lower half is ignored."""
    # u with what lies below it, as a signed number: CPUs and TPUs compare no unsigned ones.
    u = lax.bitcast_convert_type(upper & np.uint32(0x7FFFFFFF), jnp.int32)
    signed = lax.bitcast_convert_type((upper & np.uint32(0x80000000)) | one, jnp.float32)
    at_least_one = jnp.where(u < np.int32(ONE_BELOW << 16), signed, jnp.zeros_like(signed))
    return jnp.where(u < np.int32(TWO_BELOW << 16), signed + signed, at_least_one)


def noise_codes(
    kind: Kind,
    key: jax.Array,
    offset: jax.Array,
    leads: int,
    runs: int,
    columns: int,
    rows: int = philox.GROUP,
) -> Codes:
    """Compute the codes of all noise for a stack of matrices, once.

    Args:
      kind: "gauss" or "uniform".
      key, offset, leads, runs, columns, rows: as for `philox.stream_words`.

    Returns:
      Arrays uint32[leads, runs, rows, columns]: for "gauss" one, with eight codes in each number.
      For "uniform" as many as hold the draws of the rows, two in each number.
    """
    return materialize(functools.partial(_codes, kind, leads, runs, columns, rows), key, offset)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), inline=True)
def _codes(kind: Kind, leads: int, runs: int, columns: int, rows: int, key, offset) -> Codes:
    words = philox.stream_words(key, offset, leads, runs, columns, rows)
    if kind == "gauss":
        return (rounded_normal_codes(words),)
    if rows == philox.GROUP:
        return words
    upper = [_upper_half(words, t) for t in range(philox.ROWS // rows)]
    return tuple(a >> 16 | b for a, b in zip(upper[::2], upper[1::2], strict=True))


def noise_tile(kind: Kind, codes: Codes) -> jax.Array:
    """Return R of all rows; XLA fuses it into its consumer.

    Args:
      kind: "gauss" or "uniform".
      codes: uint32[leads, runs, rows, columns], from `noise_codes`.

    Returns:
      float32[leads, runs, 32 / rows, rows, columns].
    """
    leads, runs, rows, columns = codes[0].shape
    shape = (leads, runs, philox.ROWS // rows, rows, columns)
    t = lax.broadcasted_iota(jnp.uint32, shape, 2)
    first, *others = (x[:, :, None] for x in codes)
    if kind == "gauss" and rows == philox.GROUP:
        return rounded_normal(first, t)
    if kind == "gauss":
        return rounded_normal(first, 2 * t + (lax.broadcasted_iota(jnp.uint32, shape, 3) >> 2))
    for k, word in enumerate(others, start=1):
        first = jnp.where(t >> 1 == k, word, first)
    return uniform((first >> ((t & 1) << 4)) & np.uint32(0xFFFF))
