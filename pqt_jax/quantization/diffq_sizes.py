# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The stored size of weights that DiffQ has rounded.

bits of a parameter = codes + scales + tags

codes    each weight, in the whole bits of its group
scales   two float32 for each matrix, its minimum and maximum
tags     for each group, an index of its bit-width among those from `min_bits` to `max_bits`: four
         bits for 2 to 15, which is half a bit per weight in groups of eight
"""

import math
from typing import Any

import numpy as np

from pqt_jax.quantization.sizes import StoredSize
from pqt_jax.transform.diffq import Options, bit_width, weights_per_group
from pqt_jax.transform.tree_paths import paths_and_leaves


def diffq_sizes(params: Any, logits: Any, options: Options = Options()) -> dict[str, StoredSize]:
    """The stored size of each quantized parameter, by its path.

    Example:
      >>> import jax.numpy as jnp
      >>> from pqt_jax.transform import diffq
      >>> diffq_sizes({"w": jnp.ones((16, 4))}, {"w": diffq.init("w", (16, 4))})
      {'w': StoredSize(weights=64, codes=512, scales=64, tags=32)}

    Args:
      params: pytree of arrays, or of their shapes.
      logits: nested by the paths of the parameters.
      options: the options of DiffQ.
    """
    shapes, sizes = paths_and_leaves(params), {}
    tag = math.ceil(math.log2(round(options.max_bits) - round(options.min_bits) + 1))
    for path, leaf in paths_and_leaves(logits).items():
        shape = shapes[path].shape
        b = np.round(np.asarray(bit_width(leaf, options))).astype(np.int64)
        codes = int((b * weights_per_group(shape, leaf.shape, options.group)).sum())
        matrices = math.prod(shape[:-2])
        sizes[path] = StoredSize(
            weights=math.prod(shape), codes=codes, scales=64 * matrices, tags=tag * leaf.size
        )
    return sizes
