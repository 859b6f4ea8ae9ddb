# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What language models share: tokens → embedded → blocks → logits, as windows or behind a cache."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pqt_jax.models import cache as caches
from pqt_jax.models import layers, stacked
from pqt_jax.models.cache import Cache
from pqt_jax.models.document_mask import positions


class LanguageModel(nnx.Module):
    """A decoder made of stacked blocks.

    A subclass sets in its `__init__`, each part wrapped by `stacked.sampled` or `stacked.stack`:

    Attributes:
      config: its shape, with `max_length`, `num_layers`, `kv_heads`, `remat`, `tie_embeddings`.
      embed: `layers.Embed`.
      h: the blocks, called as `stacked.scan` and `cache.scan` do.
      norm: before the head.
      head: `layers.Head`; none with tied embeddings.
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
          segments: int[batch, T], the document that a token is of, as `document_mask.make_windows`
            numbers them: each is read as if it were alone; None for one in every row.
          pqt_key: the step's key (`keys.step_key`), which samples the weights; None for the bare
            model.

        Returns:
          float32[batch, T, vocab_size].
        """
        return self.logits(self.hidden(tokens, segments, pqt_key=pqt_key), pqt_key=pqt_key)

    def embedded(
        self, tokens: jax.Array, at: jax.Array, *, pqt_key: jax.Array | None = None
    ) -> jax.Array:
        """What the first block is given, [batch, T, d_model].

        Args:
          tokens: int[batch, T].
          at: int[T] or int[batch, T], their positions in their documents.
          pqt_key: as in a call.
        """
        del at  # rotary positions are the attention's
        return stacked.call(self.embed, tokens, key=pqt_key)

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        *,
        pqt_key: jax.Array | None = None,
    ) -> jax.Array:
        """What the last block returns, [batch, T, d_model], of which `logits` makes logits."""
        config = self.config
        layers.check_length(tokens, config)
        at = jnp.arange(tokens.shape[1]) if segments is None else positions(segments)
        x = self.embedded(tokens, at, pqt_key=pqt_key)
        options = {"length": config.num_layers, "remat": config.remat}
        return stacked.scan(self.h, x, pqt_key, segments, **options)

    def logits(self, x: jax.Array, *, pqt_key: jax.Array | None = None) -> jax.Array:
        """float32[batch, T, vocab_size] of what `hidden` returns, or of a part of its T."""
        x = self.norm(x)
        if self.config.tie_embeddings:
            return stacked.call(self.embed, x, project=True, key=pqt_key)
        return stacked.call(self.head, x, key=pqt_key)

    def init_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """An empty cache for `decode`; capacity in tokens, None for `max_length`."""
        return caches.init(self.config, batch, capacity)

    def decode(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits of the bare model for tokens that go on from those in a cache.

        Args:
          tokens: int[batch, T], any T that the cache has room for.
          cache: from `init_cache`, or from the call before.

        Returns:
          (float32[batch, T, vocab_size], the cache with T more tokens). Where jit hides that they
          do not fit, the logits are NaN.

        Raises:
          ValueError: if they do not fit.
        """
        caches.check_room(tokens, cache)
        x = self.embedded(tokens, cache.length + jnp.arange(tokens.shape[1]))
        x, cache = caches.scan(self.h, x, cache)
        return caches.spoil_overflow(self.logits(x), cache), cache
