# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rounding of one parameter without noise: to one format, or to one format per block.

w, spec              → ŵ   every block in the format of the spec
w, spec, index       → ŵ   each block in the format `MIXED_FORMATS[index]`
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pqt_jax.numerics import blocks, partition
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, format_index
from pqt_jax.numerics.reference import cast_blocks
from pqt_jax.numerics.spec import Spec


class FormatAssignment(NamedTuple):
    """The format, or the formats, that one parameter is rounded to.

    Attributes:
      spec: format, block, scale rule and matrix axes; its noise is "none".
      index: int32, one per block (`blocks.grid_shape`), an index into `MIXED_FORMATS` that replaces
        the format of the spec; None where every block has the format of the spec.
    """

    spec: Spec
    index: jax.Array | None = None


def check_finite(path: str, w: jax.Array | np.ndarray) -> None:
    """Refuse weights that are Inf or NaN: a block's scale, and so its other weights, become NaN.

    Args:
      path: name of the parameter, for the message.
      w: its weights. Traced ones are passed over, since they are unknown.

    Raises:
      ValueError: if a weight is not finite.
    """
    xp: Any = np if isinstance(w, np.ndarray) else jnp  # what is on the host stays there
    if isinstance(w, Tracer) or not (count := int(xp.sum(~xp.isfinite(w)))):
        return
    raise ValueError(
        f"{path}: {count} of {w.size} weights are Inf or NaN, and rounding would make their whole "
        "blocks NaN; give finite weights, such as those of a checkpoint before training diverged"
    )


def round_parameter(w: jax.Array, assignment: FormatAssignment) -> jax.Array:
    """Round one parameter to its assigned formats, block-scaled.

    Args:
      w: float32 or bfloat16 parameter.
      assignment: the formats.

    Returns:
      w's shape, in the dtype `spec.storage`; bfloat16 where blocks have formats of their own. A
      block that has a scale and a weight that is Inf or NaN becomes NaN.
    """
    spec, index = assignment.spec.fitted(w.shape), assignment.index
    matrices = partition.as_matrices(w, spec.matrix_axes)
    if index is None:
        return partition.from_matrices(cast_blocks(spec, matrices), w, spec.matrix_axes)

    def round_each_block(matrices, index):
        _, m, n = matrices.shape
        index = blocks.spread(index, spec.block)[:, :m, :n]
        out = cast_blocks(dataclasses.replace(spec, dtype=MIXED_FORMATS[-1]), matrices)
        for i, fmt in enumerate(MIXED_FORMATS[:-1]):
            rounded = cast_blocks(dataclasses.replace(spec, dtype=fmt), matrices)
            out = jnp.where(index == i, rounded, out)
        return out

    rounded = partition.map_blocks(
        round_each_block, spec.block, matrices, partition.as_matrices(index, (1, 1))
    )
    return partition.from_matrices(rounded, w, spec.matrix_axes)


def quantize_mixed(w: jax.Array, b_t: jax.Array, spec: Spec) -> jax.Array:
    """Round each block of a parameter to the smallest format that carries its bit-width.

    Args:
      w: float32 or bfloat16 parameter.
      b_t: float32, one per block, in bits.
      spec: gives the block, the scale rule and the matrix axes.

    Returns:
      w's shape, bfloat16, which holds the values of every format in `MIXED_FORMATS`.

    Raises:
      ValueError: for a b_t of the wrong shape.
    """
    blocks.check_grid(b_t, w, spec.block, spec.matrix_axes)
    without_noise = dataclasses.replace(spec, noise="none")
    return round_parameter(w, FormatAssignment(without_noise, format_index(b_t)))
