# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The documents that weights are evaluated on: `--data`, or the run's own validation text.

files of documents, or a folder of prepared tokens → one `score.Document` per document
"""

import glob
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pqt_jax.analysis import find_tokenizer
from pqt_jax.analysis.load import TrainedModel
from pqt_jax.analysis.score import Document, Windows
from pqt_jax.console import format_quantity
from pqt_jax.data import source, texts, tokenizers, tokens
from pqt_jax.data.tokenizers import TextError, Tokenizer
from pqt_jax.errors import InputError
from pqt_jax.training.run import workdir

VALIDATION = "the run's validation text"


def read_documents(
    options: Namespace, model: TrainedModel, tokenizer: Tokenizer
) -> tuple[str, list[Document]]:
    """Read and tokenize the documents.

    Args:
      options: the options of `pqt_jax.evaluate`.
      model: from `load.load_model`; without `--data` it must be that of a run.
      tokenizer: the model's tokenizer.

    Returns:
      (name of the text for messages, its documents).

    Raises:
      InputError: if the text cannot be read, or is not the one that the run was trained on.
    """
    if options.data is not None and (Path(options.data) / tokens.INDEX).exists():
        folder = Path(options.data)
        if tokens.read_index(folder).tokenizer["fingerprint"] != tokenizer.fingerprint:
            raise InputError(
                f"--data={folder} was made by another tokenizer than the model's; prepare its text "
                "with the model's, or give the text itself"
            )
        text = tokens.load(options.data, model.config.vocab_size, "--data")
        return f"--data={options.data}", _split_documents(text, folder, tokenizer)
    if options.data is not None:
        return f"--data={options.data}", _read_files(options, model, tokenizer)
    assert model.run_config is not None
    data = model.run_config.data
    if data.tokens:
        return VALIDATION, _read_prepared(options, data.tokens, model.config.vocab_size, tokenizer)
    contents, fingerprint = source.read_validation_files(data.files, "give the text by --data")
    name = f"config.data.files={data.files!r}"
    if not data.files:
        name += ", the standard library of this Python,"
    _check_fingerprint(options, fingerprint, name)
    return VALIDATION, [_tokenize(text, model, tokenizer, name) for name, text in contents.items()]


def _read_files(options: Namespace, model: TrainedModel, tokenizer: Tokenizer) -> list[Document]:
    """The documents in the files of `--data`, which are those that `data.prepare` would read."""
    paths, left_out = sorted(source.match_files(options.data, "--data")[1]), texts.LeftOut()
    documents = [
        _tokenize(text.content, model, tokenizer, f"{text.path}, document {text.number}")
        for text in texts.read_texts(paths, options.field, "--data", left_out)
    ]
    texts.warn_of(left_out, "--data")
    return documents


def _read_prepared(
    options: Namespace, folder: str, vocab_size: int, tokenizer: Tokenizer
) -> list[Document]:
    """The validation documents of the folder that a run was trained on."""
    name = f"config.data.tokens={folder!r}"
    if not glob.glob(folder):
        raise InputError(f"--data is missing; {name} does not exist; give its new place by --data")
    if not Path(folder).is_dir():
        raise InputError(f"--data is missing; {name} does not say where a document ends")
    text = tokens.load(folder, vocab_size)
    _check_fingerprint(options, text.fingerprint, name)
    return _split_documents(text, Path(folder), tokenizer)


def _split_documents(text: source.Text, folder: Path, tokenizer: Tokenizer) -> list[Document]:
    """The validation documents of a prepared folder, without the tokens that begin and end them.

    A tokenizer that normalizes text does not give its bytes back. So the decoded sizes of all
    documents are multiplied by one number, which makes their sum that of the index.
    """
    index, all_tokens = tokens.read_index(folder), text.validation[:]
    documents = np.split(all_tokens, np.flatnonzero(all_tokens == index.end) + 1)[:-1]
    first = 0 if index.tokenizer["begin"] is None else 1
    documents = [ids[first:-1] for ids in documents]
    sizes = [len(tokenizer.decode(ids.tolist())) for ids in documents]
    factor = index.bytes["validation"] / max(1, sum(sizes))
    return [
        _document(ids, size, tokenizer, factor) for ids, size in zip(documents, sizes, strict=True)
    ]


def _check_fingerprint(options: Namespace, fingerprint: str, name: str) -> None:
    if fingerprint != workdir.read_metadata(Path(options.workdir))["data_fingerprint"]:
        raise InputError(f"{name} is not the text that the run was trained on; give --data")


def _tokenize(text: bytes, model: TrainedModel, tokenizer: Tokenizer, name: str) -> Document:
    try:
        ids = np.asarray(tokenizer.encode(text), tokenizer.dtype)
    except TextError as error:
        raise InputError(f"--data: {name} {error}; leave it out") from None
    find_tokenizer.check_tokens(ids, tokenizer, model, name)
    return _document(ids, len(text), tokenizer)


def _document(ids: np.ndarray, decoded: int, tokenizer: Tokenizer, factor: float = 1) -> Document:
    """A document of `factor · decoded` bytes, without those of its first, unscored token."""
    if tokenizer.begin is not None:
        return Document(np.array([tokenizer.begin, *ids], np.int32), factor * decoded)
    first = tokenizers.count_first_token_bytes(tokenizer, ids[:4].tolist()) if ids.size else 0
    return Document(ids, factor * max(0, decoded - first))


def describe_text(
    name: str,
    documents: Sequence[Document],
    windows: Windows,
    *,
    unit: str,
    length: int,
    begin: int | None,
) -> str:
    """Two lines: how much text is scored, and what the intervals are computed from.

    Args:
      name: the text's name.
      documents: from `read_documents`.
      windows: made from them.
      unit: "byte" or "token".
      length: inputs per window.
      begin: the token that each document begins with, or None.
    """
    count = format_quantity(len(documents), "document")
    total = sum(len(document.tokens) for document in documents)
    unscored = f"the first {unit} of a document has no context"
    if begin is not None:
        unscored = f"each document begins with BOS, token {begin}"
    lines = [
        f"data: {name}: {count}, {total:,} {unit}s, {windows.targets.sum():,.0f} scored once each "
        f"({unscored}), in windows of {length}"
    ]
    units = len(windows.targets)
    if units < 2:
        lines.append("no intervals: there is only one document, and only one window in it")
    elif windows.units_are_chunks:
        lines.append(
            f"95 % intervals over {units} chunks of consecutive windows, since there is only one "
            "document; neighbouring chunks are alike, so the intervals are somewhat too narrow"
        )
    else:
        lines.append(f"95 % intervals over {units:,} documents")
    return "\n".join(lines)
