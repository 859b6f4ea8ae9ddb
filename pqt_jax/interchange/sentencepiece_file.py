# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a model file of SentencePiece says, which its package does not tell without protobuf.

Not every version of protobuf can load the package's module for these files. Only the fields below
are read.

Source: sentencepiece_model.proto of SentencePiece; "Encoding" in the documentation of Protocol
Buffers.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

UNIGRAM, BPE, _, CHARACTERS = range(1, 5)  # of model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces


class Piece(NamedTuple):
    """A token: its text, its score, and its type."""

    text: str
    score: float
    type: int


class SentencePieceFile(NamedTuple):
    """What a file says.

    Attributes:
      pieces: all tokens in order.
      model_type: one of `UNIGRAM`, `BPE` and others.
      has_bytes: whether unknown characters become tokens of bytes.
      charsmap: the table by which characters are replaced first; b"" for none.
      adds_prefix: whether a space is put before a text.
      strips: whether spaces at the ends are removed, and others become one.
      escapes: whether spaces become ▁.
      suffixes: whether a space belongs to the word before it.
    """

    pieces: list[Piece]
    model_type: int
    has_bytes: bool
    charsmap: bytes
    adds_prefix: bool
    strips: bool
    escapes: bool
    suffixes: bool

    @property
    def normalizes(self) -> bool:
        """Whether texts are changed by more than the prefix and the escape."""
        return bool(self.charsmap) or self.strips or not self.escapes


def read(content: bytes) -> SentencePieceFile:
    """Read a file that the package has accepted.

    Raises:
      ValueError: if it is none.
    """
    model = _group(content)
    trainer, normalizer = (_group(b"".join(model.get(number, []))) for number in (2, 3))

    def flag(message: dict[int, list[Any]], number: int, default: bool) -> bool:
        return bool(message.get(number, [default])[-1])

    return SentencePieceFile(
        pieces=[_piece(encoded) for encoded in model.get(1, [])],
        model_type=trainer.get(3, [UNIGRAM])[-1],
        has_bytes=flag(trainer, 35, False),
        charsmap=normalizer.get(2, [b""])[-1],
        adds_prefix=flag(normalizer, 3, True),
        strips=flag(normalizer, 4, True),
        escapes=flag(normalizer, 5, True),
        suffixes=flag(trainer, 24, False),
    )


def _piece(message: bytes) -> Piece:
    fields = _group(message)
    (score,) = struct.unpack("<f", fields.get(2, [bytes(4)])[-1])
    return Piece(fields.get(1, [b""])[-1].decode(), score, fields.get(3, [NORMAL])[-1])


def _group(message: bytes) -> dict[int, list[Any]]:
    """The values of a message by the numbers of its fields: ints, or bytes."""
    fields: dict[int, list[Any]] = {}
    try:
        for number, value in _fields(message):
            fields.setdefault(number, []).append(value)
    except (IndexError, KeyError, TypeError):
        raise ValueError("it is no protobuf message") from None
    return fields


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            yield number, varint()
        else:
            size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
            at += size
            if at > len(message):
                raise IndexError
            yield number, message[at - size : at]
