# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents → windows → nats of every document → loss, perplexity and bits per byte.

Window i of a document has the inputs `i·T … i·T + T − 1`; its targets are the next tokens. So each
token is scored once, given the tokens before it in its window. The first token of a document has no
context: it is not scored, and its bytes are not counted.

Intervals need several independent units. The units are the documents; if there is only one, it is
divided into chunks of consecutive windows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.analysis import intervals
from pqt_jax.analysis.intervals import Interval
from pqt_jax.training.loss import token_losses

MAX_CHUNKS = 50  # of a single document


@dataclasses.dataclass(frozen=True)
class Document:
    """A text as tokens.

    Attributes:
      tokens: int[tokens], the whole text.
      bytes: number of bytes of text that all tokens but the first stand for.
    """

    tokens: np.ndarray
    bytes: float


@dataclasses.dataclass(frozen=True)
class Windows:
    """Documents divided into N windows of T targets, for U units.

    Attributes:
      tokens: int[N, T + 1], padded with zeros after the end of a document; fewer columns if no
        document is as long.
      counts: int32[N], the number of targets in each window that are scored.
      units: int32[N], the unit that each window belongs to.
      targets: float64[U], the number of scored targets of each unit.
      bytes: float64[U], the bytes of text that these targets stand for.
      units_are_chunks: whether the units are chunks of a single document.
    """

    tokens: np.ndarray
    counts: np.ndarray
    units: np.ndarray
    targets: np.ndarray
    bytes: np.ndarray
    units_are_chunks: bool


def make_windows(documents: Sequence[Document], length: int) -> Windows:
    """Divide documents into windows.

    Example:
      >>> documents = [Document(np.arange(1, n + 1, dtype=np.uint8), n - 1) for n in (6, 2, 1)]
      >>> windows = make_windows(documents, length=4)
      >>> windows.tokens.tolist(), windows.counts.tolist(), windows.targets.tolist()
      ([[1, 2, 3, 4, 5], [5, 6, 0, 0, 0], [1, 2, 0, 0, 0]], [4, 1, 1], [5.0, 1.0])

    Args:
      documents: at least one; those of fewer than two tokens have no target and are left out.
      length: T, the number of inputs in a window.

    Raises:
      ValueError: if no document has two tokens.
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
    width = max(map(len, rows))  # no window is longer than the longest document
    tokens = np.zeros((len(rows), width), documents[0].tokens.dtype)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    one_document = len(documents) == 1
    if one_document:
        units = np.arange(len(rows)) * min(MAX_CHUNKS, len(rows)) // len(rows)
    units = np.asarray(units, np.int32)
    targets = np.bincount(units, counts)
    sizes = np.array([document.bytes for document in documents], np.float64)
    if one_document:  # each chunk gets its share of the bytes
        sizes = sizes * targets / targets.sum()
    return Windows(
        tokens=tokens,
        counts=counts,
        units=units,
        targets=targets,
        bytes=sizes,
        units_are_chunks=one_document,
    )


def make_scorer(
    graph: nnx.GraphDef, windows: Windows, batch: int
) -> Callable[[nnx.State], np.ndarray]:
    """Make the function parameters → nats of every unit.

    Args:
      graph: structure of the bare model.
      windows: from `make_windows`.
      batch: number of windows that are scored at once.

    Returns:
      `params -> float64[U]`; it is compiled once, at the first call.
    """
    batch = min(batch, len(windows.counts))
    padding = -len(windows.counts) % batch
    tokens = np.pad(windows.tokens, ((0, padding), (0, 0)))
    counts = np.pad(windows.counts, (0, padding))

    @jax.jit
    def nats_of_windows(params, tokens, counts):
        tokens = tokens.astype(jnp.int32)
        losses = token_losses(nnx.merge(graph, params)(tokens[:, :-1]), tokens[:, 1:])
        is_target = jnp.arange(losses.shape[1]) < counts[:, None]
        return jnp.sum(jnp.where(is_target, losses, 0), axis=1)

    def nats_of_units(params: nnx.State) -> np.ndarray:
        batches = [
            np.asarray(nats_of_windows(params, tokens[i : i + batch], counts[i : i + batch]))
            for i in range(0, len(counts), batch)
        ]
        by_window = np.concatenate(batches)[: len(windows.counts)].astype(np.float64)
        return np.bincount(windows.units, by_window)

    return nats_of_units


def measure_losses(
    nats: np.ndarray, master_nats: np.ndarray, windows: Windows
) -> dict[str, Interval]:
    """Loss, perplexity, bits per byte and difference from the master weights, with intervals.

        loss           Σ nats / Σ targets
        perplexity     exp(loss)
        bits_per_byte  Σ nats / (Σ bytes · ln 2), which does not depend on the tokenizer
        difference     loss − loss of the master weights

    Args:
      nats: float64[U], of the weights to measure.
      master_nats: float64[U], of the master weights on the same windows.
      windows: the windows that were scored.
    """
    loss = intervals.ratio_interval(nats, windows.targets)
    per_byte = intervals.ratio_interval(nats, windows.bytes)
    return {
        "loss": loss,
        "perplexity": Interval(*map(_perplexity, loss)),
        "bits_per_byte": Interval(*(nats / math.log(2) for nats in per_byte)),
        "difference": intervals.ratio_interval(nats - master_nats, windows.targets),
    }


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700))  # beyond that float64 overflows
