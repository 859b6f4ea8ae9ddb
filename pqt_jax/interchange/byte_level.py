# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Bytes as characters, as byte-level tokenizers spell them, and the tokenizer.json of bytes.

A tokenizer.json has characters and no bytes. GPT-2 names each byte by one printable character: that
of its own number if Latin-1 prints it, else the next of those from U+0100 on.
"""

from typing import Any

_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
BYTE_NAMES: tuple[str, ...] = tuple(
    chr(byte if byte in _PRINTED else 0x100 + _OTHERS.index(byte)) for byte in range(256)
)


def name_bytes(piece: bytes) -> str:
    """The name of a piece of text in a byte-level vocabulary.

    Example:
      >>> name_bytes(b" the"), name_bytes("é".encode())
      ('Ġthe', 'Ã©')
    """
    return "".join(BYTE_NAMES[byte] for byte in piece)


def tokenizer_json(
    vocabulary: dict[str, int],
    end: tuple[str, int],
    *,
    merges: list[str] | None = None,
    pattern: str | None = "",
) -> dict[str, Any]:
    """The tokenizer.json of a byte-level vocabulary, as the package tokenizers reads it.

    Args:
      vocabulary: name of a piece (`name_bytes`) → token.
      end: the name and the number of the token that ends documents.
      merges: "left right" of each pair of names that is merged, in order; None for none.
      pattern: the regular expression that splits text before pairs are merged; "" for that of
        GPT-2, None not to split.
    """
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pre_tokenizer: dict[str, Any] = split | {"use_regex": pattern == ""}
    if pattern:
        by_pattern = {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        steps = [{"type": "Split"} | by_pattern, pre_tokenizer]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special_token(*end)],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": split | {"use_regex": True},
        # A word that is a token is not merged from its bytes: tiktoken looks it up, too.
        "model": bpe(vocabulary, merges or [], ignore_merges=merges is not None),
    }


def bpe(vocabulary: dict[str, int], merges: list[str], **options: Any) -> dict[str, Any]:
    """The model of a tokenizer.json that merges pairs."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
        **options,
    }


def special_token(name: str, token: int) -> dict[str, Any]:
    """An entry of the added tokens of a tokenizer.json: a token that is no text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, **flags, "special": True}
