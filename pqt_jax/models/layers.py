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
from pqt_jax.models.rotary import Rotary, rotate

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


def rms_norm(width: int, config: Any, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMSNorm over the last axis, computed in float32."""
    return nnx.RMSNorm(
        width,
        epsilon=config.norm_eps,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )


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
        out_bias: bool,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        d, width = config.d_model, config.num_heads * config.head_width
        kv_width = config.kv_heads * config.head_width
        self.q = linear(d, width, init, config, bias=bias, rngs=rngs)
        self.k = linear(d, kv_width, init, config, bias=bias, rngs=rngs)
        self.v = linear(d, kv_width, init, config, bias=bias, rngs=rngs)
        self.out = linear(width, d, out_init, config, bias=out_bias, rngs=rngs)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = rms_norm(config.head_width, config, rngs=rngs)
            self.k_norm = rms_norm(config.head_width, config, rngs=rngs)
        self.head_width = config.head_width
        self.rotary = rotary
        self.attention = config.attention

    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """Attention over [batch, T, d_model], with the same shape; softmax in float32.

        With segments, int[batch, T], a token attends only to its own segment. Rotary positions
        count from the start of the window even so: only differences of positions matter, and
        within a segment they are the same. cuDNN reads the mask as a bias, [batch, 1, T, T] in the
        dtype of x, which exists for one layer at a time.
        """
        q, k, v = self._heads(x)
        if self.attention == "splash":
            from pqt_jax.models import splash  # it loads Pallas

            return self.out(splash.attend(q, k, v, segments).reshape(*x.shape[:-1], -1))
        mask = None if segments is None else document_mask.attention_mask(segments)
        # The implementation is never None: JAX would then fall back to XLA without a message.
        y = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=True, implementation=self.attention
        )
        return self.out(y.reshape(*x.shape[:-1], -1))

    def decode(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Attention of new tokens, from position `cache.length` on, to cached and new ones.

        It always uses XLA: cuDNN's causal mask needs whole sequences, but here few queries, often
        one, attend to a cache that is partly empty.

        Args:
          x: [batch, T, d_model].
          cache: the cache of this layer, without the leading axis.

        Returns:
          ([batch, T, d_model], the cache with T more keys and values; its length is unchanged).
        """
        positions = cache.length + jnp.arange(x.shape[1])
        q, k, v = self._heads(x, positions)
        at = (0, cache.length, 0, 0)
        keys = lax.dynamic_update_slice(cache.keys, k, at)
        values = lax.dynamic_update_slice(cache.values, v, at)
        seen = jnp.arange(keys.shape[1]) <= positions[:, None]
        mask = seen[None, None]
        y = jax.nn.dot_product_attention(q, keys, values, mask=mask, implementation="xla")
        y = self.out(y.reshape(*x.shape[:-1], -1))
        return y, cache._replace(keys=keys, values=values)

    def _heads(
        self, x: jax.Array, positions: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, [batch, T, heads, head_width] each; positions for `rotate`."""
        heads = (*x.shape[:-1], -1, self.head_width)
        q, k, v = (layer(x).reshape(heads) for layer in (self.q, self.k, self.v))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = rotate(q, self.rotary, positions), rotate(k, self.rotary, positions)
        return q, k, v


def check_heads(config: Any, *, even: bool) -> None:
    """Raise ValueError unless the heads divide the width (evenly sized, for rotary positions)."""
    if getattr(config, "head_dim", 0):
        if even and config.head_dim % 2:
            raise ValueError(f"head_dim={config.head_dim}; it must be even")
        return
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
