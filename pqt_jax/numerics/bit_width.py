# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Bit-widths: the learned b_i of each block, its bit-width b_t, and its unit of noise.

    b_t = b_target + b_i · (b_init − b_target)        b_i starts at 1, and decays towards 0
    unit of noise = max_B|w| · 2^(1 − b_t)

A unit of noise survives the cast to a format of m mantissa bits, even at the block maximum, as long
as b_t ≤ m + 2 (`FloatFormat.noise_bits`).

Decay and gradients may push b_i out of [0, 1], and so b_t out of [b_target, b_init]. b_t is clamped
to [1, 16]. At 1 bit, a unit of noise is the block maximum; at 16 bits, it is below the resolution
of every format here.

Source: arXiv 2505.11170 (2025); the clamp is ours.
"""

import functools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pqt_jax.numerics import philox

MIN_BITS = 1.0
MAX_BITS = 16.0


def check_bits(target_bits: float, init_bits: float) -> None:
    """Raise ValueError unless `1 ≤ target_bits ≤ init_bits ≤ 16`."""
    are_numbers = all(
        isinstance(b, numbers.Real) and not isinstance(b, bool) for b in (target_bits, init_bits)
    )
    if not are_numbers or not MIN_BITS <= target_bits <= init_bits <= MAX_BITS:
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
    # Clamped before the sum. Otherwise a compiler may fuse product and sum under jit, which changes
    # the bits of b_t. `where` and not `clip`, so that the gradient is not halved at the ends.
    above = b_i * (init_bits - target_bits)
    target = float(np.float32(target_bits))  # rounded as the sum rounds it: the ends are exact
    low, high = MIN_BITS - target, MAX_BITS - target
    return target + jnp.where(above < low, low, jnp.where(above > high, high, above))


@jax.custom_jvp
def step_size(b_t: jax.Array) -> jax.Array:
    """`2^(1 − b_t)`, by integer arithmetic: the same bits everywhere, and exact at whole b_t.

    The exp2 of XLA has neither property. Its bits differ between back-ends, and between a folded
    constant and the same number at run time. Every bit of the result affects ŵ.

    Example:
      >>> step_size(jnp.array([1.0, 4.0, 9.0])).tolist()
      [1.0, 0.125, 0.00390625]

    Args:
      b_t: float32 in [1, 16], in bits.

    Returns:
      float32 of the same shape, within one unit in the last place; NaN for NaN.
    """
    return undifferentiable_step_size(b_t)


@step_size.defjvp
def _step_size_jvp(primals, tangents):
    step = step_size(*primals)
    return step, -math.log(2) * step * tangents[0]


def undifferentiable_step_size(
    b_t: jax.Array, multiply: philox.Multiply = philox.multiply
) -> jax.Array:
    """`step_size` without a gradient, for kernels: Mosaic of jax 0.11 takes no `custom_jvp`.

    Args:
      b_t: as for `step_size`.
      multiply: `philox.multiply`, or another way to products of 64 bits.

    Returns:
      As `step_size`.
    """
    # Fixed point with 23 binary places, which are enough: 1 − b_t, exact, and then 16 − b_t.
    negative = lax.convert_element_type((1.0 - b_t) * 2.0**23, jnp.int32)
    fixed = (negative + np.int32(int(MAX_BITS - 1) << 23)).astype(jnp.uint32)
    power = _exp2_fixed(fixed & np.uint32(2**23 - 1), multiply)  # in [2^31, 2^32)
    # Rounded to 24 bits, of which the first is implicit. A carry goes into the exponent.
    mantissa = (power >> np.uint32(8)) + ((power >> np.uint32(7)) & np.uint32(1))
    biased = (fixed >> np.uint32(23)) + np.uint32(126 + 1 - int(MAX_BITS))
    step = lax.bitcast_convert_type((biased << np.uint32(23)) + mantissa, jnp.float32)
    return jnp.where(jnp.isnan(b_t), b_t, step)


@functools.partial(jax.jit, static_argnums=1, inline=True)  # traced once for each shape
def _exp2_fixed(fraction: jax.Array, multiply: philox.Multiply) -> jax.Array:
    """`2^31 · 2^(fraction / 2^23)` as uint32, by Horner's rule with 31 binary places.

    The remainder of the series after its twelve terms `(ln 2)^k / k!` is below 2^-32.
    """
    terms = [round(2**31 * math.log(2) ** k / math.factorial(k)) for k in range(12)]
    x = fraction << np.uint32(8)
    power = jnp.full_like(x, np.uint32(terms[-1]))
    for term in reversed(terms[:-1]):
        high, low = multiply(power, x)
        power = np.uint32(term) + ((high << np.uint32(1)) | (low >> np.uint32(31)))
    return power


def layer_loss(b_t: Any, target_bits: float) -> jax.Array:
    """Penalty that draws bit-widths to their target, with equal weight for each layer.

        Σ_i (1 / m_i) Σ_B |b_t − b_target|        layer i has m_i blocks

    Each matrix is a layer, and so is each matrix of a stack.

    Example:
      >>> layer_loss({"kernel": jnp.array([[[4.0, 6.0]], [[5.0, 5.5]]])}, 4.0).item()
      2.25

    Args:
      b_t: pytree of float32 [..., gm, gn], in bits (`ParamTransform.bit_widths`).
      target_bits: b_target.

    Returns:
      float32 scalar, in bits; 0 for an empty tree.

    Source: the successor of arXiv 2505.11170 (OpenReview K05emrAWGe) divides the decay loss by the
    number of blocks; the magnitude is ours.
    """
    means = [jnp.mean(jnp.abs(leaf - target_bits), axis=(-2, -1)) for leaf in jax.tree.leaves(b_t)]
    return sum((jnp.sum(mean) for mean in means), jnp.float32(0))


def average_loss(b_t: Any, average: float) -> jax.Array:
    """Penalty on the mean bit-width only, `(mean_B b_t − average)²`; blocks may differ freely.

    Example:
      >>> average_loss({"kernel": jnp.array([[4.0, 8.0]])}, 4.0).item()
      4.0

    Args:
      b_t: pytree of float32, in bits.
      average: target of the mean over all blocks, in bits.

    Returns:
      float32 scalar, in bits²; NaN for an empty tree.
    """
    return jnp.square(statistics(b_t)["mean"] - average)


def statistics(bit_widths: Any) -> dict[str, jax.Array]:
    """Return the mean, minimum and maximum over all blocks of a tree of bit-widths.

    Args:
      bit_widths: pytree of float32 arrays, one number per block (`ParamTransform.bit_widths`).

    Returns:
      `{"mean": …, "min": …, "max": …}`, float32 scalars in bits. NaN for an empty tree.
    """
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(bit_widths)]
    b_t = jnp.concatenate(leaves) if leaves else jnp.full((1,), jnp.nan)
    return {"mean": jnp.mean(b_t), "min": jnp.min(b_t), "max": jnp.max(b_t)}
