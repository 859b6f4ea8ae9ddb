# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What the two models share: linear layers, the embedding and attention.

Kernels are [in, out]. Parameters are kept in `param_dtype` and cast where they are used, so the
shapes and paths below are also those of checkpoints and of rules:

    embed/embedding   h/attn/{q,k,v,out}/kernel   h/mlp/{gate,up,down}/kernel   head/kernel

where everything under `h` has a leading axis that numbers the layers (`stacked`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pqt_jax.models import document_mask, partitioning
from pqt_jax.models.cache import Cache

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


def normal(std: float | jax.Array) -> Initializer:
    """An initializer N(0, std²); std may be traced, so that it can depend on the layer."""
    return lambda key, shape, dtype=jnp.float32: std * jax.random.normal(key, shape, dtype)


def truncated_normal(std: float, cut: float) -> Initializer:
    """An initializer N(0, std²) cut off at ±cut·std."""

    def init(key, shape, dtype=jnp.float32):
        return std * jax.random.truncated_normal(key, -cut, cut, shape, dtype)

    return init


class Embed(nnx.Module):
    """A table of vectors, read by token; the same table can serve as the output projection.

    Rows are taken before they are cast: the gradient then adds up in the parameter's own dtype.
    """

    def __init__(self, size: int, width: int, init: Initializer, config: Any, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(init(rngs.params(), (size, width), config.param_dtype))
        self.dtype = config.dtype

    def __call__(self, x: jax.Array, *, project: bool = False) -> jax.Array:
        """int32[...] tokens → [..., width]; with `project`, [..., width] → float32[..., size]."""
        table = self.embedding[...]
        if project:
            table = table.astype(self.dtype)
            return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
        return jnp.take(partitioning.gather_rows(table), x, axis=0).astype(self.dtype)


class Head(nnx.Module):
    """The untied output projection: [..., in] → float32[..., out]."""

    def __init__(self, width: int, size: int, init: Initializer, config: Any, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs.params(), (width, size), config.param_dtype))
        self.dtype = config.dtype
        self.dot_general = lax.dot_general  # as in `nnx.Linear`, for who puts another there

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits, accumulated in float32."""
        kernel, axes = self.kernel[...].astype(self.dtype), (((x.ndim - 1,), (0,)), ((), ()))
        return self.dot_general(x, kernel, axes, preferred_element_type=jnp.float32)


def linear(
    width: int, out: int, init: Initializer, config: Any, *, bias: bool = False, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer with the dtypes of the config, without bias unless asked."""
    return nnx.Linear(
        width,
        out,
        use_bias=bias,
        kernel_init=init,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )


def rotary(x: jax.Array, theta: float, positions: jax.Array | None = None) -> jax.Array:
    """Rotary position embedding of queries or keys.

    Component i turns with component i + dim/2, the order of Hugging Face checkpoints (the original
    one pairs neighbours; the two differ by a permutation of the columns of q and k).

    Args:
      x: [batch, T, heads, dim], dim even.
      theta: base of the wavelengths.
      positions: int32[T]; None for 0 … T − 1.

    Returns:
      The shape and dtype of x; angles are computed in float32.

    Source: Su et al., arXiv 2104.09864 (2021).
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if positions is None:
        positions = jnp.arange(x.shape[1], dtype=jnp.float32)
    angle = positions.astype(jnp.float32)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention with separate q, k, v kernels.

    Separate, also for GPT-2, whose original fuses them: an export concatenates three kernels where
    an import would have to cut one, and an optimizer that treats q and k by head but v by row (as
    Adam-mini does) can tell them apart by their paths.
    """

    def __init__(
        self,
        config: Any,
        init: Initializer,
        out_init: Initializer,
        *,
        bias: bool,
        rngs: nnx.Rngs,
    ):
        width = config.d_model
        kv_width = width // config.num_heads * config.kv_heads
        self.q = linear(width, width, init, config, bias=bias, rngs=rngs)
        self.k = linear(width, kv_width, init, config, bias=bias, rngs=rngs)
        self.v = linear(width, kv_width, init, config, bias=bias, rngs=rngs)
        self.out = linear(width, width, out_init, config, bias=bias, rngs=rngs)
        self.head_width = width // config.num_heads
        self.attention = config.attention

    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array | None = None,
        *,
        rope_theta: float | None = None,
    ) -> jax.Array:
        """[batch, T, d_model] → the same; softmax in float32.

        With segments, int[batch, T], tokens see those of their own alone. Rotary positions go on
        through all of them: only distances count, and these are the same. cuDNN takes the mask
        as a bias that it reads, [batch, 1, T, T] in the dtype of x, one layer's at a time.
        """
        q, k, v = self._heads(x)
        if rope_theta is not None:
            q, k = rotary(q, rope_theta), rotary(k, rope_theta)
        mask = None if segments is None else document_mask.attention_mask(segments)
        # Never None, with which JAX would fall back to XLA without a word: see `attention`.
        y = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=True, implementation=self.attention
        )
        return self.out(y.reshape(x.shape))

    def decode(
        self, x: jax.Array, cache: Cache, *, rope_theta: float | None = None
    ) -> tuple[jax.Array, Cache]:
        """The same for positions `cache.length` and on, which see the cached ones before them.

        By XLA whatever `config.attention` says: cuDNN's causal mask takes whole sequences, and here
        are few queries, often one, on a cache that is partly empty.

        Args:
          x: [batch, T, d_model].
          cache: of this layer, without the leading axis.
          rope_theta: as in a call.

        Returns:
          ([batch, T, d_model], the cache with T more keys and values; its length is unchanged).
        """
        q, k, v = self._heads(x)
        positions = cache.length + jnp.arange(x.shape[1])
        if rope_theta is not None:
            q, k = rotary(q, rope_theta, positions), rotary(k, rope_theta, positions)
        at = (0, cache.length, 0, 0)
        keys = lax.dynamic_update_slice(cache.keys, k, at)
        values = lax.dynamic_update_slice(cache.values, v, at)
        seen = jnp.arange(keys.shape[1]) <= positions[:, None]
        mask = seen[None, None]
        y = jax.nn.dot_product_attention(q, keys, values, mask=mask, implementation="xla")
        return self.out(y.reshape(x.shape)), cache._replace(keys=keys, values=values)

    def _heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, [batch, T, heads, head_width] each."""
        heads = (*x.shape[:-1], -1, self.head_width)
        q, k, v = (layer(x).reshape(heads) for layer in (self.q, self.k, self.v))
        return q, k, v


def check_heads(config: Any, *, even: bool) -> None:
    """Raise ValueError unless the heads divide the width (evenly sized, for rotary positions)."""
    width, rest = divmod(config.d_model, config.num_heads)
    if rest or (even and width % 2):
        raise ValueError(
            f"num_heads={config.num_heads} does not fit d_model={config.d_model}; it must divide it"
            + (" into heads of even size" if even else "")
        )


def check_length(tokens: jax.Array, config: Any) -> None:
    """Raise ValueError for sequences longer than `max_length`."""
    if tokens.shape[1] > config.max_length:
        raise ValueError(f"sequences of {tokens.shape[1]} tokens; max_length={config.max_length}")
