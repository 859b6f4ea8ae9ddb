# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Causal attention on TPUs by JAX's own kernel, splash attention.

    jax.experimental.pallas.ops.tpu.splash_attention

It keeps no scores. It has a gradient, but no second one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jax.sharding import PartitionSpec as P

from pqt_jax.models import partitioning

_TILE = 128  # queries and keys of a tile; a multiple of it is taken where the length allows it
_TILES = (512, 256, _TILE)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention, with what `jax.nn.dot_product_attention` takes and returns.

    Tokens are added at the end to make whole tiles; no token before them sees them. On a mesh of
    `partitioning`, each device has its sequences and its heads.

    Args:
      q: [batch, T, heads, width].
      k, v: [batch, T, kv_heads, width], of the same dtype.
      segments: int[batch, T]; a token attends only to its own segment. None for one segment.
      interpret: run the kernel in Pallas' interpreter, on any device.

    Returns:
      [batch, T, heads, width], in the dtype of q.
    """
    length, scale = q.shape[1], q.shape[-1] ** -0.5
    extra = -length % _TILE
    q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q * scale, k, v))
    operands = [x.astype(q.dtype).swapaxes(1, 2) for x in (q, k, v)]
    if segments is not None:
        operands.append(jnp.pad(segments, ((0, 0), (0, extra)), mode="edge"))
    local: Any = functools.partial(_attend, interpret)
    sharding = partitioning.attention_sharding(q.shape[0], q.shape[2], k.shape[2])
    if sharding is not None:
        batch, heads = sharding
        of_heads = P(batch, heads, None, None)
        local: Any = jax.shard_map(
            local,
            in_specs=(*[of_heads] * 3, P(batch, None))[: len(operands)],
            out_specs=of_heads,
            check_vma=False,
        )
    return local(*operands).swapaxes(1, 2)[:, :length]


def _attend(interpret: bool, q: Any, k: Any, v: Any, segments: Any = None) -> jax.Array:
    """Attention of whole tiles on one device: q [batch, heads, T, width], scaled."""
    heads, length = q.shape[1:3]
    tile = next(tile for tile in _TILES if length % tile == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": tile for name in names}
    kernel: Any = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([kernels.CausalMask((length, length))] * heads),
        block_sizes=kernels.BlockSizes(**sizes),
        interpret=interpret,
    )
    if segments is None:
        return jax.vmap(kernel)(q, k, v)
    return jax.vmap(kernel)(q, k, v, kernels.SegmentIds(segments, segments))
