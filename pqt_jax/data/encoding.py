# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Texts → tokens, by many processes: the work of `data.prepare`, with a progress bar."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pqt_jax import console
from pqt_jax.data import processes
from pqt_jax.data.texts import Text
from pqt_jax.data.tokenizers import TextError, Tokenizer
from pqt_jax.errors import InputError

_LINE_EVERY = 30  # seconds between lines of progress where there is no terminal
_BATCH = 1 << 20  # bytes of text that a process tokenizes at a time

Encoded = list[np.ndarray] | TextError


class Batch(NamedTuple):
    """Documents of one file that one process tokenizes, and their numbers in the file."""

    texts: list[bytes]
    numbers: list[int]
    path: Path


@contextlib.contextmanager
def encode_texts(
    read: Iterable[Text], paths: Sequence[Path], load: Callable[[], Tokenizer], count: int
) -> Iterator[Iterator[tuple[bytes, np.ndarray]]]:
    """Yield an iterator of (text, its tokens), in order.

    Args:
      read: the texts, from `texts.read_texts`.
      paths: the files that they are in, in order.
      load: loads the tokenizer. It is pickled.
      count: number of processes.

    Raises:
      InputError: in the body, for a text that cannot be tokenized, or if a process is lost.
    """
    make = functools.partial(_make_encoder, load)
    with _progress(paths) as advance, processes.start_pool(make, count) as apply:
        yield _check(apply(_make_batches(read)), advance)


def _check(
    results: Iterator[tuple[Batch, Encoded]], advance: Callable[[Batch], None]
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Raise what went wrong in other processes."""
    try:
        for batch, encoded in results:
            if isinstance(encoded, TextError):
                raise InputError(
                    f"--input: {batch.path}, {encoded}; leave it out, or give --tokenizer=bytes"
                )
            yield from zip(batch.texts, encoded, strict=True)
            advance(batch)
    except processes.LostError as error:
        raise InputError(
            f"--input: {error.args[0].path}: a process was killed, perhaps for lack of memory; "
            "give fewer --processes"
        ) from None


def _make_batches(read: Iterable[Text]) -> Iterator[Batch]:
    for path, of_file in itertools.groupby(read, lambda text: text.path):
        batch, size = Batch([], [], path), 0
        for text in of_file:
            batch.texts.append(text.content)
            batch.numbers.append(text.number)
            size += len(text.content)
            if size >= _BATCH:
                yield batch
                batch, size = Batch([], [], path), 0
        if batch.texts:
            yield batch


def _make_encoder(load: Callable[[], Tokenizer]) -> Callable[[Batch], Encoded]:
    """Load the tokenizer in a new process: the function batch → tokens of each document."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # this process is one of several
    return functools.partial(_encode, load())


def _encode(tokenizer: Tokenizer, batch: Batch) -> Encoded:
    encoded = []
    for text, number in zip(batch.texts, batch.numbers, strict=True):
        try:
            encoded.append(np.asarray(tokenizer.encode(text), tokenizer.dtype))
        except TextError as error:
            return TextError(f"document {number} {error}")
    return encoded


@contextlib.contextmanager
def _progress(paths: Sequence[Path]) -> Iterator[Callable[[Batch], None]]:
    """Show a progress bar on a terminal, and else a line each half minute.

    Yields a function to call after each batch.
    """
    columns = (TextColumn("files"), MofNCompleteColumn(), BarColumn(bar_width=None))
    more = (TextColumn("{task.fields[shown]}"), TimeRemainingColumn(compact=True))
    order, size, last = {path: i for i, path in enumerate(paths)}, 0, time.monotonic()
    with Progress(*columns, *more, disable=not console.is_terminal()) as bar:
        task = bar.add_task("", total=len(paths), shown="")

        def advance(batch: Batch) -> None:
            nonlocal size, last
            size += sum(map(len, batch.texts))
            shown, done = f"{size / 1e6:,.0f} MB of text", order[batch.path] + 1
            bar.update(task, completed=done, shown=shown)
            if bar.disable and time.monotonic() > last + _LINE_EVERY:
                last = time.monotonic()
                print(f"file {done:,} of {len(paths):,}, {shown}", flush=True)

        yield advance
