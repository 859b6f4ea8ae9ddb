# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Text → tokens: `python -m pqt_jax.data.prepare --tokenizer bytes --input GLOB --out DIR`.

    files → documents → tokens, by many processes → train-00000.bin …, validation-00000.bin …
                                                  → index.json: counts and digests

Each document ends with the end token of the tokenizer, and with `--bos` begins with its BOS. A
document is for training or validation by its text alone, so copies of it are in the same split. The
files do not depend on the number of processes. The folder is written atomically.

Exit codes: `errors.EXIT_CODES`.
"""

import functools
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pqt_jax import console, errors
from pqt_jax.console import format_quantity
from pqt_jax.data import (
    documents,
    encoding,
    held_out,
    shards,
    texts,
    tokenizer_kinds,
    tokenizers,
    tokens,
)
from pqt_jax.data.source import match_files
from pqt_jax.data.splits import list_some, named_split
from pqt_jax.errors import InputError
from pqt_jax.interchange.folders import atomic_folder, check_destination

EXIT_CODES = errors.EXIT_CODES
_COUNTED = ("document", "byte", "token")  # fields of the index are the plurals


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
        help="field of JSON and column of CSV and Parquet files that holds the text; default: text",
    )
    add(
        "--end",
        default="",
        metavar="TOKEN",
        help="token to add at the end of each document; default: the tokenizer's own",
    )
    add(
        "--bos",
        action="store_true",
        help="begin each document with the tokenizer's BOS, in evaluation and generation, too; "
        "default: none",
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
    load = functools.partial(
        tokenizers.load, options.tokenizer, end=options.end, pattern=options.pattern
    )
    tokenizer = load()
    if tokenizer.end is None:
        ends = ", ".join(tokenizer_kinds.END_TOKENS)
        raise InputError(
            f"--tokenizer={options.tokenizer} has none of {ends}; give the token that ends a "
            "document by --end"
        )
    begin = _check_begin(options, tokenizer)
    paths = sorted({path for glob in options.input for path in match_files(glob, "--input")[1]})
    named = [str(path) for path in paths if named_split(path.name) in ("validation", "test")]
    if named:
        console.print_error(
            f"warning: documents of all files are divided, also those of {list_some(named)}; leave "
            "out of --input what is for validation or tests"
        )
    left_out, outermost = texts.LeftOut(), []
    with atomic_folder(options.out, None) as folder:
        writers = {
            split: shards.ShardWriter(folder, split, tokenizer.dtype, options.shard)
            for split in tokens.SPLITS
        }
        read = texts.read_texts(paths, options.field, "--input", left_out)
        with encoding.encode_texts(read, paths, load, options.processes) as encoded:
            for text, ids in encoded:
                position = held_out.position(text)
                outermost = held_out.keep_outermost(outermost, position)
                is_held_out = held_out.is_held_out(position, options.validation)
                split = "validation" if is_held_out else "train"
                writers[split].add(np.concatenate([begin, ids, [tokenizer.end]]), len(text))
        index = _make_index(options, tokenizer, folder) | {
            p: writers[p].close() for p in tokens.SPLITS
        }
        counts = {split: index[split]["documents"] for split in tokens.SPLITS}
        _check_splits(options.validation, counts, outermost)
        index[tokens.DIGEST] = tokens.compute_digest(index)
        (folder / tokens.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for split in tokens.SPLITS:
        sizes = [format_quantity(index[split][f"{noun}s"], noun) for noun in _COUNTED]
        files = format_quantity(len(index[split]["shards"]), "file")
        print(f"{split}: {', '.join(sizes)} in {files}")
    print(f"written: {options.out}; train with --config.data.tokens={options.out}")
    texts.warn_of(left_out, "--input")


def _check_begin(options: Namespace, tokenizer: tokenizers.Tokenizer) -> list[int]:
    """The tokens to put before each document."""
    if not options.bos:
        return []
    if tokenizer.begin is None:
        raise InputError(f"--bos: tokenizer {tokenizer.name} has none; leave it out")
    if tokenizer.begin == tokenizer.end:
        raise InputError(
            f"--bos: the BOS of tokenizer {tokenizer.name} also ends documents, token "
            f"{tokenizer.end}; leave it out, since it stands before all but the first anyway"
        )
    return [tokenizer.begin]


def _check_splits(share: float, documents: dict[str, int], outermost: Sequence[int]) -> None:
    """Raise InputError if a split has no document.

    Args:
      share: the share of validation.
      documents: the number of documents of each split.
      outermost: positions from `held_out.keep_outermost`.
    """
    for split, count in documents.items():
        if count:
            continue
        all_documents = format_quantity(sum(documents.values()), "document")
        remedy = "2 at least, of different texts, are needed"
        if len(outermost) > 1:
            suggested = held_out.suggest_share(outermost, split)
            remedy = f"give more documents, or another share, such as {suggested}"
        raise InputError(f"--validation={share}: none of {all_documents} is for {split}; {remedy}")


def _make_index(
    options: Namespace, tokenizer: tokenizers.Tokenizer, folder: Path
) -> dict[str, Any]:
    """The fields of the index except the splits; copies the tokenizer's file to the folder."""
    about = {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint}
    begin = {"begin": tokenizer.begin} if options.bos else {}
    if options.tokenizer != "bytes":
        shutil.copyfile(options.tokenizer, folder / tokenizer.name)
    return {
        "version": tokens.VERSION,
        "dtype": str(tokenizer.dtype),
        "vocab_size": tokenizer.vocab_size,
        "end": tokenizer.end,
        "tokenizer": about | {"end": options.end, "pattern": options.pattern} | begin,
    }


if __name__ == "__main__":
    sys.exit(main())
