# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The size of a quantized model: exactly as stored, and as a differentiable function of b_t.

bits of a parameter = codes + scales + tags

codes    each weight takes the bits of its block's format
scales   8 bits per block (E8M0), or 32 for scale rule "exact"; none if the whole parameter has
one format with eight exponent bits
tags     4 bits per block, with mixed formats only
"""

from collections.abc import Iterable, Mapping
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


class StoredSize(NamedTuple):
    """The size of some weights in storage.

    Attributes:
      weights: the number of weights.
      codes, scales, tags: bits of each kind.
    """

    weights: int = 0
    codes: int = 0
    scales: int = 0
    tags: int = 0

    @property
    def bits(self) -> int:
        """The sum of all kinds."""
        return self.codes + self.scales + self.tags

    @property
    def mean_bits(self) -> float:
        """Bits per weight, with scales and tags."""
        return self.bits / self.weights if self.weights else 0.0


def weights_per_block(shape: tuple[int, ...], spec: Spec) -> np.ndarray:
    """The number of weights in each block, int64 [*grid]; blocks at ragged edges have fewer."""
    grid = blocks.grid_shape(shape, spec.block, spec.matrix_axes)
    _, *sides = blocks.matrix_shape(shape, spec.matrix_axes)
    rows, columns = (
        np.minimum(size, side - size * np.arange(-(-side // size)))
        for side, size in zip(sides, spec.block, strict=True)
    )
    return np.broadcast_to(np.outer(rows, columns), grid)


def count_by_format(shape: tuple[int, ...], assignment: FormatAssignment) -> dict[str, int]:
    """The number of weights in each format, by name, from the narrowest format to the widest.

    Example:
      >>> count_by_format((100, 70), FormatAssignment(Spec(noise="none", dtype="E2M1")))
      {'E2M1': 7000}
    """
    counts = weights_per_block(shape, assignment.spec)
    if assignment.index is None:
        return {assignment.spec.dtype.name: int(counts.sum())}
    index = np.asarray(assignment.index)
    by_format = {fmt.name: int(counts[index == i].sum()) for i, fmt in enumerate(MIXED_FORMATS)}
    return {name: count for name, count in by_format.items() if count}


def parameter_size(shape: tuple[int, ...], assignment: FormatAssignment) -> StoredSize:
    """The size of one quantized parameter.

    Example:
      >>> spec = Spec(noise="none", dtype="E2M1")
      >>> size = parameter_size((64, 64), FormatAssignment(spec))
      >>> size, size.mean_bits
      (StoredSize(weights=4096, codes=16384, scales=32, tags=0), 4.0078125)
    """
    spec, index = assignment
    counts = weights_per_block(shape, spec)
    if index is None:
        scale = 32 if spec.scale == ScaleRule.EXACT else 8
        scales = 0 if spec.dtype.exponent_bits == 8 else scale * counts.size
        weights = int(counts.sum())
        return StoredSize(weights=weights, codes=weights * spec.dtype.bits, scales=scales)
    widths = np.array([fmt.bits for fmt in MIXED_FORMATS])[np.asarray(index)]
    return StoredSize(
        weights=int(counts.sum()),
        codes=int((counts * widths).sum()),
        scales=8 * counts.size,
        tags=TAG_BITS * counts.size,
    )


def parameter_sizes(plan: Plan, params: Any) -> dict[str, StoredSize]:
    """The size of each quantized parameter, by path.

    Args:
      plan: from `quantize.plan_uniform` or `plan_mixed`.
      params: pytree of arrays, or of their shapes.
    """
    shapes = paths_and_leaves(params)
    return {path: parameter_size(shapes[path].shape, entry) for path, entry in plan.items()}


def total_size(sizes: Iterable[StoredSize]) -> StoredSize:
    """The sum of sizes, kind by kind."""
    return StoredSize(*map(sum, zip(StoredSize(), *sizes, strict=True)))


def expected_bits(b_t: jax.Array) -> jax.Array:
    """Bits per weight as a differentiable function of b_t.

    The function is piecewise linear, and exact at the largest b_t of each of `MIXED_FORMATS`: 4
    bits up to 3, 6 at 4, 8 at 5, 12 at 9, and 16 at 16. Between these it is smaller than the stored
    size, since a block takes a whole format.

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
    """Mean bits per sampled weight, `Σ_B n_B · expected_bits(b_t) / Σ_B n_B`, differentiable.

    Scales and tags do not depend on b_t and are left out.

    Args:
      b_t: float32 by path, one per block.
      weights: the number of weights in each block (`weights_per_block`), by the same paths.

    Returns:
      float32 scalar; 0 if nothing is sampled.
    """
    if not b_t:
        return jnp.float32(0)
    bits = sum(jnp.sum(expected_bits(b_t[path]) * jnp.float32(weights[path])) for path in b_t)
    return jnp.asarray(bits / sum(float(weights[path].sum()) for path in b_t))
