# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What is read of a SentencePiece model is what its package says of it."""

import pytest

from pqt_jax.interchange import sentencepiece_file
from pqt_jax.interchange.sentencepiece_file import BPE, BYTE, CONTROL, UNIGRAM, UNKNOWN
from support.tokenizer_files import make_sentencepiece


def test_pieces_are_those_of_the_package(tmp_path):
    import sentencepiece

    path = make_sentencepiece(tmp_path / "t.model", user_defined_symbols=["<sep>"])
    file = sentencepiece_file.read(path.read_bytes())
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert len(file.pieces) == len(theirs) == 330
    for token, piece in enumerate(file.pieces):
        assert (piece.text, piece.score) == (theirs.id_to_piece(token), theirs.get_score(token))
        assert (piece.type == BYTE) == theirs.is_byte(token)
        assert (piece.type == CONTROL) == theirs.is_control(token)
        assert (piece.type == UNKNOWN) == theirs.is_unknown(token)


def test_options_of_training_are_read(tmp_path):
    plain = sentencepiece_file.read(make_sentencepiece(tmp_path / "a.model").read_bytes())
    assert (plain.model_type, plain.has_bytes, plain.suffixes) == (BPE, True, False)
    assert (plain.adds_prefix, plain.strips, plain.escapes) == (True, True, True)
    assert len(plain.charsmap) > 100_000 and plain.normalizes
    options = {"model_type": "unigram", "byte_fallback": False, "add_dummy_prefix": False}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options |= {"treat_whitespace_as_suffix": True, "hard_vocab_limit": False}
    other = sentencepiece_file.read(
        make_sentencepiece(tmp_path / "b.model", **options).read_bytes()
    )
    assert (other.model_type, other.has_bytes, other.suffixes) == (UNIGRAM, False, True)
    assert (other.adds_prefix, other.strips, other.escapes) == (False, False, True)
    assert other.charsmap == b"" and not other.normalizes


@pytest.mark.parametrize("content", [b"\x0a", b"\x0a\x05ab", b"\x0b", b"\x15ab", b"\x08\xff"])
def test_what_is_no_message_is_refused(content):
    with pytest.raises(ValueError, match="it is no protobuf message"):
        sentencepiece_file.read(content)
