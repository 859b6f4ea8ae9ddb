# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The tokenizer of a trained model: named, or found where the model or its data are.

--tokenizer FILE | folder of prepared data | Hugging Face folder | bytes
"""

from argparse import Namespace
from pathlib import Path

from pqt_jax.analysis.load import Trained
from pqt_jax.data import tokenizers, tokens
from pqt_jax.data.tokenizers import Tokenizer
from pqt_jax.errors import InputError
from pqt_jax.training.config import command_line

BYTES = 256  # the vocabulary of a model that reads bytes, at least


def add_argument(parser: command_line.Parser) -> None:
    """Add `--tokenizer`."""
    about = "bytes, *.json, *.model or *.tiktoken; default: the one that the model was trained with"
    parser.add_argument("--tokenizer", metavar="FILE", help=about)


def of(given: Namespace, model: Trained) -> Tokenizer:
    """The tokenizer that a model reads.

    Args:
      given: with `tokenizer`, and what `load.add_arguments` adds.
      model: read by `load.from_arguments`.

    Raises:
      InputError: if none is known, it cannot be loaded, or it has more tokens than the model.
    """
    tokenizer = _named(given, model)
    reads = BYTES if tokenizer.name == "bytes" else tokenizer.vocab_size
    if reads > model.model.vocab_size:
        raise InputError(
            f"tokenizer {tokenizer.name} has {reads} tokens, and the model of {model.origin} only "
            f"{model.model.vocab_size}; give its own by --tokenizer"
        )
    return tokenizer


def _named(given: Namespace, model: Trained) -> Tokenizer:
    if given.tokenizer is not None:
        return tokenizers.load(given.tokenizer)
    if model.run is not None:
        if not (source := model.run.data.tokens):
            return tokenizers.load("bytes")
        if not Path(source).is_dir():
            raise InputError(f"--tokenizer is missing; config.data.tokens={source!r} has none")
        about = tokens.read_index(Path(source)).tokenizer
        name = about["name"] if about["name"] == "bytes" else str(Path(source) / about["name"])
        return tokenizers.load(name, end=about["end"], pattern=about["pattern"])
    folder = Path(given.hf if given.hf is not None else given.packed)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return tokenizers.load(str(folder / name))
    if model.model.vocab_size in (BYTES, BYTES + 1):
        return tokenizers.load("bytes")
    raise InputError(
        f"--tokenizer is missing; the model of {folder} has {model.model.vocab_size} tokens, and "
        "no tokenizer beside it"
    )
