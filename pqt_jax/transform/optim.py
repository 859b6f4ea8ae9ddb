# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Optimizers: weights and bit-widths as two groups of one optax transformation.

    weights   AdamW or Adam-mini, clipped by the global norm of the weights; decay of matrices only
    bits      AdamW with its own learning rate; decay of b_i towards 0 takes b_t to b_target

Bits are the leaves under `pqt_bits` (NNX). In a tree with the top-level key "params", they are also
the leaves under the top-level keys "pqt" (Linen variables) and "bits" (`param_transform`). In a
Linen model inside `nnx.bridge.ToNNX` they are the leaves under a key "bits" whose path without this
key is that of a weight.

A transformation of optax alone knows nothing of bits: it would move b_i at the rate of the weights,
and decay it by theirs. `with_bits` combines any two transformations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pqt_jax.transform.adam_mini import Blocks, scale_by_adam_mini
from pqt_jax.transform.tree_paths import BITS, leaf_paths, map_paths

Schedule = float | optax.Schedule
GRANULARITIES = ("block", "tensor")  # of learned bit-widths


def bit_paths(params: Any) -> set[str]:
    """Return the `/`-joined paths of the bit-widths in a tree.

    Example:
      >>> sorted(bit_paths({"params": {"kernel": 0.0}, "bits": {"kernel": 1.0}}))
      ['bits/kernel']
    """
    paths = {path: path.split("/") for path in leaf_paths(params)}
    has_params = any(names[0] == "params" for names in paths.values())

    def is_bits(names: list[str]) -> bool:
        if BITS in names or (has_params and names[0] in ("pqt", "bits")):
            return True
        folders = [i for i, name in enumerate(names[:-1]) if name == "bits"]
        return any("/".join(names[:i] + names[i + 1 :]) in paths for i in folders)

    return {path for path, names in paths.items() if is_bits(names)}


def labels(params: Any) -> Any:
    """Return a tree of "weights" and "bits", for `optax.multi_transform`.

    Example:
      >>> labels({"params": {"kernel": 0.0}, "bits": {"kernel": 1.0}})
      {'bits': {'kernel': 'bits'}, 'params': {'kernel': 'weights'}}
    """
    bits = bit_paths(params)
    return map_paths(lambda path, _: "bits" if path in bits else "weights", params)


def decays(path: str, leaf: Any) -> bool:
    """Whether weight decay acts on a weight: on matrices, not on (stacked) scales and biases."""
    return jnp.ndim(leaf) >= 2 and path.split("/")[-1] not in ("scale", "bias")


def with_bits(
    weights: optax.GradientTransformation,
    bits: optax.GradientTransformation | None,
    *,
    require_bits: bool = True,
) -> optax.GradientTransformation:
    """Combine a transformation of the weights and one of the bits.

    Example:
      >>> tx = with_bits(optax.sgd(0.1), optax.adamw(1e-2, weight_decay=1.0))
      >>> state = tx.init({"params": jnp.ones((2, 2)), "bits": jnp.ones((1, 1))})

    Args:
      weights: transformation of every leaf that is not a bit-width.
      bits: transformation of the bit-widths; None is an error if the tree has any.
      require_bits: whether a transformation of bits is an error for a tree without any.

    Returns:
      A GradientTransformation of the whole tree.

    Raises:
      ValueError: from `init`, if there are bits and no transformation for them, or a transformation
        and no bits, and for a tree that is only the "pqt" collection, whose bits would be taken for
        weights.
    """
    # Labels are computed from each tree, so that the transformation stores no arrays.
    inner = optax.multi_transform(
        {"weights": weights, "bits": bits if bits is not None else optax.set_to_zero()}, labels
    )

    def init(params):
        if _is_collection(params):
            raise ValueError(
                'every leaf lies under "bits", and would be trained as a weight; give bits '
                'together with their weights, {"params": ..., "pqt": ...}, or weights as '
                '{"params": ...}'
            )
        paths = bit_paths(params)
        if paths and bits is None:
            raise ValueError(
                f"{len(paths)} bit-widths have no optimizer of their own (first {min(paths)!r}); "
                "pass bits_learning_rate=... to optim.adamw, or a transformation to "
                "optim.with_bits(weights, bits); optax.set_to_zero() keeps them as they are"
            )
        if require_bits and bits is not None and not paths:
            raise ValueError(
                "there is a transformation of bit-widths (bits_learning_rate), and the tree has "
                'none: give {"params": …, "pqt": …} of a Linen model, {"params": …, "bits": …} of '
                "param_transform, or the state of a wrapped NNX model with its BitParam"
            )
        return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def adamw(learning_rate: Schedule, **options: Any) -> optax.GradientTransformation:
    """AdamW, with the bit-widths as a second group.

        w   ← w − lr · (adam(∂L/∂w) + weight_decay · w)
        b_i ← b_i − bits_lr · (adam(∂L/∂b_i) + bits_weight_decay · b_i)

    Args:
      learning_rate: learning rate of the weights, a number or an optax schedule.
      options: passed to `grouped`.

    Returns:
      A GradientTransformation.

    Raises:
      ValueError: from `init`, as `with_bits`; a tree with bits needs `bits_learning_rate`.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
    """
    return grouped(optax.scale_by_adam, learning_rate, **options)


def adam_mini(
    learning_rate: Schedule, blocks: Blocks, **options: Any
) -> optax.GradientTransformation:
    """Adam-mini with decoupled weight decay, and AdamW for the bit-widths.

    Args:
      learning_rate: learning rate of the weights, a number or an optax schedule.
      blocks: which elements share a second moment; `adam_mini.model_blocks` for GPT2 and Llama2.
      options: passed to `grouped`.

    Returns:
      A GradientTransformation.

    Raises:
      ValueError: from `init`, as `adamw`, and for blocks that do not divide their parameter.
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
    bits_granularity: str = "block",
    require_bits: bool = True,
) -> optax.GradientTransformation:
    """Any optimizer that scales gradients, with decoupled decay, and AdamW for the bit-widths.

    Args:
      scale_by: (b1, b2, eps) → transformation of the gradients of the weights.
      learning_rate: learning rate of the weights, a number or an optax schedule.
      b1, b2, eps: options of Adam, in both groups.
      weight_decay: decoupled decay of the weights that are matrices, see `decays`.
      clip_norm: bound on the global norm of the gradients of the weights; None for no bound.
      bits_learning_rate: learning rate of the bits; required if the tree has any, and an error if
        it has none.
      bits_weight_decay: decoupled decay of b_i towards 0, that is, of b_t towards b_target.
      bits_granularity: "block" for a bit-width of each block; "tensor" for one of each matrix: its
        blocks keep equal b_i, which follow the mean of their gradients.
      require_bits: whether a rate of bits is an error for a tree that has none, such as that of a
        baseline under the same options.

    Returns:
      A GradientTransformation.

    Raises:
      ValueError: if `bits_granularity` is neither.
    """
    if bits_granularity not in GRANULARITIES:
        names = " or ".join(GRANULARITIES)
        raise ValueError(f"bits_granularity={bits_granularity!r}; it must be {names}")
    weights = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        scale_by(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    bits = None
    if bits_learning_rate is not None:
        bits = optax.adamw(bits_learning_rate, b1, b2, eps, weight_decay=bits_weight_decay)
        if bits_granularity == "tensor":
            bits = optax.chain(optax.stateless(_mean_over_blocks), bits)
    return with_bits(weights, bits, require_bits=require_bits)


def _mean_over_blocks(gradients: Any, params: Any) -> Any:
    """For each matrix the mean of its blocks, in the place of each; a grid is the last two axes."""
    return jax.tree.map(
        lambda g: jnp.broadcast_to(g.mean((-2, -1), keepdims=True), g.shape), gradients
    )


def _is_collection(params: Any) -> bool:
    """Whether a tree is the "pqt" collection of a Linen model, which has bits and no weights."""
    folders = [path.split("/")[:-1] for path in leaf_paths(params)]
    return bool(folders) and all("bits" in names and names[0] != "params" for names in folders)


def _decay_mask(params: Any) -> Any:
    return map_paths(decays, params)
