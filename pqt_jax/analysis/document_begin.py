# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Whether documents begin with the tokenizer's BOS.

    --bos, --no-bos       yes, no
    --hf DIR              as the folder says
    --gguf FILE           as the file says
    --workdir, --packed   as in training: documents of `data.prepare` have one with its `--bos`, and
                          those of text files have none

A model expects in front of a document what was there in its training. A tokenizer's file alone does
not tell: SentencePiece always has a BOS, and a run may have been trained without it.
"""

import argparse
from argparse import Namespace
from pathlib import Path

from pqt_jax import console
from pqt_jax.data.tokenizers import Tokenizer
from pqt_jax.errors import InputError
from pqt_jax.interchange import gguf_reader
from pqt_jax.interchange.safetensors_io import read_json


def add_bos_option(parser: console.Parser) -> None:
    """Add `--bos` and `--no-bos`."""
    parser.add_argument(
        "--bos",
        action=argparse.BooleanOptionalAction,
        help="begin documents with the tokenizer's BOS, or not; default: as in training, which "
        "with --hf and --gguf the folder or file says",
    )


def set_begin(options: Namespace, tokenizer: Tokenizer, trained: int | None) -> Tokenizer:
    """The tokenizer with `begin` as the model's documents begin.

    Args:
      options: with `bos`, and the options of `load.add_model_options`.
      tokenizer: from `tokenizers.load`.
      trained: with `--workdir` and `--packed`, the token that documents began with in training.

    Raises:
      InputError: for `--bos` if the tokenizer has none, or if a file is damaged.
    """
    begin, is_usual = tokenizer.begin if trained is None else trained, trained is not None
    if options.hf is not None:
        begin, is_usual = _read_folder(Path(options.hf), begin)
    elif options.gguf is not None:
        begin, is_usual = _read_gguf(Path(options.gguf), begin)
    is_wanted = is_usual if options.bos is None else options.bos
    if options.bos and begin is None:
        raise InputError(f"--bos: tokenizer {tokenizer.name} has none; leave it out")
    return tokenizer._replace(begin=begin if is_wanted else None)


def _read_folder(folder: Path, begin: int | None) -> tuple[int | None, bool]:
    """The BOS by the files of a Hugging Face folder, and whether documents begin with it.

    `add_bos_token` of tokenizer_config.json decides, or else whether the tokenizer adds one. With a
    `bos_token_id` of null in config.json they do not; the folders that we export say so.
    """
    path = folder / "tokenizer_config.json"
    adds = (read_json(path) if path.is_file() else {}).get("add_bos_token", begin is not None)
    token = read_json(folder / "config.json").get("bos_token_id", begin)
    if begin is None and type(token) is int and token >= 0:
        begin = token
    return begin, bool(adds) and token is not None


def _read_gguf(path: Path, begin: int | None) -> tuple[int | None, bool]:
    """The BOS by a GGUF file, and whether documents begin with it, as llama.cpp has it."""
    metadata = gguf_reader.read(path).metadata
    default = metadata.get("tokenizer.ggml.model") == "llama"
    adds = metadata.get("tokenizer.ggml.add_bos_token", default) is True
    token = metadata.get("tokenizer.ggml.bos_token_id", begin)
    return (token if adds and type(token) is int else begin), adds
