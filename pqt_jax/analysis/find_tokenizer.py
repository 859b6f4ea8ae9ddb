# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Find the tokenizer of a trained model.

It is the one that `--tokenizer` names, or else the one stored with the run, its data, or
with the weights (a folder of Hugging Face, of packed weights, or of a GGUF file), or else bytes.
"""

import contextlib
from argparse import Namespace
from pathlib import Path

import numpy as np

from pqt_jax import console
from pqt_jax.analysis.document_begin import add_bos_option, set_begin
from pqt_jax.analysis.load import TrainedModel
from pqt_jax.data import tokenizer_files, tokenizers, tokens
from pqt_jax.data.tokenizers import Tokenizer
from pqt_jax.errors import InputError
from pqt_jax.interchange import gguf_reader, gguf_tokenizer
from pqt_jax.training.run import tokenizer_copy
from pqt_jax.training.run.workdir import TOKENIZER

BYTES = 256  # the smallest vocabulary of a model that reads bytes


def add_tokenizer_options(parser: console.Parser) -> None:
    """Add `--tokenizer` and how it is used."""
    about = (
        "file of the tokenizer, *.json, *.model or *.tiktoken; or bytes; default: the one that the "
        "model was trained with"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help=about)
    parser.add_argument(
        "--pattern",
        default="",
        metavar="REGEX",
        help="regular expression by which a .tiktoken tokenizer splits text; default: that of "
        "prepared data beside it, or GPT-2's",
    )
    add_bos_option(parser)


def find_tokenizer(options: Namespace, model: TrainedModel) -> Tokenizer:
    """Load the tokenizer of a model.

    It may have more tokens than the model, which `check_tokens` looks at.

    Args:
      options: of a parser with `add_tokenizer_options` and `load.add_model_options`.
      model: from `load.load_model`.

    Returns:
      The tokenizer; its `begin` is what the model's documents begin with.

    Raises:
      InputError: if there is none, it cannot be loaded, or the model lacks its BOS.
    """
    tokenizer = set_begin(options, _load(options, model), _find_begin(options, model))
    if tokenizer.begin is not None:
        check_tokens(np.array([tokenizer.begin]), tokenizer, model, "a document that begins by BOS")
    return tokenizer


def check_tokens(ids: np.ndarray, tokenizer: Tokenizer, model: TrainedModel, text: str) -> None:
    """Check that the model has all tokens of a text.

    Args:
      ids: int[tokens].
      tokenizer: from `find_tokenizer`.
      model: from `load.load_model`.
      text: name of the text, for the message.

    Raises:
      InputError: naming a token that is out of range.
    """
    if ids.size and (worst := int(ids.max())) >= model.config.vocab_size:
        raise InputError(
            f"{text} holds token {worst} of tokenizer {tokenizer.name}, and the model of "
            f"{model.origin} has {model.config.vocab_size} tokens; give the model's tokenizer by "
            "--tokenizer"
        )


def _load(options: Namespace, model: TrainedModel) -> Tokenizer:
    if options.tokenizer is not None:
        return _load_file(options.tokenizer, options.pattern)
    if options.pattern:
        raise InputError("--pattern goes with --tokenizer=FILE.tiktoken; leave it out")
    if model.run_config is not None:
        return _load_of_run(Path(options.workdir), model.run_config.data.tokens)
    if options.gguf is not None:
        return _load_beside_gguf(Path(options.gguf), model)
    folder = Path(options.hf if options.hf is not None else options.packed)
    return _load_of_folder(folder) or _load_bytes(folder, model, "its folder holds no tokenizer")


def _load_of_folder(folder: Path) -> Tokenizer | None:
    for name in (tokenizer_files.JSON, tokenizer_files.MODEL):
        if (folder / name).is_file():
            is_bytes = name == tokenizer_files.JSON and tokenizer_files.is_bytes(folder / name)
            return tokenizers.load("bytes" if is_bytes else str(folder / name))
    return None


def _load_beside_gguf(path: Path, model: TrainedModel) -> Tokenizer:
    """Bytes, if the file says so, or a tokenizer beside it: those in GGUF files are not read."""
    metadata = gguf_reader.read(path).metadata
    if gguf_tokenizer.is_bytes(metadata):
        return tokenizers.load("bytes")
    if tokenizer := _load_of_folder(path.parent):
        return tokenizer
    if metadata.get("tokenizer.ggml.model", "none") == "none":
        return _load_bytes(path, model, "it holds no tokenizer")
    raise InputError(
        f"--tokenizer is missing; the tokenizer in {path} is llama.cpp's form of it, so give its "
        "own file"
    )


def _load_bytes(origin: Path, model: TrainedModel, why: str) -> Tokenizer:
    if model.config.vocab_size in (BYTES, BYTES + 1):
        return tokenizers.load("bytes")
    raise InputError(
        f"--tokenizer is missing; the model of {origin} has {model.config.vocab_size} tokens, and "
        f"{why}"
    )


def _find_begin(options: Namespace, model: TrainedModel) -> int | None:
    """What documents began with in the training of a run, or of packed weights."""
    if model.run_config is None:
        return model.begin
    with contextlib.suppress(InputError):  # a damaged description: `_load` says so
        return tokenizer_copy.find_begin(Path(options.workdir), model.run_config.data.tokens)
    return None


def _load_file(path: str, pattern: str) -> Tokenizer:
    """The tokenizer of a file. That of tiktoken does not say how text is split."""
    if Path(path).suffix != ".tiktoken" or pattern:
        return tokenizers.load(path, pattern=pattern)
    folder = Path(path).absolute().parent
    if (folder / tokens.INDEX).is_file():
        description = tokens.read_index(folder).tokenizer
        if description["name"] == Path(path).name:
            return tokenizer_copy.load_described(folder, description)
    if folder.name == TOKENIZER and tokenizer_copy.is_there(folder.parent):
        return tokenizer_copy.load(folder.parent)
    console.print_error(
        f"warning: {path} does not say by which pattern text is split; GPT-2's is used, give "
        "another by --pattern"
    )
    return tokenizers.load(path)


def _load_of_run(workdir: Path, data: str) -> Tokenizer:
    """The tokenizer in the workdir; in the data, for a run without; bytes for a run on text."""
    if tokenizer_copy.is_there(workdir):
        return tokenizer_copy.load(workdir)
    if not data:
        return tokenizers.load("bytes")
    if not Path(data).is_dir():
        raise InputError(f"--tokenizer is missing; config.data.tokens={data!r} has none")
    return tokenizer_copy.load_described(Path(data), tokens.read_index(Path(data)).tokenizer)
