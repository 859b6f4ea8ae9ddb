# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Decoders: tokens → embedding → blocks, in one scan over the layers → logits.

Parameters of the blocks, which have the path `h`, have a leading axis for the layer. ŵ is made
inside the scan, for one layer at a time.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pqt_jax.models import layers, partitioning
from pqt_jax.models.cache import Cache, check_room, empty_cache, scan_with_cache, spoil_overflow
from pqt_jax.models.document_mask import positions
from pqt_jax.transform.model import pqt_transform
from pqt_jax.transform.rules import Rule, first_match, resolve
from pqt_jax.transform.tree_paths import BITS, leaf_paths, paths_and_leaves


class LanguageModel(nnx.Module):
    """A decoder made of stacked blocks.

    A subclass sets these attributes in its `__init__`. It passes each part through `wrap_part`, and
    makes the blocks by `stack_blocks`.

    Attributes:
      config: its shape, with `max_length`, `num_layers`, `kv_heads`, `head_width`, `remat`,
        `tie_embeddings`.
      embed: `layers.Embed`.
      h: the blocks; each maps (x, segments) to x, and has `decode(x, cache)`.
      norm: the norm before the head.
      head: `layers.Head`; absent with tied embeddings.
    """

    config: Any
    embed: Any
    h: Any
    norm: Any
    head: Any

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        *,
        pqt_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the next token at every position.

        Args:
          tokens: int[batch, T], T at most `max_length`.
          segments: int[batch, T], each token's document, from `document_mask.make_windows`.
            Documents do not attend to each other. None for one document in every row.
          pqt_key: the step's key (`keys.step_key`), which samples the weights; None for the bare
            model.

        Returns:
          float32[batch, T, vocab_size].
        """
        return self.logits(self.hidden(tokens, segments, pqt_key=pqt_key), pqt_key=pqt_key)

    def embedded(
        self, tokens: jax.Array, at: jax.Array, *, pqt_key: jax.Array | None = None
    ) -> jax.Array:
        """The input of the first block, [batch, T, d_model].

        Args:
          tokens: int[batch, T].
          at: int[T] or int[batch, T], the positions of the tokens in their documents.
          pqt_key: as for `__call__`.
        """
        del at  # with rotary positions, the attention uses them
        return call_part(self.embed, tokens, key=pqt_key)

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        *,
        pqt_key: jax.Array | None = None,
    ) -> jax.Array:
        """The output of the last block, [batch, T, d_model], which `logits` takes."""
        config = self.config
        layers.check_length(tokens, config)
        at = jnp.arange(tokens.shape[1]) if segments is None else positions(segments)
        x = self.embedded(tokens, at, pqt_key=pqt_key)
        options = {"length": config.num_layers, "remat": config.remat}
        return scan_blocks(self.h, x, pqt_key, segments, **options)

    def logits(self, x: jax.Array, *, pqt_key: jax.Array | None = None) -> jax.Array:
        """float32[batch, T, vocab_size] from the output of `hidden`, or from part of its T."""
        x = self.norm(x)
        if self.config.tie_embeddings:
            return call_part(self.embed, x, project=True, key=pqt_key)
        return call_part(self.head, x, key=pqt_key)

    def init_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """An empty cache for `decode`; capacity in tokens, None for `max_length`."""
        return empty_cache(self.config, batch, capacity)

    def decode(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits of the bare model for tokens that follow those in a cache.

        Args:
          tokens: int[batch, T].
          cache: from `init_cache`, or from the previous call.

        Returns:
          (float32[batch, T, vocab_size], the cache with T more tokens). Under jit, where the length
          is not known, the logits of tokens that do not fit are NaN.

        Raises:
          ValueError: if they do not fit.
        """
        check_room(tokens, cache)
        x = self.embedded(tokens, cache.length + jnp.arange(tokens.shape[1]))
        x, cache = scan_with_cache(self.h, x, cache)
        return spoil_overflow(self.logits(x), cache), cache


def scan_blocks(
    blocks: Any,
    x: jax.Array,
    key: jax.Array | None,
    segments: jax.Array | None = None,
    *,
    length: int,
    remat: bool,
) -> jax.Array:
    """Call stacked blocks one after the other, each with its own slice of the parameters.

    ŵ is made inside the loop, for one layer at a time, and again in the backward pass. With `remat`
    the backward pass recomputes whole blocks; without, it keeps the results of matrix products.

    Args:
      blocks: from `stack_blocks`.
      x: [batch, T, d_model].
      key: the step's key, or None for the bare blocks.
      segments: int[batch, T] for every block, or None; see `Attention`.
      length: number of blocks.
      remat: recompute whole blocks in the backward pass.

    Returns:
      [batch, T, d_model].
    """
    graph, state = nnx.split(blocks)
    packed, unpack = pack_bits(state)

    def body(x, layer):
        index, packed = layer
        return partitioning.constrain_activations(
            call_part(nnx.merge(graph, unpack(packed)), x, segments, key=key, lead=index)
        ), None

    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat else policies.dots_saveable
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)  # the scan is a barrier
    return lax.scan(body, partitioning.constrain_activations(x), (jnp.arange(length), packed))[0]


def pack_bits(state: nnx.State) -> tuple[list[jax.Array], Callable[[list[jax.Array]], nnx.State]]:
    """Put the bit-widths of stacked blocks into one array, for a loop over the layers.

    The loop's backward pass stores each gradient of a layer by a launch of its own. That of a few
    thousand bit-widths takes as long as that of a million weights. Sharded parameters stay as they
    are, since to pack them would communicate.

    Args:
      state: parameters and bit-widths, with a leading axis for the layer.

    Returns:
      (arrays with a leading axis for the layer, a function from those of one layer to its state).
    """
    leaves, structure = jax.tree.flatten(state)
    is_bits = [BITS in path.split("/") for path in leaf_paths(state)]
    if not any(is_bits) or not partitioning.replicates_parameters():
        return leaves, structure.unflatten
    bits = [leaf for leaf, chosen in zip(leaves, is_bits, strict=True) if chosen]
    others = [leaf for leaf, chosen in zip(leaves, is_bits, strict=True) if not chosen]
    shapes = [leaf.shape[1:] for leaf in bits]
    ends = list(itertools.accumulate(map(math.prod, shapes)))

    def unpack(arrays: list[jax.Array]) -> nnx.State:
        *others, row = arrays
        pieces = iter(
            piece.reshape(shape)
            for piece, shape in zip(jnp.split(row, ends[:-1]), shapes, strict=True)
        )
        rest = iter(others)
        return structure.unflatten(next(pieces if chosen else rest) for chosen in is_bits)

    return [*others, jnp.concatenate([b.reshape(len(b), -1) for b in bits], axis=1)], unpack


def wrap_part(module: Any, rules: Sequence[Rule], path: str) -> Any:
    """Wrap a part of a model with the rules that sample something in it.

    Args:
      module: the bare part.
      rules: rules on the paths of the whole model.
      path: the part's path in the model.

    Returns:
      The wrapped part; the part itself if no rule samples anything in it.
    """
    shapes = paths_and_leaves(nnx.state(module, nnx.Param), path)
    matrices = {first_match(rules, name) for name, leaf in shapes.items() if leaf.ndim >= 2}
    matching = [rule for rule in rules if rule in matrices]
    if not any(rule.spec for rule in matching):
        return module
    return pqt_transform(module, partitioning.shard_rules(matching, shapes), prefix=path)


def stack_blocks(
    make: Callable[..., Any], length: int, rules: Sequence[Rule], rngs: nnx.Rngs
) -> Any:
    """`length` blocks as one module whose parameters have a leading axis, wrapped for sampling.

    Args:
      make: (layer index, rngs) → block; the index is traced.
      length: number of blocks.
      rules: rules on the paths of the whole model, in which the blocks have the path `h`.
      rngs: randomness of the initial values.
    """

    def block(index, rngs):
        return wrap_part(make(index, rngs), rules, "h")

    return nnx.vmap(block)(jnp.arange(length), rngs.split(length))


def call_part(module: Any, *args: Any, key: jax.Array | None, lead: Any = 0, **options: Any) -> Any:
    """Call a part of a model; its weights are sampled if it is wrapped and `key` is not None."""
    if key is not None and hasattr(module, BITS):
        return module(*args, pqt_key=key, pqt_lead=lead, **options)
    return module(*args, **options)


def check_rules(model: nnx.Module, rules: Sequence[Rule]) -> None:
    """Raise ValueError for a rule that samples nothing in the whole model, or stacked vectors.

    A stack of vectors has two axes, as a matrix has. In the scan, where ŵ is made, they are single
    vectors, which are never sampled.
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


def short_kernel_name(path: str) -> str:
    """The name of a kernel in tables and pictures.

    Example:
      >>> short_kernel_name("h/attn/q/kernel")
      'attn/q'
    """
    return path.removeprefix("h/").removesuffix("/kernel")
