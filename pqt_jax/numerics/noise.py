# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Draws → noise R: the rounded normal of Gaussian weight sampling, and uniform noise.

    "gauss"    R = ⌊N(0, 1)/2⌉ ∈ {−2, …, 2}:  P(0) = 0.683, P(±1) = 0.157, P(±2) = 0.0013 each
    "uniform"  R = (draw + ½)/65536 − ½

The rounded normal comes from integer thresholds on a 16-bit draw. The top bit of the draw is the
sign. The other 15 bits are an integer u that gives the magnitude: |R| ≥ 1 if u < 10398, and |R| = 2
if u < 88. The total variation distance from the exact law is 3e-5; |R| ≥ 3, of probability 5.7e-7,
is left out. R = 0 is +0, for either sign bit.

Noise is stored as codes, not as numbers. The eight draws of one Philox call make eight 3-bit codes
R + 2 in one uint32, half a byte per weight. Each consumer decodes the rows that it needs.

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


def rounded_normal_code(draw: jax.Array) -> jax.Array:
    """Return the 3-bit code R + 2 of a 16-bit draw (uint32 in, uint32 out).

    Example:
      >>> draws = jnp.array([0, 87, 88, 10397, 10398, 32768, 65535], jnp.uint32)
      >>> rounded_normal_code(draws).tolist()
      [4, 4, 3, 3, 2, 0, 2]
    """
    u = draw & np.uint32(0x7FFF)
    magnitude = (u < np.uint32(ONE_BELOW)).astype(jnp.uint32)
    magnitude += (u < np.uint32(TWO_BELOW)).astype(jnp.uint32)
    negative = (draw >> np.uint32(15)) == np.uint32(1)
    return jnp.where(negative, np.uint32(2) - magnitude, np.uint32(2) + magnitude)


def noise_from_words(
    kind: Kind, words: Codes, s: int, one: jax.Array | np.uint32 = ONE
) -> jax.Array:
    """Return R of the rows that use draw `s`, from the words of their Philox calls.

    The numbers are those of `noise_rows`. This way is faster where codes need not be stored, as in
    a kernel.

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
        return noise_rows(kind, words, s)
    upper = words[s // 2] if s % 2 else words[s // 2] << np.uint32(16)
    u = upper << np.uint32(1)  # u in the upper 15 bits; the lower bits do not matter
    signed = lax.bitcast_convert_type((upper & np.uint32(0x80000000)) | one, jnp.float32)
    at_least_one = jnp.where(u < np.uint32(ONE_BELOW << 17), signed, jnp.zeros_like(signed))
    return jnp.where(u < np.uint32(TWO_BELOW << 17), signed + signed, at_least_one)


def noise_codes(
    kind: Kind, key: jax.Array, offset: jax.Array, leads: int, runs: int, columns: int
) -> Codes:
    """Compute the codes of all noise for a stack of matrices, once.

    Args:
      kind: "gauss" or "uniform".
      key: uint32[2].
      offset: uint32[3], global (lead, run of 32 rows, column) of the first element.
      leads, runs, columns: number of matrices, of runs of 32 rows, and of columns.

    Returns:
      Arrays uint32[leads, runs, 4, columns]: for "gauss" one, for "uniform" the four words.
    """
    return materialize(functools.partial(_codes, kind, leads, runs, columns), key, offset)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)  # traced once for each shape
def _codes(kind: Kind, leads: int, runs: int, columns: int, key, offset) -> Codes:
    words = philox.stream_words(key, offset, leads, runs, columns)
    if kind == "uniform":
        return words
    packed = jnp.zeros(words[0].shape, jnp.uint32)
    for s in range(philox.DRAWS):
        packed |= rounded_normal_code(philox.draw(words, s)) << np.uint32(3 * s)
    return (packed,)


def noise_rows(kind: Kind, codes: Codes, s: int) -> jax.Array:
    """Return R of the rows that use draw `s`: float32[leads, runs, 4, columns]."""
    if kind == "uniform":
        odd = (philox.draw(codes, s).astype(jnp.int32) * 2) - 65535
        return odd.astype(jnp.float32) * np.float32(2.0**-17)
    return _decode(codes[0] >> np.uint32(3 * s))


def noise_tile(kind: Kind, codes: Codes) -> jax.Array:
    """Return R of all rows, float32[leads, runs, 8, 4, columns]; XLA fuses it into its consumer."""
    if kind == "uniform":
        return jnp.stack([noise_rows(kind, codes, s) for s in range(philox.DRAWS)], axis=2)
    (packed,) = codes
    leads, runs, group, columns = packed.shape
    s = lax.broadcasted_iota(jnp.uint32, (leads, runs, philox.DRAWS, group, columns), 2)
    return _decode(packed[:, :, None] >> (s * np.uint32(3)))


def _decode(shifted: jax.Array) -> jax.Array:
    return ((shifted & np.uint32(7)).astype(jnp.int32) - 2).astype(jnp.float32)
