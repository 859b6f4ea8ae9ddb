# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Logits and targets → loss: cross-entropy in nats, of every token or as their mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy, `mean(log Σ exp(logits) − logits[target])`, computed in float32.

    Example:
      >>> cross_entropy(jnp.zeros((1, 3, 256)), jnp.zeros((1, 3), jnp.int32)).round(4).item()
      5.545199871063232

    Args:
      logits: float[..., vocabulary].
      targets: int[...].

    Returns:
      float32 scalar, in nats per token.
    """
    return jnp.mean(token_losses(logits, targets))


def chunked_cross_entropy(
    logits_of: Callable[[jax.Array], jax.Array], x: jax.Array, targets: jax.Array, chunk: int
) -> jax.Array:
    """`cross_entropy(logits_of(x), targets)`, of which only a part's logits are ever in memory.

    They are made again in the backward pass: one more product with the output projection.

    Args:
      logits_of: [batch, chunk, d_model] → float[batch, chunk, vocabulary].
      x: [batch, T, d_model].
      targets: int[batch, T].
      chunk: positions at once, a divisor of T.

    Returns:
      float32 scalar, in nats per token.

    Raises:
      ValueError: for a chunk that does not divide T.
    """
    length = targets.shape[1]
    if length % chunk:
        raise ValueError(f"chunk={chunk}; it must divide the sequence length {length}")

    @jax.checkpoint
    def body(total, part):
        x, targets = part
        return total + jnp.sum(token_losses(logits_of(x), targets)), None

    # Along the sequence: a batch that is sharded stays so.
    cut = lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0)  # noqa: E731
    total, _ = lax.scan(body, jnp.zeros((), jnp.float32), (cut(x), cut(targets)))
    return total / targets.size


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
