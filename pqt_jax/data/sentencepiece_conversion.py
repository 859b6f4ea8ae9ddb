# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""SentencePiece → a tokenizer.json.

    pieces with scores and types, flags → vocabulary, merges, how text is split and spelled

The file is a protobuf message, which is read here: the module of SentencePiece for it does not
load with each version of protobuf. Field numbers are those of sentencepiece_model.proto.

Of a Unigram model the most likely cut of a text is taken. If several are equally likely, as with
repeated pieces, the package tokenizers may take another than SentencePiece does.
"""

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pqt_jax.data import byte_level, tokenizer_conversion, tokenizer_kinds
from pqt_jax.data.tokenizer_conversion import Inexact

# Types of pieces, and kinds of models, by their numbers.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_UNIGRAM, _BPE, _CHARACTERS = 1, 2, 4


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    score: float
    type: int


def from_sentencepiece(content: bytes, end: str) -> tuple[dict[str, Any], int | None]:
    """The tokenizer.json of a SentencePiece model.

    Args:
      content: the file.
      end: as for `tokenizers.load`.

    Returns:
      (content of tokenizer.json, token that ends documents; None if it is unknown).

    Raises:
      Inexact: if its tokens are not the same, apart from equally likely ones.
    """
    parts = tokenizer_kinds.read_sentencepiece(content, end, "")
    fields = _group(content)
    trainer, normalizer = (_group(fields.get(number, [b""])[-1]) for number in (2, 3))
    pieces = [_piece(value) for value in fields[1]]
    if parts.end is not None:
        pieces[parts.end] = pieces[parts.end]._replace(type=_CONTROL)
    special = [
        byte_level.special_token(piece.text, token)
        for token, piece in enumerate(pieces)
        if piece.type in (_UNKNOWN, _CONTROL)
    ]
    result = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        **_spelling(normalizer, [p.text for p in pieces if p.type == _USER_DEFINED]),
        "post_processor": None,
        "model": _model(pieces, trainer),
    }
    texts = [piece.text for piece in pieces if piece.type in (_NORMAL, _USER_DEFINED)]
    tokenizer_conversion.check_tokens(result, parts, texts)
    return result, parts.end


def _model(pieces: Sequence[Piece], trainer: dict[int, list[Any]]) -> dict[str, Any]:
    """The model of the tokenizer.json, by the pieces and the fields of TrainerSpec."""
    kind, has_bytes = trainer.get(3, [_UNIGRAM])[-1], bool(trainer.get(35, [0])[-1])
    (unknown,) = (token for token, piece in enumerate(pieces) if piece.type == _UNKNOWN)
    if kind == _UNIGRAM:
        top = max(piece.score for piece in pieces if piece.type == _NORMAL)
        # What the user has defined is preferred to all other pieces.
        scored = [
            [text, len(text.encode()) * top - 0.1 if of_type == _USER_DEFINED else score]
            for text, score, of_type in pieces
        ]
        return {"type": "Unigram", "unk_id": unknown, "byte_fallback": has_bytes, "vocab": scored}
    if kind not in (_BPE, _CHARACTERS):
        raise Inexact("splits text into whole words")
    vocabulary = {piece.text: token for token, piece in enumerate(pieces)}
    return byte_level.bpe(
        vocabulary,
        _merges(pieces, vocabulary) if kind == _BPE else [],
        unk_token=pieces[unknown].text,
        fuse_unk=True,
        byte_fallback=has_bytes,
        ignore_merges=any(piece.type == _USER_DEFINED for piece in pieces),
    )


def _merges(pieces: Sequence[Piece], vocabulary: Mapping[str, int]) -> list[str]:
    """Pairs of pieces whose union is a piece, from the highest score of the union to the lowest."""
    pairs = []
    for text, _, of_type in sorted(pieces, key=lambda piece: -piece.score):
        if of_type == _NORMAL:
            cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
            pairs += [f"{a} {b}" for a, b in cuts if a in vocabulary and b in vocabulary]
    return pairs


def _spelling(fields: dict[int, list[Any]], whole: Sequence[str]) -> dict[str, Any]:
    """How text becomes pieces and pieces become text, by the normalizer of SentencePiece.

    Args:
      fields: of its NormalizerSpec.
      whole: pieces that are never merged with others.
    """
    has_prefix, strips, escapes = (bool(fields.get(number, [1])[-1]) for number in (3, 4, 5))
    steps: list[dict[str, Any]] = []
    if charsmap := fields.get(2, [b""])[-1]:
        table = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if strips:
        steps.append(_replace({"Regex": r"\A +|[ ▁]+\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if has_prefix:
        steps.append({"type": "Prepend", "prepend": "▁" if escapes else " "})
    if escapes:
        steps.append(_replace({"String": " "}, "▁"))
    split = None
    if whole:
        longest_first = sorted(whole, key=len, reverse=True)
        pattern = "|".join(r"".join(f"\\x{{{ord(c):X}}}" for c in text) for text in longest_first)
        options = {"behavior": "Isolated", "invert": False}
        split = {"type": "Split", "pattern": {"Regex": pattern}, **options}
    decoders = [_replace({"String": "▁"}, " ")] if escapes else []
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": split,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _group(message: bytes) -> dict[int, list[Any]]:
    """The fields of a protobuf message: number → values, as bytes, int or float."""
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(message):
        fields.setdefault(number, []).append(value)
    return fields


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
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
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            yield number, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        value = message[at : at + size]
        at += size
        yield number, struct.unpack("<f", value)[0] if wire == 5 else value


def _piece(message: bytes) -> Piece:
    fields = _group(message)
    text = fields.get(1, [b""])[-1].decode()
    return Piece(text, fields.get(2, [0.0])[-1], fields.get(3, [1])[-1])
