# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Deterministic quantization: to one format, or block by block by the learned bit-widths.

A block of bit-width b_t goes to the smallest of E2M1, E3M2, E4M3, E4M7 and BF16 whose
`noise_bits = m + 2` is at least b_t: the format whose rounding its training has stood for.

    b_t up to   3     4     5     9     more
    format      E2M1  E3M2  E4M3  E4M7  BF16
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pqt_jax import blocks, sharding
from pqt_jax.formats import BF16, E2M1, E3M2, E4M3, E4M7, FloatFormat, as_format
from pqt_jax.reference import cast_blocks
from pqt_jax.rules import Rule, check_rules, map_paths, paths_and_leaves, resolve
from pqt_jax.spec import Spec

LADDER: tuple[FloatFormat, ...] = (E2M1, E3M2, E4M3, E4M7, BF16)


def format_index(b_t: jax.Array) -> jax.Array:
    """Which format of `LADDER` carries each bit-width.

    Example:
      >>> [LADDER[i].name for i in format_index(jnp.array([3.0, 4.5, 6.0, 12.0]))]
      ['E2M1', 'E4M3', 'E4M7', 'BF16']

    Args:
      b_t: float32, in bits.

    Returns:
      int32 of the same shape, an index into `LADDER`.
    """
    limits = [fmt.noise_bits for fmt in LADDER[:-1]]
    return jnp.sum(jnp.stack([b_t > limit for limit in limits]), axis=0, dtype=jnp.int32)


def quantize_mixed(w: jax.Array, b_t: jax.Array, spec: Spec) -> jax.Array:
    """Round each block of a parameter to the format that its bit-width calls for.

    Args:
      w: float32 or bfloat16 parameter.
      b_t: float32, one per block.
      spec: block, scale rule and matrix axes are taken from it.

    Returns:
      w's shape, bfloat16: every format of `LADDER` fits it.

    Raises:
      ValueError: for a b_t of the wrong shape.
    """
    blocks.check_grid(b_t, w, spec.block, spec.matrix_axes)
    matrices = w.reshape(blocks.matrix_shape(w.shape, spec.matrix_axes))
    index = format_index(b_t).reshape(matrices.shape[0], *b_t.shape[-2:])

    def mixed(matrices, index):
        _, m, n = matrices.shape
        index = blocks.spread(index, spec.block)[:, :m, :n]
        out = cast_blocks(dataclasses.replace(spec, dtype=LADDER[-1]), matrices)
        for i, fmt in enumerate(LADDER[:-1]):
            rounded = cast_blocks(dataclasses.replace(spec, dtype=fmt), matrices)
            out = jnp.where(index == i, rounded, out)
        return out

    return sharding.over_blocks(mixed, spec.block, matrices, index).reshape(w.shape)


def quantize(params: Any, rules: Sequence[Rule], dtype: Any) -> Any:
    """Round every parameter that a rule samples to one format, block-scaled.

    Example:
      >>> params = {"kernel": jnp.full((32, 32), 0.7), "bias": jnp.zeros(32)}
      >>> quantize(params, [Rule(".*kernel")], "float4_e2m1fn")["kernel"][0, 0].item()
      0.75

    Args:
      params: pytree of arrays.
      rules: as for `param_transform`; block, scale and matrix axes are taken from them.
      dtype: bfloat16, or any format.

    Returns:
      The same pytree; rounded parameters in the dtype that holds the format (bfloat16 or float32).
    """
    rules, fmt = check_rules(rules), as_format(dtype)
    specs = resolve(rules, paths_and_leaves(params))

    def visit(path, w):
        spec = specs.get(path)
        if spec is None:
            return w
        matrices = w.reshape(blocks.matrix_shape(w.shape, spec.matrix_axes))
        return cast_blocks(dataclasses.replace(spec, dtype=fmt), matrices).reshape(w.shape)

    return map_paths(visit, params)
