# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How a model is put together: parts that are sampled, and blocks as one scan over the layers.

What lies under `h`, the blocks, has a leading axis that numbers the layers; ŵ is made inside the
scan, for one layer at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pqt_jax.models import partitioning
from pqt_jax.transform.model import pqt_transform
from pqt_jax.transform.rules import Rule, first_match, resolve
from pqt_jax.transform.tree_paths import BITS, paths_and_leaves


def short_kernel_name(path: str) -> str:
    """The name of a kernel in tables and pictures.

    Example:
      >>> short_kernel_name("h/attn/q/kernel")
      'attn/q'
    """
    return path.removeprefix("h/").removesuffix("/kernel")


def sampled(module: Any, rules: Sequence[Rule], path: str) -> Any:
    """Wrap a part of a model with those rules that sample something in it.

    Args:
      module: the bare part.
      rules: rules on the paths of the whole model.
      path: where the part stands in the model.

    Returns:
      The part, wrapped, or as it was if no rule samples anything in it.
    """
    shapes = paths_and_leaves(nnx.state(module, nnx.Param), path)
    matrices = {first_match(rules, name) for name, leaf in shapes.items() if leaf.ndim >= 2}
    own = [rule for rule in rules if rule in matrices]
    if not any(rule.spec for rule in own):
        return module
    return pqt_transform(module, own, prefix=path)


def stack(make: Callable[..., Any], length: int, rules: Sequence[Rule], rngs: nnx.Rngs) -> Any:
    """`length` blocks as one module whose parameters have a leading axis, wrapped for sampling.

    Args:
      make: (layer index, rngs) → block; the index is traced.
      length: number of blocks.
      rules: rules on the paths of the whole model, where the blocks stand at `h`.
      rngs: randomness of the initial values.
    """

    def block(index, rngs):
        return sampled(make(index, rngs), rules, "h")

    return nnx.vmap(block)(jnp.arange(length), rngs.split(length))


def call(module: Any, *args: Any, key: jax.Array | None, lead: Any = 0, **options: Any) -> Any:
    """Call a part of a model, sampled if it is wrapped and there is a key."""
    if key is not None and hasattr(module, BITS):
        return module(*args, pqt_key=key, pqt_lead=lead, **options)
    return module(*args, **options)


def scan(
    blocks: Any,
    x: jax.Array,
    key: jax.Array | None,
    segments: jax.Array | None = None,
    *,
    length: int,
    remat: bool,
) -> jax.Array:
    """Call stacked blocks one after the other, each with its own slice of the parameters.

    ŵ is made inside the loop, for one layer at a time, and made again in the backward pass. With
    `remat` so is everything else in the block; without, the results of matrix products are kept.

    Args:
      blocks: what `stack` returned.
      x: [batch, T, d_model].
      key: the step's key, or None for the bare blocks.
      segments: int[batch, T] for every block, or None; see `Attention`.
      length: number of blocks.
      remat: recompute whole blocks in the backward pass.

    Returns:
      [batch, T, d_model].
    """
    graph, state = nnx.split(blocks)

    def body(x, layer):
        index, state = layer
        return partitioning.constrain_activations(
            call(nnx.merge(graph, state), x, segments, key=key, lead=index)
        ), None

    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat else policies.dots_saveable
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)  # a scan is barrier enough
    return lax.scan(body, partitioning.constrain_activations(x), (jnp.arange(length), state))[0]


def check_rules(model: nnx.Module, rules: Sequence[Rule]) -> None:
    """Raise ValueError for a rule that samples nothing in the whole model, or stacked vectors.

    A stack of vectors has two axes and looks like a matrix from outside, though in the scan, where
    ŵ is made, it is vectors: the two would not agree on what is sampled.
    """
    shapes = paths_and_leaves(nnx.state(model, nnx.Param))
    for path, leaf in shapes.items():
        rule = first_match(rules, path)
        if path.startswith("h/") and len(leaf.shape) < 3 and rule is not None and rule.spec:
            raise ValueError(
                f"{rule} matches {path!r}, a stack of vectors, which are never sampled; match "
                "matrices alone, as 'h/.*/kernel' does"
            )
    resolve(rules, shapes)
