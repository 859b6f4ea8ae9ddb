# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rotary positions: pairs of components of queries and keys are turned by their position.

    angle = position · frequency_i        frequency_i = theta^(−i / half),  i = 0 … half − 1

A model that was trained on short sequences reads longer ones if the frequencies are scaled:

    none      frequency
    linear    frequency / factor
    llama3    frequency · (s + (1 − s) / factor), where s goes from 0 to 1 as the number of turns in
              `original_length` tokens goes from `low_freq_factor` to `high_freq_factor`

Sources: Su et al., arXiv 2104.09864 (2021); linear: Chen et al., arXiv 2306.15595 (2023); llama3:
the configuration of Llama 3.1 (2024).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Scaling = Literal["none", "linear", "llama3"]


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How positions turn queries and keys.

    Attributes:
      theta: base of the wavelengths.
      scaling: how the frequencies are scaled.
      factor: what linear divides all frequencies by, and llama3 the low ones.
      low_freq_factor, high_freq_factor: turns in `original_length` tokens, the limits of llama3.
      original_length: number of tokens in a sequence before llama3 was applied.
    """

    theta: float
    scaling: Scaling = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


def frequencies(rotary: Rotary, half: int) -> jax.Array:
    """The angle by which each pair of components turns from one position to the next.

    Example:
      >>> frequencies(Rotary(16.0, "linear", factor=4.0), half=2).tolist()
      [0.25, 0.0625]

    Args:
      rotary: base and scaling.
      half: number of pairs, half the width of a head.

    Returns:
      float32[half], in radians.
    """
    frequency = rotary.theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rotary.scaling == "linear":
        return frequency / rotary.factor
    if rotary.scaling == "llama3":
        low, high = rotary.low_freq_factor, rotary.high_freq_factor
        turns = rotary.original_length / (2 * jnp.pi) * frequency
        share = jnp.clip((turns - low) / (high - low), 0, 1)
        return frequency * share + frequency * (1 - share) / rotary.factor
    return frequency


def rotate(x: jax.Array, rotary: Rotary, positions: jax.Array | None = None) -> jax.Array:
    """Turn queries or keys by their positions.

    Component i is rotated together with component i + dim/2, as in Hugging Face checkpoints. The
    paper pairs neighbours instead; the two differ by a permutation of the columns of q and k.

    Args:
      x: [batch, T, heads, dim], dim even.
      rotary: base and scaling of the frequencies.
      positions: int32[T]; None for 0 … T − 1.

    Returns:
      The shape and dtype of x; angles are computed in float32.
    """
    if positions is None:
        positions = jnp.arange(x.shape[1], dtype=jnp.float32)
    frequency = frequencies(rotary, x.shape[-1] // 2)
    angle = positions.astype(jnp.float32)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
