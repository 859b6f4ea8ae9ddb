# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Keys as a pure function of (seed, step, path): nothing about randomness needs to be saved.

    key(seed, step, path) = fold_in(fold_in(key(seed), step), crc32(path))

Folding in the path, and not a position in the tree, means that adding or removing a parameter
changes no other parameter's noise.
"""

import zlib

import jax
import jax.numpy as jnp


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key of one training step, `fold_in(key, step)`.

    Args:
      key: the run's key; not consumed.
      step: integer, possibly traced.

    Returns:
      A key, to be given to `ParamTransform.sample`.
    """
    return jax.random.fold_in(key, step)


def path_id(path: str) -> int:
    """The 32-bit number that stands for a parameter path, its CRC-32.

    Example:
      >>> path_id("h/attn/q/kernel")
      1388894393
    """
    return zlib.crc32(path.encode())


def param_key(key: jax.Array, path: str) -> jax.Array:
    """The key of one parameter, `fold_in(key, crc32(path))`.

    Args:
      key: the step's key; not consumed.
      path: the `/`-joined parameter path.

    Returns:
      A key, to be given to `perturb`.
    """
    return jax.random.fold_in(key, path_id(path))


def key_words(key: jax.Array) -> jax.Array:
    """The two uint32 words of a threefry key, which are the key of the noise stream.

    Args:
      key: a scalar typed key (`jax.random.key`) or a raw one (`uint32[2]`).

    Returns:
      uint32[2].

    Raises:
      TypeError: for anything else, with what to pass instead.
    """
    if key is None:
        raise TypeError("key is None; sampling needs a key, for example jax.random.key(0)")
    if not hasattr(key, "dtype"):
        raise TypeError(f"key is a {type(key).__name__}; pass jax.random.key(seed)")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if jax.config.jax_debug_key_reuse:  # pyright: ignore[reportAttributeAccessIssue]
            jax.random.bits(key)  # tells JAX's checker that the key is used up; dead code else
        words = jax.random.key_data(key)
    else:
        words = key
    if words.shape != (2,) or words.dtype != jnp.uint32:
        raise TypeError(
            f"key has dtype {key.dtype} and shape {key.shape}; the noise stream needs one threefry "
            "key of two uint32 words: jax.random.key(seed, impl='threefry2x32')"
        )
    return words
