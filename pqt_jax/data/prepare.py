# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Text → tokens: `python -m pqt_jax.data.prepare --tokenizer bytes --input GLOB --out DIR`.

    files → documents → tokens, by many processes → train-00000.bin …, validation-00000.bin …
                                                  → index.json: counts and digests

Each document ends with the end token of the tokenizer. A document is for training or validation by
its text alone, so copies of it are in the same split. The files do not depend on the number of
processes. The folder is written atomically.

Exit codes: `errors.EXIT_CODES`.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pqt_jax import console, errors
from pqt_jax.console import format_quantity
from pqt_jax.data import documents, processes, shards, tokenizer_kinds, tokenizers, tokens
from pqt_jax.data.source import match_files
from pqt_jax.data.splits import list_some, named_split
from pqt_jax.errors import InputError
from pqt_jax.interchange.folders import atomic_folder, check_destination

EXIT_CODES = errors.EXIT_CODES
_COUNTED = ("document", "byte", "token")  # fields of the index are the plurals
_LINE_EVERY = 30  # seconds between lines of progress where there is no terminal
_BATCH = 1 << 20  # bytes of text that a process tokenizes at a time


class Batch(NamedTuple):
    """Documents of one file that one process tokenizes, and their numbers in the file from 1 on."""

    texts: list[bytes]
    numbers: list[int]
    path: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program; None for `sys.argv[1:]`.

    Returns:
      One of `EXIT_CODES`.
    """
    return console.run(_run, arguments)


def parser() -> console.Parser:
    """The options of the command."""
    result = console.Parser(prog="python -m pqt_jax.data.prepare", description="Tokenize text.")
    above = console.number(int, lambda n: 0 < n < 2**40, "a whole number from 1 on")
    share = console.number(float, lambda x: 0 < x < 1, "above 0 and below 1")
    add = result.add_argument
    add(
        "--tokenizer",
        required=True,
        metavar="FILE",
        help="file of the tokenizer, *.json, *.model or *.tiktoken; or bytes, for one token a byte",
    )
    add(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="GLOB",
        help="files of documents: text, JSON, CSV (also compressed), Parquet or ArrayRecord; "
        "one or more patterns or files",
    )
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder to write; it is complete, or absent after a failure",
    )
    add(
        "--field",
        default=documents.FIELD,
        help="field of JSON and column of Parquet files that holds the text; default: text",
    )
    add(
        "--end",
        default="",
        metavar="TOKEN",
        help="token to add at the end of each document; default: the tokenizer's own",
    )
    add(
        "--pattern",
        default="",
        metavar="REGEX",
        help="regular expression by which a .tiktoken tokenizer splits text; default: GPT-2's",
    )
    add(
        "--validation",
        type=share,
        default=0.005,
        metavar="S",
        help="share of the documents that become validation text; default: 0.005",
    )
    add(
        "--shard",
        type=above,
        default=10**8,
        metavar="N",
        help="number of tokens in each file that is written; default: 1e8",
    )
    add(
        "--processes",
        type=above,
        default=os.cpu_count(),
        metavar="N",
        help="number of processes that tokenize; default: one for each CPU core",
    )
    return result


def _run(arguments: Sequence[str]) -> None:
    options = parser().parse_args(arguments)
    check_destination(options.out, None, "--out=")
    tokenizer = tokenizers.load(options.tokenizer, end=options.end, pattern=options.pattern)
    if tokenizer.end is None:
        ends = ", ".join(tokenizer_kinds.END_TOKENS)
        raise InputError(
            f"--tokenizer={options.tokenizer} has none of {ends}; give the token that ends a "
            "document by --end"
        )
    paths = sorted({path for glob in options.input for path in match_files(glob, "--input")[1]})
    named = [str(path) for path in paths if named_split(path.name) in ("validation", "test")]
    if named:
        console.print_error(
            f"warning: documents of all files are divided, also those of {list_some(named)}; leave "
            "out of --input what is for validation or tests"
        )
    with atomic_folder(options.out, None) as folder:
        writers = {
            split: shards.ShardWriter(folder, split, tokenizer.dtype, options.shard)
            for split in tokens.SPLITS
        }
        with _tokenize(options, paths) as batches:
            for batch, encoded in batches:
                for text, ids in zip(batch.texts, encoded, strict=True):
                    split = "validation" if is_validation(text, options.validation) else "train"
                    writers[split].add(ids, tokenizer.end, len(text))
        index = _make_index(options, tokenizer, folder) | {
            p: writers[p].close() for p in tokens.SPLITS
        }
        for split in tokens.SPLITS:
            if not index[split]["documents"]:
                count = sum(index[other]["documents"] for other in tokens.SPLITS)
                all_documents = format_quantity(count, "document")
                share = _suggest_share(split, options.validation, count)
                raise InputError(
                    f"--validation={options.validation}: none of {all_documents} is for {split}; "
                    f"give more documents, or {share}"
                )
        index[tokens.DIGEST] = tokens.compute_digest(index)
        (folder / tokens.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for split in tokens.SPLITS:
        sizes = [format_quantity(index[split][f"{noun}s"], noun) for noun in _COUNTED]
        files = format_quantity(len(index[split]["shards"]), "file")
        print(f"{split}: {', '.join(sizes)} in {files}")
    print(f"written: {options.out}; train with --config.data.tokens={options.out}")


def _suggest_share(split: str, share: float, count: int) -> str:
    """The change of `share` that may give a split some of the documents, in words."""
    if split == "train":
        return "a smaller share"
    larger = min(0.5, 3 / max(1, count))  # three documents on average
    return f"a larger share, such as {larger:.2g}" if larger > share else "a larger share"


def is_validation(text: bytes, share: float) -> bool:
    """Whether a document belongs to the validation split, by the SHA-256 of its text."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) < share * 2**64


@contextlib.contextmanager
def _tokenize(
    options: Namespace, paths: Sequence[Path]
) -> Iterator[Iterator[tuple[Batch, list[np.ndarray]]]]:
    """Yield all batches, in order, each with the tokens of its documents."""
    given = {"end": options.end, "pattern": options.pattern}
    make = functools.partial(_make_encoder, options.tokenizer, given)
    with _progress(paths) as advance, processes.start_pool(make, options.processes) as apply:
        yield _check(apply(_make_batches(paths, options.field)), advance)


def _check(
    results: Iterator[tuple[Batch, list[np.ndarray] | tokenizers.TextError]],
    advance: Callable[[Batch], None],
) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """Raise what went wrong in other processes."""
    try:
        for batch, encoded in results:
            if isinstance(encoded, tokenizers.TextError):
                raise InputError(
                    f"--input: {batch.path}, {encoded}; leave it out, or give --tokenizer=bytes"
                )
            yield batch, encoded
            advance(batch)
    except processes.LostError as error:
        raise InputError(
            f"--input: {error.args[0].path}: a process was killed, perhaps for lack of memory; "
            "give fewer --processes"
        ) from None


def _make_batches(paths: Sequence[Path], field: str) -> Iterator[Batch]:
    for path in paths:
        batch, size = Batch([], [], path), 0
        for number, text in enumerate(documents.read_documents(path, field), 1):
            if not text:
                continue
            batch.texts.append(text)
            batch.numbers.append(number)
            size += len(text)
            if size >= _BATCH:
                yield batch
                batch, size = Batch([], [], path), 0
        yield batch


def _make_encoder(
    path: str, options: dict[str, str]
) -> Callable[[Batch], list[np.ndarray] | tokenizers.TextError]:
    """Load the tokenizer in a new process: the function batch → tokens of each document."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # this process is one of several
    return functools.partial(_encode, tokenizers.load(path, **options))


def _encode(
    tokenizer: tokenizers.Tokenizer, batch: Batch
) -> list[np.ndarray] | tokenizers.TextError:
    encoded = []
    for text, number in zip(batch.texts, batch.numbers, strict=True):
        try:
            encoded.append(np.asarray(tokenizer.encode(text), tokenizer.dtype))
        except tokenizers.TextError as error:
            return tokenizers.TextError(f"document {number} {error}")
    return encoded


def _make_index(
    options: Namespace, tokenizer: tokenizers.Tokenizer, folder: Path
) -> dict[str, Any]:
    """The fields of the index except the splits; copies the tokenizer's file to the folder."""
    about = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
    if options.tokenizer != "bytes":
        shutil.copyfile(options.tokenizer, folder / tokenizer.name)
    return {
        "version": tokens.VERSION,
        "dtype": str(tokenizer.dtype),
        "vocab_size": tokenizer.vocab_size,
        "end": tokenizer.end,
        "tokenizer": about | {"end": options.end, "pattern": options.pattern},
    }


@contextlib.contextmanager
def _progress(paths: Sequence[Path]) -> Iterator[Callable[[Batch], None]]:
    """Show a progress bar on a terminal, and else a line each half minute.

    Yields a function to call after each batch.
    """
    columns = (TextColumn("files"), MofNCompleteColumn(), BarColumn(bar_width=None))
    more = (TextColumn("{task.fields[shown]}"), TimeRemainingColumn(compact=True))
    order, size, last = {path: i for i, path in enumerate(paths)}, 0, time.monotonic()
    with Progress(*columns, *more, disable=not sys.stdout.isatty()) as bar:
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


if __name__ == "__main__":
    sys.exit(main())
