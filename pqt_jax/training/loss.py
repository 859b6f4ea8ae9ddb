# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Logits and targets → loss: cross-entropy in nats, of every token or as their mean.

The loss of a batch that is split is the mean of its parts' losses. Where not all targets count,
the sum over a part is divided by the mean number of targets that count in a part.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pqt_jax.models import document_mask


def model_loss(
    graph: nnx.GraphDef,
    params: nnx.State,
    tokens: jax.Array,
    *,
    key: jax.Array | None = None,
    chunk: int = 0,
    end: int | None = None,
    targets_per_part: jax.Array | None = None,
) -> jax.Array:
    """The loss of a model on windows of tokens, or on one part of a batch of windows.

    Args:
      graph: the model's structure.
      params: its parameters.
      tokens: int[B, T + 1].
      key: the step's key, which samples the weights; None for the bare model.
      chunk: positions whose logits are computed at once; 0 for all.
      end: as for `document_mask.make_windows`.
      targets_per_part: mean number of targets that count in a part, from
        `document_mask.count_targets`; None if these are all windows, or all targets count.

    Returns:
      float32 scalar, in nats per token.
    """
    inputs, targets, segments, counted = document_mask.make_windows(tokens, end)
    model = nnx.merge(graph, params)
    if not chunk:
        return cross_entropy(
            model(inputs, segments, pqt_key=key), targets, counted, targets_per_part
        )

    # Merged again inside, since a module belongs to the trace that made it.
    def compute_logits(x):
        return nnx.merge(graph, params).logits(x, pqt_key=key)

    x = model.hidden(inputs, segments, pqt_key=key)
    return chunked_cross_entropy(compute_logits, x, targets, chunk, counted, targets_per_part)


def split_batch(tokens: jax.Array, count: int) -> jax.Array:
    """Split windows [B, T + 1] into parts, [count, B / count, T + 1].

    Window i goes to part i mod count, so that on a mesh no window moves to another device.
    """
    return jnp.moveaxis(tokens.reshape(-1, count, tokens.shape[1]), 1, 0)


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    total: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy, `Σ w · (log Σ exp(logits) − logits[target]) / Σ w`, computed in float32.

    Example:
      >>> cross_entropy(jnp.zeros((1, 3, 256)), jnp.zeros((1, 3), jnp.int32)).round(4).item()
      5.545199871063232

    Args:
      logits: float[..., vocabulary].
      targets: int[...].
      weights: bool or float[...], how much each target counts; None for all alike.
      total: replaces `Σ w` where these targets are one part of a batch; None for `Σ w`.

    Returns:
      float32 scalar, in nats per token; 0 where nothing counts.
    """
    losses = token_losses(logits, targets)
    if weights is None:
        return jnp.mean(losses)
    return _ratio(_weighted_sum(losses, weights), weights, total)


def chunked_cross_entropy(
    compute_logits: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    targets: jax.Array,
    chunk: int,
    weights: jax.Array | None = None,
    total: jax.Array | None = None,
) -> jax.Array:
    """`cross_entropy(compute_logits(x), targets, …)`, with one chunk's logits in memory at a time.

    The backward pass computes them again, which is one more product with the output projection.

    Args:
      compute_logits: [batch, chunk, d_model] → float[batch, chunk, vocabulary].
      x: [batch, T, d_model].
      targets: int[batch, T].
      chunk: positions at once, a divisor of T.
      weights, total: as for `cross_entropy`.

    Returns:
      float32 scalar, in nats per token.

    Raises:
      ValueError: for a chunk that does not divide T.
    """
    length = targets.shape[1]
    if length % chunk:
        raise ValueError(f"chunk={chunk}; it must divide the sequence length {length}")

    @jax.checkpoint
    def body(so_far, part):
        x, targets, weights = part
        return so_far + _weighted_sum(token_losses(compute_logits(x), targets), weights), None

    # Split along the sequence, so that a sharded batch keeps its sharding.
    def split(a):
        return jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0)

    chunks = jax.tree.map(split, (x, targets, weights))
    loss_sum, _ = lax.scan(body, jnp.zeros((), jnp.float32), chunks)
    return loss_sum / targets.size if weights is None else _ratio(loss_sum, weights, total)


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of every token, `log Σ exp(logits) − logits[target]`, computed in float32.

    Args:
      logits: float[..., vocabulary].
      targets: int[...].

    Returns:
      float32 of the shape of targets, in nats.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _weighted_sum(losses: jax.Array, weights: jax.Array | None) -> jax.Array:
    return jnp.sum(losses if weights is None else losses * weights.astype(jnp.float32))


def _ratio(loss_sum: jax.Array, weights: jax.Array, total: jax.Array | None) -> jax.Array:
    total = jnp.sum(weights, dtype=jnp.float32) if total is None else total
    return loss_sum / jnp.where(total > 0, total, 1)
