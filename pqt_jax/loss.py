# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Logits and targets → loss: cross-entropy in nats, of every token or as their mean."""

import jax
import jax.numpy as jnp


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
