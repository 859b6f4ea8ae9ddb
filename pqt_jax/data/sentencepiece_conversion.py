# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""SentencePiece → a tokenizer.json.

    pieces with scores and types, flags → vocabulary, merges, how text is split and spelled

Of a Unigram model the most likely cut of a text is taken. If several are equally likely, as with
repeated pieces, the package tokenizers may take another than SentencePiece does.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from pqt_jax.data import tokenizer_conversion, tokenizer_kinds
from pqt_jax.data.tokenizer_conversion import Inexact
from pqt_jax.interchange import byte_level, sentencepiece_file
from pqt_jax.interchange.sentencepiece_file import (
    BPE,
    CHARACTERS,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SentencePieceFile,
)


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
    file = sentencepiece_file.read(content)
    if parts.end is not None:
        file.pieces[parts.end] = file.pieces[parts.end]._replace(type=CONTROL)
    special = [
        byte_level.special_token(piece.text, token)
        for token, piece in enumerate(file.pieces)
        if piece.type in (UNKNOWN, CONTROL)
    ]
    result = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        **_spelling(file),
        "post_processor": None,
        "model": _model(file),
    }
    texts = [piece.text for piece in file.pieces if piece.type in (NORMAL, USER_DEFINED)]
    tokenizer_conversion.check_tokens(result, parts, texts)
    return result, parts.end


def _model(file: SentencePieceFile) -> dict[str, Any]:
    """The model of the tokenizer.json."""
    pieces = file.pieces
    (unknown,) = (token for token, piece in enumerate(pieces) if piece.type == UNKNOWN)
    if file.model_type == UNIGRAM:
        top = max(piece.score for piece in pieces if piece.type == NORMAL)
        # What the user has defined is preferred to all other pieces.
        scored = [
            [text, len(text.encode()) * top - 0.1 if of_type == USER_DEFINED else score]
            for text, score, of_type in pieces
        ]
        options = {"unk_id": unknown, "byte_fallback": file.has_bytes}
        return {"type": "Unigram", **options, "vocab": scored}
    if file.model_type not in (BPE, CHARACTERS):
        raise Inexact("splits text into whole words")
    vocabulary = {piece.text: token for token, piece in enumerate(pieces)}
    return byte_level.bpe(
        vocabulary,
        _merges(pieces, vocabulary) if file.model_type == BPE else [],
        unk_token=pieces[unknown].text,
        fuse_unk=True,
        byte_fallback=file.has_bytes,
        ignore_merges=any(piece.type == USER_DEFINED for piece in pieces),
    )


def _merges(pieces: Sequence[Piece], vocabulary: Mapping[str, int]) -> list[str]:
    """Pairs of pieces whose union is a piece, from the highest score of the union to the lowest."""
    pairs = []
    for text, _, of_type in sorted(pieces, key=lambda piece: -piece.score):
        if of_type == NORMAL:
            cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
            pairs += [f"{a} {b}" for a, b in cuts if a in vocabulary and b in vocabulary]
    return pairs


def _spelling(file: SentencePieceFile) -> dict[str, Any]:
    """How text becomes pieces, and pieces become text."""
    steps: list[dict[str, Any]] = []
    if file.charsmap:
        table = base64.b64encode(file.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if file.strips:
        steps.append(_replace({"Regex": r"\A +|[ ▁]+\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if file.adds_prefix:
        steps.append({"type": "Prepend", "prepend": "▁" if file.escapes else " "})
    if file.escapes:
        steps.append(_replace({"String": " "}, "▁"))
    split = None
    if whole := [piece.text for piece in file.pieces if piece.type == USER_DEFINED]:
        longest_first = sorted(whole, key=len, reverse=True)
        pattern = "|".join("".join(f"\\x{{{ord(c):X}}}" for c in text) for text in longest_first)
        options = {"behavior": "Isolated", "invert": False}
        split = {"type": "Split", "pattern": {"Regex": pattern}, **options}
    decoders = [_replace({"String": "▁"}, " ")] if file.escapes else []
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if file.adds_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": split,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}
