# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Logits and targets → loss: cross-entropy in nats, of every token or as their mean.

The mean over all windows is taken part by part, `of_model` of each and then the mean of those.
Where targets do not all count, each part divides by what counts in one on average.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pqt_jax.models import document_mask


def of_model(
    graph: nnx.GraphDef,
    params: nnx.State,
    tokens: jax.Array,
    *,
    key: jax.Array | None = None,
    chunk: int = 0,
    end: int | None = None,
    each: jax.Array | None = None,
) -> jax.Array:
    """The loss of a model on some windows, or on a part of them.

    Args:
      graph: the model's structure.
      params: its parameters.
      tokens: int[B, T + 1].
      key: that samples the weights; None for the bare model.
      chunk: positions whose logits are made at once; 0 for all.
      end: as for `document_mask.window`.
      each: of a part, how many targets count in one on average, from `document_mask.count`.

    Returns:
      float32 scalar, in nats per token.
    """
    inputs, targets, of, counted = document_mask.window(tokens, end)
    model = nnx.merge(graph, params)
    if not chunk:
        return cross_entropy(model(inputs, of, pqt_key=key), targets, counted, each)
    # Merged again inside, since a module belongs to the trace that made it.
    logits_of = lambda x: nnx.merge(graph, params).logits(x, pqt_key=key)  # noqa: E731
    x = model.hidden(inputs, of, pqt_key=key)
    return chunked_cross_entropy(logits_of, x, targets, chunk, counted, each)


def parts_of(tokens: jax.Array, count: int) -> jax.Array:
    """Windows [B, T + 1] as so many parts, [count, B / count, T + 1].

    Window i goes to part i mod count: on a mesh every device keeps its share of each part.
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
      total: what stands for `Σ w`, where these targets are a part of those that the mean is over.

    Returns:
      float32 scalar, in nats per token; 0 where nothing counts.
    """
    losses = token_losses(logits, targets)
    if weights is None:
        return jnp.mean(losses)
    return _ratio(_weighted_sum(losses, weights), weights, total)


def chunked_cross_entropy(
    logits_of: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    targets: jax.Array,
    chunk: int,
    weights: jax.Array | None = None,
    total: jax.Array | None = None,
) -> jax.Array:
    """`cross_entropy(logits_of(x), targets, …)`, of which only a part's logits are ever in memory.

    They are made again in the backward pass: one more product with the output projection.

    Args:
      logits_of: [batch, chunk, d_model] → float[batch, chunk, vocabulary].
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
        return so_far + _weighted_sum(token_losses(logits_of(x), targets), weights), None

    # Along the sequence: a batch that is sharded stays so.
    cut = lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0)  # noqa: E731
    parts = jax.tree.map(cut, (x, targets, weights))
    found, _ = lax.scan(body, jnp.zeros((), jnp.float32), parts)
    return found / targets.size if weights is None else _ratio(found, weights, total)


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


def _ratio(found: jax.Array, weights: jax.Array, total: jax.Array | None) -> jax.Array:
    total = jnp.sum(weights, dtype=jnp.float32) if total is None else total
    return found / jnp.where(total > 0, total, 1)
