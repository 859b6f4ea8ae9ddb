# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers as metadata of GGUF files, so that llama.cpp makes the tokens that we do.

    bytes         256 tokens named as in GPT-2's byte-level BPE, and one merge that never happens
    *.json        byte-level BPE of Hugging Face
    *.model       BPE of SentencePiece, with bytes for unknown characters, that changes no text
    *.tiktoken    ranks, whose merges are all pairs of pieces that are a piece together

llama.cpp knows by a name how BPE splits a text before it merges. What it would split or change in
another way than the tokenizer's package is refused. Tokens may differ only for texts that are not
UTF-8, and for texts that are not in NFC if a tokenizer.json normalizes to that, as Qwen's.

llama.cpp assumes a token that ends texts. Where a tokenizer has none, it is the byte 0xFF, which is
in no text. The vocabulary is as large as the model's: tokens that the tokenizer lacks are unused.

Source: llama.cpp, `llama-vocab.cpp`.
"""

import base64
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.console import shorten
from pqt_jax.errors import InputError
from pqt_jax.interchange import sentencepiece_file
from pqt_jax.interchange.gguf_reader import Value
from pqt_jax.interchange.sentencepiece_file import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED

NONE: dict[str, Value] = {"tokenizer.ggml.model": "none"}  # a model that takes tokens only
_END = "<|endoftext|>"
_NEVER = "<|never|> <|never|>"  # llama.cpp wants a merge
# How BPE splits a text before it merges: patterns of tokenizer.json, or words about them.
DIGITS = "each digit alone, then as GPT-2"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# (how text is split, whether a piece that is a token is not merged) → the name in llama.cpp
_SPLITS = {
    (GPT2, False): "gpt-2",
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "dbrx",
    (QWEN2, False): "qwen2",
    (DIGITS, False): "smollm",
}


class _Vocabulary(NamedTuple):
    """A tokenizer, before it is padded.

    Attributes:
      tokens: number of a token → its text in GGUF and its type, a type of SentencePiece.
      metadata: all other metadata.
      scores: number of a token → its score; empty for BPE with merges.
    """

    tokens: dict[int, tuple[str, int]]
    metadata: dict[str, Value]
    scores: dict[int, float]


def describe(
    name: str,
    content: bytes,
    vocab_size: int,
    *,
    begin: int | None,
    end: int | None,
    pattern: str = "",
) -> dict[str, Value]:
    """The metadata of a tokenizer.

    Example:
      >>> metadata = describe("bytes", b"", 300, begin=None, end=256)
      >>> metadata["tokenizer.ggml.tokens"][97:100], metadata["tokenizer.ggml.eos_token_id"]
      (['a', 'b', 'c'], 256)

    Args:
      name: "bytes", or the name of the file, whose suffix says its kind.
      content: the content of the file.
      vocab_size: the number of the model's tokens.
      begin: the token that the model's documents begin with, or None.
      end: the token that ends a document, or None if it is unknown.
      pattern: the regular expression by which a .tiktoken tokenizer splits text, if not GPT-2's.

    Returns:
      name → value, for `gguf_model.write`.

    Raises:
      InputError: if llama.cpp would make other tokens, or the model lacks one of the tokens.
    """
    try:
        if name == "bytes":
            vocabulary = _bytes(vocab_size)
        else:
            vocabulary = _READERS[Path(name).suffix](content, pattern)
        return _metadata(vocabulary, vocab_size, begin, end)
    except InputError as error:
        raise InputError(f"tokenizer {name}: {error}") from None


def is_bytes(metadata: dict[str, Value]) -> bool:
    """Whether the tokenizer of a file reads bytes: token N is byte N."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    merges = metadata.get("tokenizer.ggml.merges")
    return isinstance(tokens, list) and tokens[:256] == _byte_names() and merges == [_NEVER]


def _metadata(
    vocabulary: _Vocabulary, vocab_size: int, begin: int | None, end: int | None
) -> dict[str, Value]:
    tokens = dict(vocabulary.tokens)
    if (last := max(tokens)) >= vocab_size:
        raise InputError(
            f"it has token {last}, and the model {vocab_size} tokens; give the model's tokenizer"
        )
    if end is not None and end in tokens:
        tokens[end] = tokens[end][0], CONTROL
    else:
        rare = "<0xFF>" if vocabulary.scores else _byte_names()[255]
        end = next(i for i, (text, _) in tokens.items() if text == rare)
    names = {text for text, _ in tokens.values()}
    padding = (name for i in itertools.count() if (name := f"<|unused{i}|>") not in names)
    listed = [tokens.get(i) or (next(padding), UNUSED) for i in range(vocab_size)]
    metadata = vocabulary.metadata | {
        "tokenizer.ggml.tokens": [text for text, _ in listed],
        "tokenizer.ggml.token_type": np.array([kind for _, kind in listed], np.int32),
        "tokenizer.ggml.add_bos_token": begin is not None,
        "tokenizer.ggml.add_eos_token": False,
    }
    if vocabulary.scores:
        scores = [vocabulary.scores.get(i, 0) for i in range(vocab_size)]
        metadata["tokenizer.ggml.scores"] = np.array(scores, np.float32)
    metadata["tokenizer.ggml.bos_token_id"] = end if begin is None else begin
    metadata["tokenizer.ggml.eos_token_id"] = end
    return metadata


def _byte_names() -> list[str]:
    """The characters by which byte-level BPE writes bytes: themselves, if they are visible."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _bytes(vocab_size: int) -> _Vocabulary:
    tokens = {byte: (name, NORMAL) for byte, name in enumerate(_byte_names())}
    if vocab_size > 256:
        tokens[256] = _END, CONTROL
    return _with_merges(tokens, "gpt-2", [_NEVER])


def _with_merges(tokens: dict[int, tuple[str, int]], split: str, merges: list[str]) -> _Vocabulary:
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.merges": merges or [_NEVER],
    }
    return _Vocabulary(tokens, metadata, {})


def _read_hugging_face(content: bytes, _: str) -> _Vocabulary:
    import tokenizers  # a heavy package that few runs need

    file = json.loads(tokenizers.Tokenizer.from_str(content.decode()).to_str())
    model, normalizer = file["model"], file["normalizer"]
    if model["type"] != "BPE":
        raise InputError(f"its model is {model['type']}; GGUF takes BPE")
    if normalizer and normalizer["type"] != "NFC":
        raise InputError(
            f"llama.cpp does not normalize as {normalizer['type']} does; if the model has a "
            "tokenizer.model, give that"
        )
    steps = _name_split(file["pre_tokenizer"])
    split = _SPLITS.get((steps, model["ignore_merges"]))
    if split is None:
        raise InputError(
            f"llama.cpp has no name for its pre-tokenizer {shorten(steps, 200)} with "
            f"ignore_merges={model['ignore_merges']}"
        )
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[field]:
            raise InputError(f"its {field} is {model[field]!r}; llama.cpp has none")
    tokens = {number: (text, NORMAL) for text, number in model["vocab"].items()}
    if absent := [b for b, name in enumerate(_byte_names()) if name not in model["vocab"]]:
        raise InputError(f"it has no token for byte {absent[0]}, so it cannot read all texts")
    for token in file["added_tokens"]:
        if not token["special"] and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            raise InputError(f"its token {token['content']!r} takes spaces; llama.cpp's do not")
        kind = CONTROL if token["special"] else USER_DEFINED
        tokens[token["id"]] = token["content"], kind
    special = {text for text, kind in tokens.values() if kind == CONTROL}  # no text spells one
    merges = [f"{a} {b}" for a, b in model["merges"] if a + b not in special]
    return _with_merges(tokens, split, merges)


def _name_split(pre_tokenizer: dict[str, Any] | None) -> str:
    """The pattern by which a text is split, or else its description in the file."""
    steps: list[Any] = [pre_tokenizer]
    if pre_tokenizer and pre_tokenizer["type"] == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    described = json.dumps(steps, ensure_ascii=False)
    *before, last = steps
    if not last or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return described
    if not before:
        return GPT2 if last["use_regex"] else described
    if len(before) == 1 and before[0]["type"] == "Digits" and last["use_regex"]:
        return DIGITS if before[0]["individual_digits"] else described
    first = before[0]
    if len(before) == 1 and first["type"] == "Split" and not last["use_regex"]:
        if first["behavior"] == "Isolated" and not first["invert"]:
            return first["pattern"].get("Regex", described)
    return described


def _read_sentencepiece(content: bytes, _: str) -> _Vocabulary:
    file = sentencepiece_file.read(content)
    if file.model_type != sentencepiece_file.BPE:
        raise InputError(
            "it is no BPE model of SentencePiece; GGUF files of GPT2 and Llama take BPE"
        )
    if file.normalizes or file.suffixes:
        raise InputError(
            "it changes texts (a normalization rule, or spaces removed); llama.cpp does not"
        )
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    if not names <= {piece.text for piece in file.pieces if piece.type == BYTE}:
        raise InputError("it has no tokens for bytes (byte_fallback); llama.cpp needs them")
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": file.adds_prefix,
    }
    tokens = {number: (piece.text, piece.type) for number, piece in enumerate(file.pieces)}
    found = {text for text, _ in tokens.values()}
    for number, (text, kind) in tokens.items():
        if kind == sentencepiece_file.UNKNOWN:
            metadata["tokenizer.ggml.unknown_token_id"] = number
        halves = [(text[:i], text[i:]) for i in range(1, len(text))] if kind == CONTROL else []
        if any(all(len(half) == 1 or half in found for half in pair) for pair in halves):
            raise InputError(f"llama.cpp would join the pieces of a text that spells {text!r}")
    scores = {number: piece.score for number, piece in enumerate(file.pieces)}
    return _Vocabulary(tokens, metadata, scores)


def _read_tiktoken(content: bytes, pattern: str) -> _Vocabulary:
    split = _SPLITS.get((pattern or GPT2, False))
    if split is None:
        raise InputError(f"llama.cpp has no name for its pattern {shorten(pattern, 200)!r}")
    names = _byte_names()
    lines = (line.split() for line in content.splitlines() if line.strip())
    pieces = {base64.b64decode(piece): int(rank) for piece, rank in lines}
    merges: list[tuple[int, bytes, bytes]] = []
    for piece, rank in pieces.items():
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found = [(rank, a, b) for a, b in halves if a in pieces and b in pieces]
        if len(piece) > 1 and not found:  # tiktoken looks a whole word up, llama.cpp merges
            raise InputError(
                f"its piece {piece!r} is no pair of pieces; llama.cpp would not find it"
            )
        merges += found

    def text(piece: Iterable[int]) -> str:
        return "".join(names[byte] for byte in piece)

    tokens = {rank: (text(piece), NORMAL) for piece, rank in pieces.items()}
    tokens[max(tokens) + 1] = _END, CONTROL
    in_order = sorted(merges, key=lambda merge: merge[0])
    return _with_merges(tokens, split, [f"{text(a)} {text(b)}" for _, a, b in in_order])


_READERS: dict[str, Callable[[bytes, str], _Vocabulary]] = {
    ".json": _read_hugging_face,
    ".model": _read_sentencepiece,
    ".tiktoken": _read_tiktoken,
}
