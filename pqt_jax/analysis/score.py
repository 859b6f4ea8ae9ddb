# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents → windows → nats of every document → loss, perplexity and bits per byte.

Window i of a document has the inputs `i·T … i·T + T − 1` and the same shifted by one as targets.
So each token is scored once, by those before it in its window; the first of a document has none and
is not scored, and its bytes are not counted. A document alone is cut into chunks of consecutive
windows, which stand for documents.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.analysis import intervals
from pqt_jax.analysis.intervals import Interval
from pqt_jax.training.loss import token_losses

CHUNKS = 50  # at most, of a document that is alone


class Windows(NamedTuple):
    """Documents cut for scoring.

    Attributes:
      tokens: [N, T + 1], zeros behind the end of a document.
      counts: int32[N], the targets in each window that are scored.
      units: int32[N], the document, or chunk of the only one, that a window is of.
      scored: float64[units], the targets of each.
      bytes: float64[units], the bytes of text that they stand for; of chunks, their share.
      chunks: whether units are chunks.
    """

    tokens: np.ndarray
    counts: np.ndarray
    units: np.ndarray
    scored: np.ndarray
    bytes: np.ndarray
    chunks: bool


class Document(NamedTuple):
    """A text as tokens.

    Attributes:
      tokens: of the whole text.
      bytes: of text that all tokens but the first stand for.
    """

    tokens: np.ndarray
    bytes: float


def cut(documents: Sequence[Document], length: int) -> Windows:
    """Cut documents into windows.

    Example:
      >>> documents = [Document(np.arange(1, n + 1, dtype=np.uint8), n - 1) for n in (6, 2, 1)]
      >>> windows = cut(documents, length=4)
      >>> windows.tokens.tolist(), windows.counts.tolist(), windows.scored.tolist()
      ([[1, 2, 3, 4, 5], [5, 6, 0, 0, 0], [1, 2, 0, 0, 0]], [4, 1, 1], [5.0, 1.0])

    Args:
      documents: those of a single token are left out, since nothing in them is scored.
      length: T, the inputs in a window.

    Raises:
      ValueError: if nothing can be scored.
    """
    documents = [document for document in documents if len(document.tokens) > 1]
    if not documents:
        raise ValueError("no document has two tokens")
    rows, units = [], []
    for unit, document in enumerate(documents):
        for start in range(0, len(document.tokens) - 1, length):
            rows.append(document.tokens[start : start + length + 1])
            units.append(unit)
    counts = np.array([len(row) - 1 for row in rows], np.int32)
    tokens = np.zeros((len(rows), length + 1), documents[0].tokens.dtype)
    for to, row in zip(tokens, rows, strict=True):
        to[: len(row)] = row
    if chunks := len(documents) == 1:
        units = np.arange(len(rows)) * min(CHUNKS, len(rows)) // len(rows)
    units = np.asarray(units, np.int32)
    scored = np.bincount(units, counts)
    sizes = np.array([document.bytes for document in documents], np.float64)
    if chunks:
        sizes = sizes * scored / scored.sum()
    return Windows(tokens, counts, units, scored, sizes, chunks)


def make_score(
    graph: nnx.GraphDef, windows: Windows, batch: int
) -> Callable[[nnx.State], np.ndarray]:
    """The nats of every unit as a function of the parameters.

    Args:
      graph: structure of the bare model.
      windows: from `cut`.
      batch: windows that are scored at once.

    Returns:
      `params -> float64[units]`; compiled once, at the first call.
    """
    batch = min(batch, len(windows.counts))
    padding = -len(windows.counts) % batch
    tokens = np.pad(windows.tokens, ((0, padding), (0, 0)))
    counts = np.pad(windows.counts, (0, padding))

    @jax.jit
    def nats(params, tokens, counts):
        tokens = tokens.astype(jnp.int32)
        losses = token_losses(nnx.merge(graph, params)(tokens[:, :-1]), tokens[:, 1:])
        inside = jnp.arange(losses.shape[1]) < counts[:, None]
        return jnp.sum(jnp.where(inside, losses, 0), axis=1)

    def score(params: nnx.State) -> np.ndarray:
        parts = [
            np.asarray(nats(params, tokens[i : i + batch], counts[i : i + batch]))
            for i in range(0, len(counts), batch)
        ]
        by_window = np.concatenate(parts)[: len(windows.counts)].astype(np.float64)
        return np.bincount(windows.units, by_window)

    return score


def measure(nats: np.ndarray, master: np.ndarray, windows: Windows) -> dict[str, Interval]:
    """Loss, perplexity, bits per byte and difference to the master weights, with their intervals.

    Perplexity is exp(loss), and so are its ends. Bits per byte are nats / (bytes · ln 2), which do
    not depend on the tokenizer.

    Args:
      nats: [units], of the weights in question.
      master: [units], of the master weights on the same units.
      windows: that were scored.
    """
    loss, per_byte = (intervals.ratio(nats, n) for n in (windows.scored, windows.bytes))
    return {
        "loss": loss,
        "perplexity": Interval(*(math.exp(min(x, 700)) for x in loss)),
        "bits_per_byte": Interval(*(x / math.log(2) for x in per_byte)),
        "difference": intervals.ratio(nats - master, windows.scored),
    }
