# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Adam-mini: Adam with one second moment per block of a parameter.

    ν_B ← b2·ν_B + (1 − b2)·mean_B(g²)        update = m̂ / (√ν̂_B + eps)

A block is a group of weights of similar curvature: a head of q or k, the weights of one output of
any other layer, one token of an embedding, a norm. The second moments then take almost no memory.

Source: Zhang and others, "Adam-mini: Use Fewer Learning Rates To Gain More", arXiv 2406.16793
(2024).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pqt_jax.transform.tree_paths import map_paths

Blocks = Callable[[str, tuple[int, ...]], tuple[int, ...]]


class AdamMiniState(NamedTuple):
    """State of `scale_by_adam_mini`.

    Attributes:
      count: int32 scalar, the number of updates.
      mu: first moments, like the parameters.
      nu: second moments, float32, one per block: the shape of a parameter over that of its block.
    """

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adam_mini(
    blocks: Blocks, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Scale gradients as Adam-mini does; used in a chain, as `optax.scale_by_adam`.

    Example:
      >>> rows = lambda path, shape: (1, *shape[1:])
      >>> state = scale_by_adam_mini(rows).init({"kernel": jnp.ones((4, 8))})
      >>> state.nu["kernel"].shape
      (4, 1)

    Args:
      blocks: (path of a parameter, its shape) → the length of a block along each axis, which
        divides the length of that axis; see `model_blocks`. Blocks of one element give plain Adam.
      b1, b2: decay rates of the moments.
      eps: added to the root of the second moment.

    Returns:
      A GradientTransformation.

    Raises:
      ValueError: from `init`, for blocks that do not divide their parameter.
    """

    def init(params):
        def zero_per_block(path, leaf):
            return jnp.zeros(_grid(path, leaf.shape, blocks), jnp.float32)

        mu, nu = jax.tree.map(jnp.zeros_like, params), map_paths(zero_per_block, params)
        return AdamMiniState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = jax.tree.map(
            lambda g, nu: b2 * nu + (1 - b2) * _mean_squares(g, nu.shape), updates, state.nu
        )
        mu_correction, nu_correction = 1 - jnp.power(b1, count), 1 - jnp.power(b2, count)

        def scale(m, nu):
            return _divide_blocks(m / mu_correction, jnp.sqrt(nu / nu_correction) + eps)

        updates = jax.tree.map(scale, mu, nu)
        return updates, AdamMiniState(count=jnp.asarray(count), mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def model_blocks(head_width: int) -> Blocks:
    """Return the blocks of this package's GPT2 and Llama2.

    Example:
      >>> blocks = model_blocks(head_width=64)
      >>> blocks("h/attn/q/kernel", (12, 768, 768)), blocks("h/mlp/up/kernel", (12, 768, 3072))
      ((1, 768, 64), (1, 768, 1))

    Args:
      head_width: number of columns of one head in the kernels of q and k.
    """

    def blocks(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        *_, layer, name = path.split("/")
        lead = (1,) if path.startswith("h/") else ()  # layers are stacked
        if name == "bias":
            return (1,) * len(shape)
        if name == "scale":
            return (*lead, shape[-1])
        if name == "embedding":
            return (1, shape[1])
        return (*lead, shape[-2], head_width if layer in ("q", "k") else 1)

    return blocks


def _grid(path: str, shape: tuple[int, ...], blocks: Blocks) -> tuple[int, ...]:
    block = blocks(path, shape)
    if len(block) != len(shape) or any(b < 1 or n % b for n, b in zip(shape, block, strict=True)):
        raise ValueError(f"{path} is {shape}, which blocks of {block} do not divide")
    return tuple(n // b for n, b in zip(shape, block, strict=True))


def _split_axes(x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Split every axis in two: the index of the block, and the index in the block."""
    pairs = zip(grid, x.shape, strict=True)
    return x.reshape([side for n, size in pairs for side in (n, size // n)])


def _mean_squares(g: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """Return the mean of g² over each block."""
    in_block = tuple(range(1, 2 * g.ndim, 2))
    return jnp.mean(jnp.square(_split_axes(g.astype(jnp.float32), grid)), axis=in_block)


def _divide_blocks(m: jax.Array, divisor: jax.Array) -> jax.Array:
    """Divide each block of m by its number."""
    in_block = tuple(range(1, 2 * m.ndim, 2))
    quotient = _split_axes(m, divisor.shape) / jnp.expand_dims(divisor, in_block)
    return quotient.reshape(m.shape).astype(m.dtype)
