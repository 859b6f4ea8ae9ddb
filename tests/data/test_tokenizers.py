# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers of all kinds, made here, against the packages that they are of."""

import base64
import sys

import numpy as np
import pytest

from pqt_jax.data import tokenizers
from pqt_jax.errors import InputError
from support.tokenizer_files import TEXT, make, make_hugging_face


@pytest.mark.parametrize("kind", ["bytes", "json", "model", "tiktoken"])
def test_text_comes_back(tmp_path, kind):
    tokenizer = tokenizers.load(make(kind, tmp_path))
    for text in ("the fox", "東京 über", "quick", "a\nb"):
        found = tokenizer.encode(text.encode())
        assert 0 < len(found) <= len(text.encode()) + 1
        assert max(found) < tokenizer.vocab_size and tokenizer.end not in list(found)
        back = tokenizer.decode(found).decode()
        assert back == text or (kind == "model" and back.split() == text.split())
    assert tokenizer.end < tokenizer.vocab_size and tokenizer.dtype == np.uint16
    assert len(tokenizer.encode(TEXT.encode())) < len(TEXT.encode()) or kind == "bytes"
    # What a text says is text, also where it spells a token that is none of it.
    assert tokenizer.end not in list(tokenizer.encode(b"a<|endoftext|>b"))


def test_tokens_are_those_of_the_package(tmp_path):
    import sentencepiece
    import tokenizers as hugging_face

    text = "the quick brown fox"
    path = make("json", tmp_path)
    theirs = hugging_face.Tokenizer.from_file(path).encode(text).ids
    assert tokenizers.load(path).encode(text.encode()) == theirs
    path = make("model", tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    ours = tokenizers.load(path)
    assert ours.encode(text.encode()) == model.encode(text) and ours.end == model.eos_id()
    ours = tokenizers.load(make("tiktoken", tmp_path))
    assert ours.encode(b"the quit")[:2] == [257, 32] and ours.vocab_size == 261  # "the", " "
    assert ours.end == 260


SPELLED = {  # what the text "a</s>b </s> <s> <unk>" becomes
    "words": ["<unk>"] * 4,
    "pieces": ["<unk>", "</", "##s>", "<unk>", "<unk>"],
    "unigram": "▁ a </ s> b ▁ </ s> ▁ <unk> s> ▁ <unk>".split(),
    "whole_words": "a </ s> b </ s> < s> < <unk> <unk> <unk> >".split(),
}


@pytest.mark.parametrize("kind", SPELLED)
def test_a_text_that_spells_special_tokens_is_text(tmp_path, kind):
    import tokenizers as hugging_face

    path = make(kind, tmp_path)
    tokenizer, theirs = tokenizers.load(path), hugging_face.Tokenizer.from_file(path)
    assert [tokenizer.begin, tokenizer.end] == [1, 2]
    theirs.encode_special_tokens = True
    spelled = b"a</s>b </s> <s> <unk>"
    assert {1, 2} & set(theirs.encode(spelled.decode(), add_special_tokens=False).ids)
    found = tokenizer.encode(spelled)
    assert [theirs.id_to_token(token) for token in found] == SPELLED[kind]
    plain = "a b c 0 1"
    assert tokenizer.encode(plain.encode()) == theirs.encode(plain, add_special_tokens=False).ids
    tokens = [1, *theirs.encode("a b").ids[1:], 2]
    assert tokenizer.decode(tokens) == theirs.decode(tokens).encode()


def test_a_usual_sentencepiece_model_needs_no_protobuf(tmp_path, monkeypatch):
    """Its module for protobuf does not load with each version of protobuf."""
    path = make("model", tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    assert tokenizers.load(path).end is not None


def test_sentencepiece_finds_no_user_defined_end_in_a_text(tmp_path):
    tokenizer = tokenizers.load(make("user_defined", tmp_path))
    found = tokenizer.encode(b"a</s>b")
    assert tokenizer.end not in found and tokenizer.decode(found) == b"a</s>b"


def test_an_added_end_that_is_not_special_is_not_found_in_a_text(tmp_path):
    import tokenizers as hugging_face

    path = make("json", tmp_path)
    model = hugging_face.Tokenizer.from_file(path)
    model.add_tokens(["[STOP]", "[GO]"])
    model.save(path)
    tokenizer = tokenizers.load(path, end="[STOP]")
    found = tokenizer.encode(b"a[STOP]b[GO]")
    assert tokenizer.end == tokenizer.vocab_size - 2 not in found
    assert found[-1] == tokenizer.vocab_size - 1 and tokenizer.decode(found) == b"a[STOP]b[GO]"


def test_an_end_that_a_text_cannot_avoid_is_refused(tmp_path):
    words = tokenizers.load(make("words", tmp_path), end="<unk>")
    assert words.encode(b"a b") == [3, 4]
    with pytest.raises(tokenizers.TextError, match="holds text that becomes token 0, which ends"):
        words.encode(b"a d")


@pytest.mark.parametrize(
    "kind, begin", [("bytes", None), ("json", None), ("model", 1), ("tiktoken", None)]
)
def test_a_file_says_what_begins_documents(tmp_path, kind, begin):
    assert tokenizers.load(make(kind, tmp_path)).begin == begin


def test_text_that_tiktoken_cannot_split_is_refused(tmp_path, capfd):
    path = make("tiktoken", tmp_path)
    with pytest.raises(tokenizers.TextError, match="tokenized: .*StackOverflow"):
        tokenizers.load(path).encode(b"a" + b" " * 2_000_000 + b"b")
    with pytest.raises(tokenizers.TextError, match="--pattern leaves out some of its characters"):
        tokenizers.load(path, pattern=r"\d+").encode(b"a1")
    with pytest.raises(tokenizers.TextError, match="cannot be tokenized: "):
        tokenizers.load(path, pattern=r"b|(?=a)").encode(b"ba")
    assert capfd.readouterr().err == ""
    assert tokenizers.load(path).decode([97, 1000]) == b"a"


def test_the_fingerprint_is_of_all_that_decides(tmp_path):
    path = make("tiktoken", tmp_path)
    prints = {tokenizers.load(path).fingerprint, tokenizers.load(path, end="<x>").fingerprint}
    prints.add(tokenizers.load(path, pattern=r"\w+|\W+").fingerprint)
    assert len(prints) == 3 and tokenizers.load(path).fingerprint in prints


RANKS = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
WORDS = b'{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": %d}, "unk_token": "a"}}'


@pytest.mark.parametrize(
    "name, content, options, message",
    [
        ("t.json", None, {}, "t.json cannot be read: No such file or directory; give a tok"),
        ("t.json", b"{}", {}, "t.json is not a valid tokenizer: "),
        ("t.json", b"\xff", {}, "t.json is not a valid tokenizer: "),
        (
            "t.json",
            WORDS % (2**31 - 1),
            {},
            "t.json: it has token 2147483647; tokens must be below 16777",
        ),
        ("t.model", b"", {}, "t.model is not a valid tokenizer: "),
        ("t.model", b"abc", {}, "t.model is not a valid tokenizer: "),
        ("t.tiktoken", b"", {}, "t.tiktoken: it holds no ranks"),
        ("t.tiktoken", b"YQ== 0\nabc", {}, "t.tiktoken: line 2 is no piece in base64 and its"),
        ("t.tiktoken", b"YQ== -1\n", {}, "line 1: rank -1; it must be 0 or more and below 2^31"),
        ("t.tiktoken", b"YQ== 7\nYg== 7\n", {}, "line 2: rank 7 is that of line 1, too"),
        ("t.tiktoken", b"YQ== 7\nYQ== 8\n", {}, "line 2 holds the piece of line 1"),
        ("t.tiktoken", b"YQ== 0\n", {}, "it has no rank for byte 0, so it cannot read all texts"),
        ("t.tiktoken", RANKS, {"pattern": "("}, "t.tiktoken is not a valid tokenizer: "),
        ("t.tiktoken", RANKS, {"pattern": r"\d*"}, r"--pattern='\\d*' matches the empty text; it"),
        ("t.model", RANKS, {}, "t.model: it holds ranks of tiktoken, as Llama 3's does, without"),
        ("t.txt", b"", {}, "t.txt; it must be bytes, a .json file, a .model file, a .tiktoken"),
        ("t.json", b"", {"pattern": "x"}, "--pattern goes with a .tiktoken file"),
    ],
)
def test_files_that_are_no_tokenizers_are_refused(tmp_path, name, content, options, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        tokenizers.load(str(tmp_path / name), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_token_that_ends_documents_is_found_or_named(tmp_path):
    path = make_hugging_face(tmp_path / "t.json", end="[STOP]")
    assert tokenizers.load(str(path)).end is None
    with pytest.raises(InputError, match="it has no token 'stop'; give another --end"):
        tokenizers.load(str(path), end="stop")
    assert tokenizers.load(str(path), end="[STOP]").end == 0
    with pytest.raises(InputError, match="do not go with --tokenizer=bytes"):
        tokenizers.load("bytes", end="x")


@pytest.mark.parametrize("kind", ["bytes", "json", "model", "tiktoken"])
def test_bytes_of_the_first_token(tmp_path, kind):
    tokenizer = tokenizers.load(make(kind, tmp_path))
    for text in ("the fox", "é", "漢字", "𝒳 abc", "x", "\N{REPLACEMENT CHARACTER}a"):
        found = tokenizer.encode(text.encode())
        size = tokenizers.count_first_token_bytes(tokenizer, found)
        assert 0 <= size <= len(text.encode()) and (size < len(text.encode()) or len(found) == 1)
        if kind in ("bytes", "tiktoken"):
            assert size == len(tokenizer.decode(found[:1]))
    found = tokenizer.encode("漢".encode())  # three tokens of a byte each, after a space of none
    assert tokenizers.count_first_token_bytes(tokenizer, found) == (0 if kind == "model" else 1)
