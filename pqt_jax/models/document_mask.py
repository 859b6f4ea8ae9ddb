# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents in windows of tokens: which token is of which, who sees whom, and what is predicted.

    tokens      a b E c d E e       E ends a document, and belongs to it
    segments    0 0 0 1 1 1         of the inputs; a token sees those before it in its segment
    positions   0 1 2 0 1 2         the first document may have begun before the window
    targets     b E c d E e
    counted     1 1 0 1 1 0         behind E stands another document, which it says nothing about

All of it is made under jit from the window itself, so that batches stay [B, T + 1]. With `end=None`
there are no segments: windows run on across documents, and every target counts.

Source: Krell et al., "Efficient Sequence Packing without Cross-contamination", arXiv 2107.02027
(2021).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Window(NamedTuple):
    """Windows as a model and a loss take them.

    Attributes:
      inputs: int[B, T].
      targets: int[B, T], the token behind each input.
      segments: int32[B, T], the number of the document in its window that an input is of; or None.
      counted: bool[B, T], whether a target is of the same document; or None, for all.
    """

    inputs: jax.Array
    targets: jax.Array
    segments: jax.Array | None = None
    counted: jax.Array | None = None


def make_windows(tokens: jax.Array, end: int | None) -> Window:
    """Cut windows into what a model reads and what it is to predict.

    Example:
      >>> _, _, segments, counted = make_windows(jnp.array([[5, 6, 9, 7, 8, 9, 4]]), end=9)
      >>> segments.tolist(), counted.astype(int).tolist()
      ([[0, 0, 0, 1, 1, 1]], [[1, 1, 0, 1, 1, 0]])

    Args:
      tokens: int[B, T + 1], of a dtype that holds `end`.
      end: the token that ends a document; None for windows that run on across documents.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if end is None:
        return Window(inputs, targets)
    ends = inputs == end
    segments = jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends
    return Window(inputs, targets, segments, ~ends)


def count_targets(tokens: jax.Array, end: int | None, parts: int) -> jax.Array | None:
    """How many targets of all windows count, for each of so many parts on average.

    A mean over the parts of (sum over a part / this) is the mean over all targets that count,
    however few of them a part has.

    Args:
      tokens: int[..., T + 1].
      end: as in `make_windows`.
      parts: that the windows are cut into.

    Returns:
      float32 scalar; None where all count.
    """
    if end is None:
        return None
    return jnp.sum(tokens[..., :-1].astype(jnp.int32) != end, dtype=jnp.float32) / parts


def attention_mask(segments: jax.Array) -> jax.Array:
    """bool[B, 1, T, T]: whether a query, the third axis, and a key are of the same document."""
    return segments[:, None, :, None] == segments[:, None, None, :]


def positions(segments: jax.Array) -> jax.Array:
    """Positions of tokens in their documents, as far as these are in the window.

    Example:
      >>> positions(jnp.array([[0, 0, 0, 1, 1, 2]])).tolist()
      [[0, 1, 2, 0, 1, 0]]

    Args:
      segments: int[B, T].

    Returns:
      int32[B, T].
    """
    at = jnp.arange(segments.shape[1], dtype=jnp.int32)
    first = jnp.diff(segments, axis=1, prepend=-1) != 0
    return at - lax.cummax(jnp.where(first, at, 0), axis=1)
