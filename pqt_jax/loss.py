# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Logits and targets → loss: cross-entropy in nats per token."""

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
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)
