# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Keys as a pure function of (seed, step, path): a checkpoint need not store random state.

    key(seed, step, path) = fold_in(fold_in(key(seed), step), crc32(path))

The path is folded in, and not a position in the tree. Adding or removing a parameter therefore does
not change the noise of the others.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Return the key of one training step, `fold_in(key, step)`.

    Args:
      key: the key of the run; not consumed.
      step: integer, possibly traced.

    Returns:
      A key for `ParamTransform.sample`.

    Raises:
      TypeError: for a step that is no integer, and as `check_key`.
    """
    if not jnp.issubdtype(jnp.result_type(step), jnp.integer):
        raise TypeError(f"step={step!r}; it must be an integer")
    return jax.random.fold_in(check_key(key), step)


def path_id(path: str) -> int:
    """Return the CRC-32 of a parameter path.

    Example:
      >>> path_id("h/attn/q/kernel")
      1547650126
    """
    return zlib.crc32(path.encode())


def param_key(key: jax.Array, path: str) -> jax.Array:
    """Return the key of one parameter, `fold_in(key, crc32(path))`.

    Args:
      key: the key of the step; not consumed.
      path: the `/`-joined parameter path.

    Returns:
      A key for `perturb`.
    """
    return jax.random.fold_in(check_key(key), path_id(path))


def param_words(key: jax.Array, paths: Sequence[str]) -> dict[str, jax.Array]:
    """Return `key_words(param_key(key, path))` of many parameters, by one operation.

    Example:
      >>> key = jax.random.key(0)
      >>> words = param_words(key, ["a/kernel", "b/kernel"])
      >>> bool((words["b/kernel"] == key_words(param_key(key, "b/kernel"))).all())
      True

    Args:
      key: the key of the step; not consumed.
      paths: the paths of the parameters.

    Returns:
      path → uint32[2].
    """
    if not paths:
        return {}
    ids = jnp.array([path_id(path) for path in paths], jnp.uint32)
    of_paths = jax.vmap(functools.partial(jax.random.fold_in, check_key(key)))(ids)
    words = of_paths if of_paths.dtype == jnp.uint32 else jax.random.key_data(of_paths)
    return dict(zip(paths, words, strict=True))


def check_key(key: Any) -> jax.Array:
    """Return the key, if the noise stream supports it.

    Args:
      key: a scalar typed threefry key (`jax.random.key`), or a raw one (`uint32[2]`).

    Raises:
      TypeError: for anything else; the message says what to pass.
    """
    if key is None:
        raise TypeError("key is None; sampling needs a key, for example jax.random.key(0)")
    if not isinstance(key, jax.Array):
        raise TypeError(f"key is of type {type(key).__name__}; pass jax.random.key(seed)")
    raw = key.dtype == jnp.uint32 and key.shape == (2,)
    typed = str(key.dtype) == "key<fry>" and key.shape == ()
    if not (raw or typed):
        raise TypeError(
            f"key has dtype {key.dtype} and shape {key.shape}; the noise stream needs one threefry "
            "key: jax.random.key(seed, impl='threefry2x32')"
        )
    return key


def consume(key: jax.Array) -> None:
    """Mark a key as used for JAX's checker of key reuse (`jax.debug_key_reuse(True)`)."""
    if jax.config.jax_debug_key_reuse:  # pyright: ignore[reportAttributeAccessIssue]
        jax.random.bits(key)  # the checker counts this use; the result is not needed


def key_words(key: Any) -> jax.Array:
    """Return the two uint32 words of a key, which are the Philox key of the noise stream.

    Args:
      key: as for `check_key`; consumed.

    Returns:
      uint32[2].

    Raises:
      TypeError: as `check_key` does.
    """
    key = check_key(key)
    consume(key)
    return key if key.dtype == jnp.uint32 else jax.random.key_data(key)
