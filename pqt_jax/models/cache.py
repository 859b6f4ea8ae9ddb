# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The key-value cache of a model: keys and values of the tokens that it has read.

    cache = model.init_cache(batch)
    logits, cache = model.decode(prompt, cache)      any number of tokens at once,
    logits, cache = model.decode(token, cache)       or one

Decoding uses the model's weights as they are, without sampling. All rows have the same length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.core import Tracer


class Cache(NamedTuple):
    """Keys and values of the tokens read so far.

    Attributes:
      keys: [layers, batch, capacity, kv_heads, head_width], in the model's dtype. With rotary
        positions the rotation has been applied. Entries beyond `length` are never read.
      values: the same shape.
      length: int32 scalar, the number of tokens read.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def empty_cache(config: Any, batch: int, capacity: int | None) -> Cache:
    """An empty cache.

    Args:
      config: the model's configuration.
      batch: number of rows.
      capacity: the number of tokens that fit; None for `config.max_length`.

    Returns:
      A cache of length 0.

    Raises:
      ValueError: if the capacity is not positive or exceeds `config.max_length`.
    """
    capacity = int(config.max_length if capacity is None else capacity)
    if not 0 < capacity <= config.max_length:
        raise ValueError(f"capacity={capacity}; it must be from 1 to {config.max_length=}")
    shape = (config.num_layers, batch, capacity, config.kv_heads, config.head_width)
    empty = jnp.zeros(shape, config.dtype)
    return Cache(empty, empty, jnp.zeros((), jnp.int32))


def check_room(tokens: jax.Array, cache: Cache) -> None:
    """Raise ValueError if tokens do not fit into a cache.

    Inside `jax.jit` the number of cached tokens is not known; it then counts as 0.
    """
    batch, capacity = cache.keys.shape[1:3]
    length = 0 if isinstance(cache.length, Tracer) else int(cache.length)
    if tokens.shape[0] != batch:
        raise ValueError(f"tokens have {tokens.shape[0]} rows, and the cache {batch}")
    if length + tokens.shape[1] > capacity:
        raise ValueError(
            f"the cache holds {length} of {capacity} tokens; {tokens.shape[1]} more do not fit"
        )


def scan_with_cache(blocks: Any, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Decode with stacked blocks, one after the other; each has its own slice of the cache.

    Args:
      blocks: from `decoder.stack_blocks`.
      x: [batch, T, d_model], the embedded tokens from position `cache.length` on.
      cache: the cache of the tokens before them.

    Returns:
      The output, [batch, T, d_model], and the cache with T more tokens.
    """
    graph, state = nnx.split(blocks)

    def body(x, layer):
        state, keys, values = layer
        x, new = nnx.merge(graph, state).decode(x, Cache(keys, values, cache.length))
        return x, (new.keys, new.values)

    count = x.shape[1]
    x, (keys, values) = lax.scan(body, x, (state, cache.keys, cache.values))
    return x, Cache(keys, values, cache.length + count)


def spoil_overflow(logits: jax.Array, cache: Cache) -> jax.Array:
    """Replace the logits by NaN if the cache has overflowed.

    `check_room` refuses an overflow where the length is known. Inside `jax.jit` it is not known,
    and NaN shows the error where wrong logits would hide it.
    """
    return jnp.where(cache.length <= cache.keys.shape[2], logits, jnp.nan)
