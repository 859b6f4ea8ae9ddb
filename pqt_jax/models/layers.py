# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The layers of both models: linear layers, the embedding and attention.

Kernels are [in, out]. Parameters are stored in `param_dtype` and cast where they are used.
Checkpoints and rules use these paths:

    embed/embedding   h/attn/{q,k,v,out}/kernel   h/mlp/{gate,up,down}/kernel   head/kernel

Parameters under `h` have a leading axis over the layers (`decoder`).
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
    """An initializer N(0, std²). `std` may be a traced value, for example of the layer's index."""
    return lambda key, shape, dtype=jnp.float32: std * jax.random.normal(key, shape, dtype)


def truncated_normal(std: float, bound: float) -> Initializer:
    """An initializer N(0, std²) truncated at ±bound·std."""

    def init(key, shape, dtype=jnp.float32):
        return std * jax.random.truncated_normal(key, -bound, bound, shape, dtype)

    return init


class Embed(nnx.Module):
    """A table with one vector per token; the same table can serve as the output projection.

    Rows are looked up before they are cast, so gradients are summed in the parameter's dtype.
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
        self.dot_general = lax.dot_general  # can be replaced, as in `nnx.Linear`

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits, accumulated in float32."""
        kernel, axes = self.kernel[...].astype(self.dtype), (((x.ndim - 1,), (0,)), ((), ()))
        return self.dot_general(x, kernel, axes, preferred_element_type=jnp.float32)


def linear(
    width: int, out: int, init: Initializer, config: Any, *, bias: bool = False, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer with the dtypes of the config; without a bias by default."""
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

    Component i is rotated together with component i + dim/2, as in Hugging Face checkpoints. The
    paper pairs neighbours instead; the two differ by a permutation of the columns of q and k.

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

    The original GPT-2 has one fused kernel. Separate kernels have their own paths, so an optimizer
    can treat q and k by head but v by row, as Adam-mini does. An export concatenates the kernels,
    and an import splits the fused one.
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
        """Attention over [batch, T, d_model], with the same shape; softmax in float32.

        With segments, int[batch, T], a token attends only to its own segment. Rotary positions
        count from the start of the window even so: only differences of positions matter, and
        within a segment they are the same. cuDNN reads the mask as a bias, [batch, 1, T, T] in the
        dtype of x, which exists for one layer at a time.
        """
        q, k, v = self._heads(x)
        if rope_theta is not None:
            q, k = rotary(q, rope_theta), rotary(k, rope_theta)
        mask = None if segments is None else document_mask.attention_mask(segments)
        # The implementation is never None: JAX would then fall back to XLA without a message.
        y = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=True, implementation=self.attention
        )
        return self.out(y.reshape(x.shape))

    def decode(
        self, x: jax.Array, cache: Cache, *, rope_theta: float | None = None
    ) -> tuple[jax.Array, Cache]:
        """Attention of new tokens, from position `cache.length` on, to cached and new ones.

        It always uses XLA: cuDNN's causal mask needs whole sequences, but here few queries, often
        one, attend to a cache that is partly empty.

        Args:
          x: [batch, T, d_model].
          cache: the cache of this layer, without the leading axis.
          rope_theta: base of the rotary wavelengths; None without rotary positions.

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
