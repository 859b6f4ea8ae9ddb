# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Bit-widths: the learned b_i of each block, the b_t that it stands for, and its unit of noise.

    b_t = b_target + b_i · (b_init − b_target)        b_i starts at 1, and decays towards 0
    unit of noise = max_B|w| · 2^(1 − b_t)

A unit of noise survives the cast to a format of m mantissa bits, even at the block maximum, while
b_t ≤ m + 2 (`FloatFormat.noise_bits`). Decay and gradients may push b_i out of [0, 1], and so b_t
out of [b_target, b_init]; it is clamped to [1, 16], where a unit is the block maximum itself at one
end and below any format here at the other.

Source: arXiv 2505.11170 (2025); the clamp is ours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MIN_BITS = 1.0
MAX_BITS = 16.0


def check_bits(target_bits: float, init_bits: float) -> None:
    """Raise ValueError unless `1 ≤ target_bits ≤ init_bits ≤ 16`."""
    numbers = all(
        isinstance(b, int | float) and not isinstance(b, bool) for b in (target_bits, init_bits)
    )
    if not numbers or not MIN_BITS <= target_bits <= init_bits <= MAX_BITS:
        raise ValueError(
            f"target_bits={target_bits!r}, init_bits={init_bits!r}; "
            f"they must be numbers, {MIN_BITS:g} <= target_bits <= init_bits <= {MAX_BITS:g}"
        )


def bit_width(b_i: jax.Array, target_bits: float, init_bits: float) -> jax.Array:
    """`b_t = b_target + b_i · (b_init − b_target)`, clamped to [1, 16].

    Example:
      >>> bit_width(jnp.array([0.0, 0.5, 1.0]), 4.0, 6.0).tolist()
      [4.0, 5.0, 6.0]

    Args:
      b_i: float32, one per block.
      target_bits, init_bits: b_target and b_init.

    Returns:
      float32 of the same shape, in bits.
    """
    # Clamped before the sum, which keeps a compiler from fusing product and sum: b_t would then
    # have other bits under jit. By selection, so that the gradient is whole at the very ends.
    above = b_i * (init_bits - target_bits)
    target = float(np.float32(target_bits))  # as the sum has it, so that its ends are exact
    low, high = MIN_BITS - target, MAX_BITS - target
    return target + jnp.where(above < low, low, jnp.where(above > high, high, above))


def step_size(b_t: jax.Array) -> jax.Array:
    """`2^(1 − b_t)`, exact where b_t is an integer (XLA's own exp2 is not).

    Example:
      >>> step_size(jnp.array([1.0, 4.0, 9.0])).tolist()
      [1.0, 0.125, 0.00390625]

    Args:
      b_t: float32, in bits.

    Returns:
      float32 of the same shape.
    """
    exponent = 1.0 - b_t
    whole = lax.stop_gradient(jnp.floor(exponent))
    biased = (whole.astype(jnp.int32) + 127).astype(jnp.uint32)
    power = lax.bitcast_convert_type(biased << np.uint32(23), jnp.float32)
    return jnp.exp2(exponent - whole) * power


def statistics(b_t: Any) -> dict[str, jax.Array]:
    """Mean, minimum and maximum over all blocks of a tree of bit-widths.

    Args:
      b_t: pytree of float32 arrays, one number per block (`ParamTransform.bit_widths`).

    Returns:
      `{"mean": …, "min": …, "max": …}`, float32 scalars in bits. NaN for an empty tree.
    """
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(b_t)]
    every = jnp.concatenate(leaves) if leaves else jnp.full((1,), jnp.nan)
    return {"mean": jnp.mean(every), "min": jnp.min(every), "max": jnp.max(every)}
