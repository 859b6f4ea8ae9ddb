# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents in windows of tokens: segments, positions, and which targets count.

    tokens      a b E c d E e       E ends a document and belongs to it
    segments    0 0 0 1 1 1         document number of each input; attention stays within it
    positions   0 1 2 0 1 2         the first document may have begun before the window
    targets     b E c d E e
    counted     1 1 0 1 1 0         the target after E starts another document and does not count

Everything is computed under jit from the window, so batches stay [B, T + 1]. With `end=None` there
are no segments: attention crosses documents, and every target counts.

Source: Krell et al., "Efficient Sequence Packing without Cross-contamination", arXiv 2107.02027
(2021).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Window(NamedTuple):
    """Windows of tokens, split into the arrays that a model and a loss need.

    Attributes:
      inputs: int[B, T].
      targets: int[B, T], the token after each input.
      segments: int32[B, T], the number of each input's document within its window; None for windows
        that are not split into documents.
      counted: bool[B, T], whether a target belongs to the document of its input; None if all count.
    """

    inputs: jax.Array
    targets: jax.Array
    segments: jax.Array | None = None
    counted: jax.Array | None = None


def make_windows(tokens: jax.Array, end: int | None) -> Window:
    """Split windows into inputs, targets, segments and the mask of targets that count.

    Example:
      >>> _, _, segments, counted = make_windows(jnp.array([[5, 6, 9, 7, 8, 9, 4]]), end=9)
      >>> segments.tolist(), counted.astype(int).tolist()
      ([[0, 0, 0, 1, 1, 1]], [[1, 1, 0, 1, 1, 0]])

    Args:
      tokens: int[B, T + 1], of a dtype that holds `end`.
      end: the token that ends a document; None to treat a window as one document.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if end is None:
        return Window(inputs, targets)
    ends = inputs == end
    segments = jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends
    return Window(inputs, targets, segments, ~ends)


def count_targets(tokens: jax.Array, end: int | None, parts: int) -> jax.Array | None:
    """The number of targets that count, divided by the number of parts of a split batch.

    Let a batch be split into parts, and divide the sum of losses of each part by this number. The
    mean of these quotients over the parts is the mean loss over all targets that count, even if the
    parts have different numbers of them.

    Args:
      tokens: int[..., T + 1].
      end: as for `make_windows`.
      parts: number of parts of the batch.

    Returns:
      float32 scalar; None if all targets count.
    """
    if end is None:
        return None
    return jnp.sum(tokens[..., :-1].astype(jnp.int32) != end, dtype=jnp.float32) / parts


def attention_mask(segments: jax.Array) -> jax.Array:
    """bool[B, 1, T, T]: whether a query (third axis) and a key (last axis) share a document."""
    return segments[:, None, :, None] == segments[:, None, None, :]


def positions(segments: jax.Array) -> jax.Array:
    """Positions of tokens, counted from the start of their document or of the window.

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
