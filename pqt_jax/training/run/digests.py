# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A digest of each array of a state, by which damage to a checkpoint is detected.

    Σ_i mix(word_i, i) mod 2³², for two seeds, over the bits word_i of element i of the whole array

It is computed on the devices of the array, and no array is gathered. A sum of integers does not
depend on its order, so the digest is the same on any mesh. Arrays on one CPU are summed by NumPy,
on all its cores, without compilation. The digest detects damage, not forgery: it is not a
cryptographic hash.
"""

import functools
import hashlib
import json
import os
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SEEDS = (0x9E3779B9, 0x7F4A7C15)
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_CHUNK = 2**18  # number of elements that NumPy sums at a time, to stay in the cache


def array_digests(tree: Any) -> dict[str, str]:
    """Compute the digest of each array of a tree.

    Example:
      >>> array_digests({"a": np.arange(3)})
      {"['a']": '06ee268d8337cb6e'}

    Args:
      tree: arrays of at most 32 bits per element.

    Returns:
      path → 16 hexadecimal digits.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    leaves = [leaf for _, leaf in pairs]
    sums = _sums_on_host(leaves) if all(map(_is_on_host, leaves)) else jax.device_get(_sums(leaves))
    digits = ["".join(f"{int(half):08x}" for half in halves) for halves in sums]
    return {jax.tree_util.keystr(path): d for (path, _), d in zip(pairs, digits, strict=True)}


def json_digest(value: Any) -> str:
    """The SHA-256 of a value as JSON, whatever the order of its fields."""
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


def _is_on_host(x: Any) -> bool:
    if isinstance(x, jax.Array):
        return len(x.devices()) == 1 and next(iter(x.devices())).platform == "cpu"
    return True


def _sums_on_host(leaves: list[Any]) -> list[list[int]]:
    # NumPy lets other threads run while it computes.
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = []
        for leaf in leaves:
            words = np.ravel(leaf)
            # as JAX has it
            words = words.astype(jax.dtypes.canonicalize_dtype(words.dtype), copy=False)
            words = words.view(_WORDS[words.dtype.itemsize])
            starts = range(0, words.size, _CHUNK)
            run = map if len(starts) < 2 else pool.map
            pieces = run(functools.partial(_sum_piece, words), starts)
            sums.append([sum(halves) % 2**32 for halves in zip([0, 0], *pieces, strict=True)])
        return sums


def _sum_piece(words: np.ndarray, start: int) -> list[int]:
    piece = words[start : start + _CHUNK].astype(np.uint32, copy=False)
    index = np.arange(start, start + piece.size).astype(np.uint32)  # modulo 2³²
    mixed = (_mix(piece ^ _mix(index + np.uint32(seed))) for seed in _SEEDS)
    return [int(x.sum(dtype=np.uint32)) for x in mixed]


def _mix(x: Any) -> Any:
    """A bijection of 32-bit words in which each output bit depends on all input bits."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
