# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files → the documents in them that have text, and what was left out."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pqt_jax.console import format_quantity, print_error
from pqt_jax.data import documents
from pqt_jax.data.splits import list_some
from pqt_jax.errors import InputError


class Text(NamedTuple):
    """A document that is not empty, and its number in its file from 1 on."""

    path: Path
    number: int
    content: bytes


@dataclasses.dataclass
class LeftOut:
    """What `read_texts` has left out.

    Attributes:
      files: those in which no document has text.
      documents: the number of empty documents in other files.
      first: the file and number of the first of them.
    """

    files: list[Path] = dataclasses.field(default_factory=list)
    documents: int = 0
    first: str = ""


def read_texts(
    paths: Sequence[Path], field: str, argument: str, left_out: LeftOut
) -> Iterator[Text]:
    """Read the documents of files, in order.

    Args:
      paths: the files.
      field: as for `documents.read_documents`.
      argument: the name of the argument that gave the files, for messages.
      left_out: is filled.

    Raises:
      InputError: as `documents.read_documents`, or at the end if there is no text in any file.
    """
    for path in paths:
        number = empty = first = 0
        for number, content in enumerate(documents.read_documents(path, field, argument), 1):
            if content:
                yield Text(path, number, content)
            else:
                first, empty = first or number, empty + 1
        if empty == number:
            left_out.files.append(path)
        elif empty:
            left_out.first = left_out.first or f"{path}, document {first}"
            left_out.documents += empty
    if len(left_out.files) == len(paths):
        there = list_some([str(path) for path in paths])
        raise InputError(f"{argument}: there is no text in {there}; give files with text")


def warn_of(left_out: LeftOut, argument: str) -> None:
    """Print a line for files, and one for documents, that were left out."""
    if left_out.files:
        names = list_some([str(path) for path in left_out.files])
        print_error(f"warning: {argument}: left out, since there is no text in it: {names}")
    if left_out.documents:
        count = format_quantity(left_out.documents, "document")
        print_error(
            f"warning: {argument}: left out: {count} without text, the first in {left_out.first}"
        )
