# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Optimizers: weights and bit-widths as two groups of one optax transformation.

    weights   AdamW or Adam-mini, clipped by their own global norm; decay on matrices alone
    bits      AdamW with a learning rate of their own; decay of b_i towards 0 takes b_t to b_target

Bits are what lies under `pqt_bits` (NNX), and, where the tree's top holds "params", what lies
beside it under "pqt" (the variables of a Linen model) or "bits" (for `param_transform`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from pqt_jax.transform.adam_mini import Blocks, scale_by_adam_mini
from pqt_jax.transform.tree_paths import BITS, leaf_paths, map_paths

Schedule = float | optax.Schedule


def bit_paths(params: Any) -> set[str]:
    """The `/`-joined paths of the bit-widths in a tree.

    Example:
      >>> sorted(bit_paths({"params": {"kernel": 0.0}, "bits": {"kernel": 1.0}}))
      ['bits/kernel']
    """
    paths = {path: path.split("/") for path in leaf_paths(params)}
    beside = any(parts[0] == "params" for parts in paths.values())
    return {
        path
        for path, parts in paths.items()
        if BITS in parts or (beside and parts[0] in ("pqt", "bits"))
    }


def decays(path: str, leaf: Any) -> bool:
    """Whether weight decay acts on a weight: matrices, and not stacked scales and biases."""
    return jnp.ndim(leaf) >= 2 and path.split("/")[-1] not in ("scale", "bias")


def with_bits(
    weights: optax.GradientTransformation, bits: optax.GradientTransformation | None
) -> optax.GradientTransformation:
    """One transformation for a tree of weights and bits, made of one for each.

    Example:
      >>> tx = with_bits(optax.sgd(0.1), optax.adamw(1e-2, weight_decay=1.0))
      >>> state = tx.init({"params": jnp.ones((2, 2)), "bits": jnp.ones((1, 1))})

    Args:
      weights: for everything that is not a bit-width.
      bits: for the bit-widths; None is an error where the tree has any.

    Returns:
      A GradientTransformation on the whole tree.

    Raises:
      ValueError: from `init`, if there are bits and no transformation for them, and for the "pqt"
        collection alone, whose bits would pass for weights.
    """
    # Labels are made anew from each tree, so that the transformation holds no arrays.
    inner = optax.multi_transform(
        {"weights": weights, "bits": bits if bits is not None else optax.set_to_zero()}, _labels
    )

    def init(params):
        if _is_collection(params):
            raise ValueError(
                'every leaf lies under "bits", and would be trained as a weight; give bits beside '
                'their weights, {"params": ..., "pqt": ...}, or weights as {"params": ...}'
            )
        left = bit_paths(params)
        if left and bits is None:
            raise ValueError(
                f"{len(left)} bit-widths have no optimizer of their own (first {min(left)!r}); "
                "pass bits_learning_rate=... to optim.adamw, or a transformation to "
                "optim.with_bits(weights, bits); optax.set_to_zero() keeps them as they are"
            )
        return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def adamw(learning_rate: Schedule, **options: Any) -> optax.GradientTransformation:
    """AdamW with the bit-widths in a group of their own.

        w   ← w − lr · (adam(∂L/∂w) + weight_decay · w)
        b_i ← b_i − bits_lr · (adam(∂L/∂b_i) + bits_weight_decay · b_i)

    Args:
      learning_rate: of the weights, a number or an optax schedule.
      options: of `grouped`.

    Returns:
      A GradientTransformation.

    Raises:
      ValueError: from `init`, as `with_bits` raises it; bits need `bits_learning_rate`.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
    """
    return grouped(optax.scale_by_adam, learning_rate, **options)


def adam_mini(
    learning_rate: Schedule, blocks: Blocks, **options: Any
) -> optax.GradientTransformation:
    """Adam-mini with decoupled weight decay, and the bit-widths under AdamW.

    Args:
      learning_rate: of the weights, a number or an optax schedule.
      blocks: what shares a second moment; `adam_mini.model_blocks` for our models.
      options: of `grouped`.

    Returns:
      A GradientTransformation.

    Raises:
      ValueError: from `init`, as `adamw` raises it, and for blocks that fit no parameter.
    """
    return grouped(functools.partial(scale_by_adam_mini, blocks), learning_rate, **options)


def grouped(
    scale_by: Callable[[float, float, float], optax.GradientTransformation],
    learning_rate: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    bits_learning_rate: Schedule | None = None,
    bits_weight_decay: float = 1.0,
) -> optax.GradientTransformation:
    """Any optimizer that scales gradients, with decoupled decay, and the bit-widths under AdamW.

    Args:
      scale_by: (b1, b2, eps) → transformation of the weights' gradients.
      learning_rate: of the weights, a number or an optax schedule.
      b1, b2, eps: of Adam, in both groups.
      weight_decay: decoupled decay of the weights that are matrices, see `decays`.
      clip_norm: bound of the global norm of the weights' gradients; None for none.
      bits_learning_rate: of the bits; needed where the tree has any.
      bits_weight_decay: decoupled decay of b_i towards 0, that is of b_t towards b_target.

    Returns:
      A GradientTransformation.
    """
    weights = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        scale_by(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    bits = None
    if bits_learning_rate is not None:
        bits = optax.adamw(bits_learning_rate, b1, b2, eps, weight_decay=bits_weight_decay)
    return with_bits(weights, bits)


def _is_collection(params: Any) -> bool:
    """Whether these are a Linen model's bits without its weights, `variables["pqt"]`."""
    folders = [path.split("/")[:-1] for path in leaf_paths(params)]
    return bool(folders) and all("bits" in parts and parts[0] != "params" for parts in folders)


def _labels(params: Any) -> Any:
    bits = bit_paths(params)
    return map_paths(lambda path, _: "bits" if path in bits else "weights", params)


def _decay_mask(params: Any) -> Any:
    return map_paths(decays, params)
