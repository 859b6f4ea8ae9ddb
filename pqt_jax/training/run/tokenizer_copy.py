# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The tokenizer of a run, copied into its folder, so that the run is read wherever it lies.

    config.data.tokens=DIR: the tokenizer of DIR/index.json → WORKDIR/tokenizer/
        description.json    name of the file, options of `tokenizers.load`, fingerprint, and the
                            token before each document, if there is one
        tokenizer.json      the file itself, under its own name; none for bytes

A run on text (`config.data.files`) reads bytes, and a run on .bin files has no tokenizer: they have
no copy.
"""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from pqt_jax.data import tokenizers, tokens
from pqt_jax.data.tokenizers import Tokenizer
from pqt_jax.errors import MALFORMED, InputError, OutputError, system_reason
from pqt_jax.interchange import files
from pqt_jax.training.run.workdir import TOKENIZER

DESCRIPTION = "description.json"


class TokenizerFile(NamedTuple):
    """The file of a tokenizer, and how it is read.

    Attributes:
      description: as `tokens.Index.tokenizer`.
      content: the content of the file; empty for bytes.
    """

    description: dict[str, Any]
    content: bytes


def read_prepared(folder: Path) -> TokenizerFile | None:
    """Read the tokenizer of a folder that `data.prepare` made; None if its file is missing.

    Raises:
      InputError: if it is not the tokenizer that made the tokens, or cannot be read.
    """
    return _read(folder, tokens.read_index(folder).tokenizer, "config.data.tokens: ")


def read(workdir: Path) -> TokenizerFile:
    """Read the copy of the tokenizer that a run has.

    Raises:
      InputError: if it is damaged.
    """
    folder, argument = workdir / TOKENIZER, f"--workdir={workdir}: "
    tokenizer = _read(folder, _read_description(workdir, "put a copy back"), argument)
    if tokenizer is None:
        raise InputError(f"{argument}the tokenizer is missing in {folder}; put a copy back")
    return tokenizer


def _read(folder: Path, description: dict[str, Any], argument: str) -> TokenizerFile | None:
    if description["name"] == "bytes":
        return TokenizerFile(description, b"")
    path = folder / description["name"]
    try:
        content = files.read_bytes(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = system_reason(error, "put a copy back")
        raise InputError(f"{argument}{path} cannot be read: {why}") from None
    digest = tokenizers.fingerprint(content, description["end"], description["pattern"])
    if digest != description["fingerprint"]:
        raise InputError(
            f"{argument}{path} is not the tokenizer that made the tokens; put a copy back"
        )
    return TokenizerFile(description, content)


def _read_description(workdir: Path, remedy: str) -> dict[str, Any]:
    with contextlib.suppress(OSError, *MALFORMED):
        return tokens.parse_tokenizer(files.read_json(workdir / TOKENIZER / DESCRIPTION))
    raise InputError(f"--workdir={workdir}: {TOKENIZER}/{DESCRIPTION} in it is damaged; {remedy}")


def write(workdir: Path, tokenizer: TokenizerFile) -> None:
    """Copy a tokenizer into the folder of a run; the description last, since it says all is there.

    Raises:
      OutputError: if it cannot be written.
    """
    folder = workdir / TOKENIZER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(folder, error) from None
    if tokenizer.content:
        files.write(folder / tokenizer.description["name"], tokenizer.content)
    files.write(folder / DESCRIPTION, json.dumps(tokenizer.description, indent=2) + "\n")


def is_there(workdir: Path) -> bool:
    """Whether a run has a copy of its tokenizer."""
    return (workdir / TOKENIZER / DESCRIPTION).exists()


def load(workdir: Path) -> Tokenizer:
    """Load the copy of the tokenizer that a run has.

    Raises:
      InputError: if it is damaged, or a package that reads it is missing.
    """
    description = _read_description(workdir, "put a copy back, or give --tokenizer")
    return load_described(workdir / TOKENIZER, description)


def find_begin(workdir: Path, data: str) -> int | None:
    """The token that each document of a run's data begins with; None if there is none.

    Args:
      workdir: the run's folder.
      data: its `config.data.tokens`, which is asked if the run has no copy of the tokenizer.

    Raises:
      InputError: if a description is damaged.
    """
    if is_there(workdir):
        return _read_description(workdir, "put a copy back")["begin"]
    if data and (Path(data) / tokens.INDEX).is_file():
        return tokens.read_index(Path(data)).tokenizer["begin"]
    return None


def load_described(folder: Path, description: dict[str, Any]) -> Tokenizer:
    """Load the tokenizer that a description names.

    Args:
      folder: where its file is.
      description: as in `TokenizerFile`.

    Raises:
      InputError: if the file is not the one that was described.
    """
    name = description["name"]
    path = name if name == "bytes" else str(folder / name)
    tokenizer = tokenizers.load(path, end=description["end"], pattern=description["pattern"])
    if tokenizer.fingerprint != description["fingerprint"]:
        raise InputError(
            f"{path} is not the tokenizer that made the tokens; put a copy back, or give "
            "--tokenizer"
        )
    return tokenizer
