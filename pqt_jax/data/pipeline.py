# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokens → batches: windows of a fixed length, shuffled, repeated and batched.

Window i holds the tokens `i·T … i·T + T`: T inputs, and the same tokens shifted by one as targets.

The batch of a step depends only on the number of the step. A resumed run therefore reads the same
batches as a run without interruption, on any number of processes.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from pqt_jax.data.source import Tokens
from pqt_jax.errors import InputError


class Windows:
    """Random access to the windows of an array of tokens.

    Example:
      >>> windows = Windows(np.arange(10, dtype=np.uint8), length=4)
      >>> len(windows), windows[1].tolist()
      (2, [4, 5, 6, 7, 8])

    Args:
      tokens: an array, or an object whose slices are arrays.
      length: T, the number of inputs in a window.
    """

    def __init__(self, tokens: Tokens, length: int):
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        """Number of whole windows."""
        return max(0, (len(self.tokens) - 1) // self.length)

    def __getitem__(self, index: int) -> np.ndarray:
        """Window `index`: [T + 1], in the tokens' dtype."""
        start = int(index) * self.length
        return np.asarray(self.tokens[start : start + self.length + 1])


def check_lengths(train: Tokens, validation: Tokens, length: int, batch: int) -> None:
    """Raise InputError if a text has no whole window, or the training text no whole batch."""
    for name, tokens, batches in (("training", train, batch), ("validation", validation, 1)):
        windows = len(Windows(tokens, length))
        if windows < 1:
            raise InputError(
                f"config.data.length={length}: the {name} text has only {len(tokens)} tokens, and "
                f"a sequence needs {length + 1}; give more text or a shorter length"
            )
        if windows < batches:
            raise InputError(
                f"config.data.batch={batch}: the {name} text has only {windows} sequences of "
                f"{length} tokens; give more text, or a smaller batch or length"
            )


class _Rows:
    """Random access to some rows of every batch.

    Args:
      windows: the rows of all batches, in the order of training.
      batch: number of rows in a whole batch.
      rows: indices of the rows to read.
    """

    def __init__(self, windows: grain.MapDataset, batch: int, rows: Sequence[int]):
        self.windows, self.batch, self.rows = windows, batch, rows

    def __len__(self) -> int:
        """Number of batches in all epochs."""
        return len(self.windows) // self.batch

    def __getitem__(self, index: int) -> np.ndarray:
        """Batch `index`: [rows, T + 1]."""
        first = index * self.batch
        return np.stack([np.asarray(self.windows[first + row]) for row in self.rows])


def train_batches(
    tokens: Tokens,
    *,
    length: int,
    batch: int,
    seed: int,
    first: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """An endless iterator over shuffled batches; every epoch has another order.

    The order of batches does not depend on which process reads which rows.

    Args:
      tokens: the tokens of the training text.
      length: T.
      batch: sequences in a batch.
      seed: seed of the shuffle. Grain adds the epoch to it, so the second epoch of seed 0 has the
        order of the first epoch of seed 1.
      first: number of the batch to begin with.
      rows: indices of the rows that this process reads; None for all.

    Returns:
      A Grain iterator of [rows, T + 1].
    """
    # One thread without worker processes already reads far faster than a training step needs.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
    windows = grain.MapDataset.source(Windows(tokens, length)).shuffle(seed=seed).repeat()
    batches = _Rows(windows, batch, range(batch) if rows is None else rows)
    return iter(grain.MapDataset.source(batches)[first:].to_iter_dataset(options))


def validation_batches(tokens: Tokens, *, length: int, batch: int, count: int) -> np.ndarray:
    """The fixed batches that every evaluation uses: windows spread evenly over the text.

    Args:
      tokens: the tokens of the validation text.
      length: T.
      batch: sequences in a batch.
      count: number of batches.

    Returns:
      [count, batch, T + 1]; fewer or smaller batches if the text has too few windows.
    """
    windows = Windows(tokens, length)
    batch = min(batch, len(windows))
    count = min(count, len(windows) // batch)
    chosen = np.linspace(0, len(windows) - 1, count * batch).round().astype(int)
    return np.stack([windows[i] for i in chosen]).reshape(count, batch, length + 1)
