# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A digest of every array of a state, by which damage to a checkpoint is found and named.

    Σ_i mix(word_i, i) mod 2³², twice, over the elements' bits and their index in the whole array

It is computed where the array is: on any mesh it is the same, since sums of integers are, and no
array is gathered for it. It finds damage, not malice: it is no cryptographic hash.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SEEDS = (0x9E3779B9, 0x7F4A7C15)
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def of(tree: Any) -> dict[str, str]:
    """The digest of every array of a tree.

    Example:
      >>> of({"a": np.arange(3)})
      {"['a']": '06ee268d8337cb6e'}

    Args:
      tree: of arrays of at most 32 bits an element.

    Returns:
      path → sixteen hexadecimal digits.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(_sums([leaf for _, leaf in pairs]))
    digits = ["".join(f"{int(half):08x}" for half in halves) for halves in sums]
    return {jax.tree_util.keystr(path): d for (path, _), d in zip(pairs, digits, strict=True)}


def of_json(value: Any) -> str:
    """The SHA-256 of something that JSON holds, however its fields are ordered."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[list[jax.Array]]:
    return [[_sum(leaf, seed) for seed in _SEEDS] for leaf in leaves]


def _sum(x: jax.Array, seed: int) -> jax.Array:
    word = lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * np.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(_mix(word ^ _mix(index + np.uint32(seed))), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of words after which every bit depends on every bit."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
