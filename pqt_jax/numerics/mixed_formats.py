# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which format a block of a learned bit-width is stored in.

A block of bit-width b_t goes to the smallest of E2M1, E3M2, E4M3, E4M7 and BF16 that matches the
noise that the block was trained with:

noise   the format can represent it, `b_t ≤ m + 2`; its rounding error is about a quarter of it
error   its rounding error is as large as the noise, or smaller

    format          E2M1  E3M2  E4M3  E4M7  BF16
    noise, up to    3     4     5     9     more
    error, up to    4.9   6.2   7.2   11.2  more

The limits of the second are those of normal weights in blocks of 32×32, where R · scale has the
standard deviation 0.57 · 3.44 · 2^(1 − b_t) of a weight's: 0.131, 0.053, 0.027 and 0.0017, the
relative errors of the four formats (LOG.md, 2026-11-23 and 2026-11-30).
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from pqt_jax.numerics import bit_width
from pqt_jax.numerics.formats import BF16, E2M1, E3M2, E4M3, E4M7, FloatFormat

MIXED_FORMATS: tuple[FloatFormat, ...] = (E2M1, E3M2, E4M3, E4M7, BF16)
TAG_BITS = 4  # bits that store one index into MIXED_FORMATS, in a packed file

Match = Literal["noise", "error"]
MATCHES: tuple[Match, ...] = get_args(Match)
LIMITS: dict[Match, tuple[float, ...]] = {  # the largest b_t of each format but the last
    "noise": tuple(float(fmt.noise_bits) for fmt in MIXED_FORMATS[:-1]),
    "error": (4.9, 6.2, 7.2, 11.2),
}


def format_index(b_t: jax.Array, match: Match = "noise") -> jax.Array:
    """Choose the smallest of `MIXED_FORMATS` that matches each bit-width.

    Example:
      >>> b_t = jnp.array([3.0, 4.5, 6.0, 12.0])
      >>> [MIXED_FORMATS[i].name for i in format_index(b_t)]
      ['E2M1', 'E4M3', 'E4M7', 'BF16']
      >>> [MIXED_FORMATS[i].name for i in format_index(b_t, "error")]
      ['E2M1', 'E2M1', 'E3M2', 'BF16']

    Args:
      b_t: float32, in bits.
      match: what of the format is compared with the noise, one of `MATCHES`.

    Returns:
      int32 of the same shape, an index into `MIXED_FORMATS`.

    Raises:
      ValueError: for another match.
    """
    if match not in MATCHES:
        raise ValueError(f"match={match!r}; it must be one of {', '.join(MATCHES)}")
    above = jnp.stack([b_t > jnp.float32(limit) for limit in LIMITS[match]])
    return jnp.sum(above, axis=0, dtype=jnp.int32)


def snap(b_i: jax.Array, target_bits: float, init_bits: float) -> jax.Array:
    """Raise each bit-width to the largest that its format carries, `b_t → m + 2`.

    After this, the noise of a block is as large as its format allows. The bit-widths of blocks that
    go to BF16 do not change: no larger format bounds them.

    Example:
      >>> b_i = snap(jnp.array([-1.0, -0.25, 0.0, 1.0]), 4.0, 6.0)
      >>> bit_width.bit_width(b_i, 4.0, 6.0).tolist()
      [3.0, 4.0, 4.0, 9.0]

    Args:
      b_i: float32, one per block.
      target_bits, init_bits: b_target and b_init, which must differ.

    Returns:
      b_i of the same shape, with the same formats (`format_index`).

    Raises:
      ValueError: if b_target equals b_init, so that b_i has no effect.
    """
    if target_bits == init_bits:
        raise ValueError(f"target_bits=init_bits={init_bits}; bits that do not move cannot snap")
    b_t = bit_width.bit_width(b_i, target_bits, init_bits)
    limits = jnp.array([fmt.noise_bits for fmt in MIXED_FORMATS], b_t.dtype)[format_index(b_t)]
    snapped = (limits - target_bits) / (init_bits - target_bits)
    for _ in range(2):  # rounding may lift b_t over the limit, and so to the next format
        above = bit_width.bit_width(snapped, target_bits, init_bits) > limits
        snapped = jnp.where(above, jnp.nextafter(snapped, -jnp.inf), snapped)
    return jnp.where(format_index(b_t) == len(MIXED_FORMATS) - 1, b_i, snapped)
