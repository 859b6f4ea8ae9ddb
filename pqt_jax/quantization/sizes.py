# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How large a quantized model is: exactly, as it is stored, and as a function to differentiate.

bits of a parameter = codes + scales + tags

codes    each weight, in the bits of the format that its block has
scales   eight bits for each block (E8M0), 32 for scale "exact"; none where the format has
         float32's exponents and the whole parameter has one format
tags     four bits for each block whose format is its own
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax.numerics import blocks
from pqt_jax.numerics.bit_width import MAX_BITS
from pqt_jax.numerics.cast import ScaleRule
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, TAG_BITS
from pqt_jax.numerics.spec import Spec
from pqt_jax.quantization.quantize import Plan
from pqt_jax.transform.tree_paths import paths_and_leaves


class Size(NamedTuple):
    """Bits that weights take.

    Attributes:
      weights: how many there are.
      codes, scales, tags: bits of each kind.
    """

    weights: int = 0
    codes: int = 0
    scales: int = 0
    tags: int = 0

    @property
    def bits(self) -> int:
        """Bits in all."""
        return self.codes + self.scales + self.tags

    @property
    def mean_bits(self) -> float:
        """Bits per weight, all that is stored beside it included."""
        return self.bits / self.weights if self.weights else 0.0


def block_sizes(shape: tuple[int, ...], spec: Spec) -> np.ndarray:
    """Weights in each block, int64 in the shape of `blocks.grid_shape`; fewer at ragged edges."""
    grid = blocks.grid_shape(shape, spec.block, spec.matrix_axes)
    _, *sides = blocks.matrix_shape(shape, spec.matrix_axes)
    rows, columns = (
        np.minimum(size, side - size * np.arange(-(-side // size)))
        for side, size in zip(sides, spec.block, strict=True)
    )
    return np.broadcast_to(np.outer(rows, columns), grid)


def formats_of(shape: tuple[int, ...], assigned: FormatAssignment) -> dict[str, int]:
    """Weights in each format, by its name, from the narrowest on.

    Example:
      >>> formats_of((100, 70), FormatAssignment(Spec(noise="none", dtype="E2M1")))
      {'E2M1': 7000}
    """
    counts = block_sizes(shape, assigned.spec)
    if assigned.index is None:
        return {assigned.spec.dtype.name: int(counts.sum())}
    held = [int(counts[np.asarray(assigned.index) == i].sum()) for i in range(len(MIXED_FORMATS))]
    return {fmt.name: n for fmt, n in zip(MIXED_FORMATS, held, strict=True) if n}


def parameter_size(shape: tuple[int, ...], assigned: FormatAssignment) -> Size:
    """The size of one quantized parameter.

    Example:
      >>> spec = Spec(noise="none", dtype="E2M1")
      >>> size = parameter_size((64, 64), FormatAssignment(spec))
      >>> size, size.mean_bits
      (Size(weights=4096, codes=16384, scales=32, tags=0), 4.0078125)
    """
    spec, index = assigned
    counts = block_sizes(shape, spec)
    if index is None:
        scale = 32 if spec.scale == ScaleRule.EXACT else 8
        scales = 0 if spec.dtype.exponent_bits == 8 else scale * counts.size
        return Size(int(counts.sum()), int(counts.sum()) * spec.dtype.bits, scales)
    widths = np.array([fmt.bits for fmt in MIXED_FORMATS])[np.asarray(index)]
    codes = int((counts * widths).sum())
    return Size(int(counts.sum()), codes, 8 * counts.size, TAG_BITS * counts.size)


def sizes(plan: Plan, params: Any) -> dict[str, Size]:
    """The size of each quantized parameter, by its path.

    Args:
      plan: from `quantize.plan_uniform` or `plan_mixed`.
      params: pytree of arrays, or of their shapes.
    """
    shapes = paths_and_leaves(params)
    return {path: parameter_size(shapes[path].shape, assigned) for path, assigned in plan.items()}


def total(parts: Mapping[str, Size]) -> Size:
    """The sum of several sizes."""
    return Size(*map(sum, zip(*parts.values(), strict=True))) if parts else Size()


def expected_bits(b_t: jax.Array) -> jax.Array:
    """Bits of a weight as a function of b_t that can be differentiated.

    Piecewise linear, and exact at the largest b_t of each format of `MIXED_FORMATS`: 4 bits up to
    3, then 6 at 4, 8 at 5, 12 at 9 and 16 at 16. In between it is below what is stored, since a
    block takes a whole format.

    Example:
      >>> expected_bits(jnp.array([1.0, 3.0, 3.5, 5.0, 7.0, 16.0])).tolist()
      [4.0, 4.0, 5.0, 8.0, 10.0, 16.0]

    Args:
      b_t: float32, in bits.

    Returns:
      float32 of the same shape.
    """
    limits = [float(fmt.noise_bits) for fmt in MIXED_FORMATS[:-1]] + [MAX_BITS]
    bits = [float(fmt.bits) for fmt in MIXED_FORMATS]
    return jnp.interp(b_t, jnp.array(limits, jnp.float32), jnp.array(bits, jnp.float32))


def mean_bits(b_t: Mapping[str, jax.Array], weights: Mapping[str, np.ndarray]) -> jax.Array:
    """Mean bits per sampled weight, `Σ_B n_B · expected_bits(b_t) / Σ_B n_B`, to differentiate.

    Scales and tags are not counted: they do not depend on b_t.

    Args:
      b_t: float32 by path, one per block.
      weights: by the same paths, the number of weights in each block (`block_sizes`).

    Returns:
      float32 scalar; 0 where nothing is sampled.
    """
    if not b_t:
        return jnp.float32(0)
    bits = sum(jnp.sum(expected_bits(b_t[path]) * jnp.float32(weights[path])) for path in b_t)
    return jnp.asarray(bits / sum(float(weights[path].sum()) for path in b_t))
