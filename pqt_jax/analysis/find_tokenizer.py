# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Find the tokenizer of a trained model.

It is the one that `--tokenizer` names, or else the one stored with the run, its data, or
with the weights (a Hugging Face or a packed folder), or else bytes.
"""

from argparse import Namespace
from pathlib import Path

from pqt_jax import console
from pqt_jax.analysis.load import TrainedModel
from pqt_jax.data import tokenizers, tokens
from pqt_jax.data.tokenizers import Tokenizer
from pqt_jax.errors import InputError
from pqt_jax.training.run import tokenizer_copy

BYTES = 256  # the smallest vocabulary of a model that reads bytes


def add_tokenizer_option(parser: console.Parser) -> None:
    """Add `--tokenizer`."""
    about = (
        "file of the tokenizer, *.json, *.model or *.tiktoken; or bytes; default: the one that the "
        "model was trained with"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help=about)


def find_tokenizer(options: Namespace, model: TrainedModel) -> Tokenizer:
    """Load the tokenizer of a model.

    Args:
      options: with `tokenizer`, and the options of `load.add_model_options`.
      model: from `load.load_model`.

    Raises:
      InputError: if there is none, it cannot be loaded, or it has more tokens than the model.
    """
    tokenizer = _load(options, model)
    size = BYTES if tokenizer.name == "bytes" else tokenizer.vocab_size
    if size > model.config.vocab_size:
        raise InputError(
            f"tokenizer {tokenizer.name} has {size} tokens, and the model of {model.origin} only "
            f"{model.config.vocab_size}; give the model's tokenizer by --tokenizer"
        )
    return tokenizer


def _load(options: Namespace, model: TrainedModel) -> Tokenizer:
    if options.tokenizer is not None:
        return tokenizers.load(options.tokenizer)
    if model.run_config is not None:
        return _load_of_run(Path(options.workdir), model.run_config.data.tokens)
    folder = Path(options.hf if options.hf is not None else options.packed)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return tokenizers.load(str(folder / name))
    if model.config.vocab_size in (BYTES, BYTES + 1):
        return tokenizers.load("bytes")
    raise InputError(
        f"--tokenizer is missing; the model of {folder} has {model.config.vocab_size} tokens, and "
        "its folder holds no tokenizer"
    )


def _load_of_run(workdir: Path, data: str) -> Tokenizer:
    """The tokenizer in the workdir; in the data, for a run without; bytes for a run on text."""
    if tokenizer_copy.is_there(workdir):
        return tokenizer_copy.load(workdir)
    if not data:
        return tokenizers.load("bytes")
    if not Path(data).is_dir():
        raise InputError(f"--tokenizer is missing; config.data.tokens={data!r} has none")
    return tokenizer_copy.load_described(Path(data), tokens.read_index(Path(data)).tokenizer)
