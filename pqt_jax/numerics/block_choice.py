# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which blocks are rounded in a step, where a share of them is: key, index → bool.

    counter  (column, row, lead index, 1) of the block's first element
    choice   first word of Philox4x32-10 < max(1, ⌊share · 2^32⌋)

The counters of the noise end with 0, so that no choice shares its words with a draw of R.

Source: to round a random subset of the weights in each step is arXiv 2004.07320 (2020).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pqt_jax.numerics import philox
from pqt_jax.numerics.blocks import Block


def choose_blocks(
    words: jax.Array,
    offset: jax.Array,
    grid: tuple[int, ...],
    block: Block,
    share: float,
) -> jax.Array:
    """Choose each block with a probability, by its global index.

    Example:
      >>> words, origin = jnp.array([1, 2], jnp.uint32), jnp.zeros(3, jnp.uint32)
      >>> chosen = choose_blocks(words, origin, (2, 300, 300), (32, 32), 0.25)
      >>> chosen.shape, round(float(chosen.mean()), 2)
      ((2, 300, 300), 0.25)

    Args:
      words: uint32[2], see `keys.key_words`.
      offset: uint32[3], global (lead, run of 32 rows, column) of the first element.
      grid: (leads, block rows, block columns).
      block: rows and columns of a block.
      share: the probability, from 0 to below 1.

    Returns:
      bool[leads, block rows, block columns].
    """
    lead, row, column = (lax.broadcasted_iota(jnp.uint32, grid, axis) for axis in range(3))
    counter = (
        column * np.uint32(block[1]) + offset[2],
        row * np.uint32(block[0]) + offset[1] * np.uint32(philox.ROWS),
        lead + offset[0],
        jnp.ones_like(lead),
    )
    first, *_ = philox.philox4x32((words[0], words[1]), counter)
    return first < np.uint32(max(1, share * 2**32))
