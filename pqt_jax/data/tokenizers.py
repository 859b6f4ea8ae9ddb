# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers from local files: bytes of text ↔ tokens.

    bytes               each byte is a token, and 256 ends a document; needs no file
    *.json              Hugging Face's tokenizers
    *.model             SentencePiece
    *.tiktoken          byte-pair ranks of tiktoken

The packages that read them are installed by the extra `data`.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.errors import InputError, system_reason

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # tried in this order


class Tokenizer(NamedTuple):
    """Conversion between text and tokens.

    Attributes:
      name: "bytes", or the name of its file.
      vocab_size: every token is smaller.
      end: the token that ends a document, or None if it is unknown.
      fingerprint: SHA-256 of the file and the options.
      encode: UTF-8 text → tokens, without special tokens. Raises UnicodeDecodeError for bytes that
        are not UTF-8.
      decode: tokens → bytes of text. Of an incomplete character, its bytes (bytes, *.tiktoken) or
        those of U+FFFD.
    """

    name: str
    vocab_size: int
    end: int | None
    fingerprint: str
    encode: Callable[[bytes], Sequence[int] | np.ndarray]
    decode: Callable[[Sequence[int]], bytes]

    @property
    def dtype(self) -> np.dtype:
        """uint16 if every token fits, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)


def count_first_token_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> float:
    """Count the bytes of text that the first token of a document represents.

    If several tokens form one character, each represents an equal share of its bytes.

    Args:
      tokenizer: the tokenizer that made the tokens.
      tokens: the tokens of a document; at least one.
    """
    count, text = 0, _REPLACEMENT
    while text.endswith(_REPLACEMENT) and count < min(
        len(tokens), 4
    ):  # a character has four bytes at most
        count += 1
        text = tokenizer.decode(tokens[:count])
    return len(text) / count


def load(path: str, *, end: str = "", pattern: str = "") -> Tokenizer:
    """Load a tokenizer.

    Example:
      >>> tokenizer = load("bytes")
      >>> tokenizer.vocab_size, tokenizer.encode(b"hi").tolist()
      (257, [104, 105])

    Args:
      path: "bytes", or a file that ends in .json, .model or .tiktoken.
      end: the token that ends a document; "" for the one in the file, or the first of `END_TOKENS`.
      pattern: for a tiktoken file, the regular expression that splits text before pairs are merged;
        "" for that of GPT-2.

    Raises:
      InputError: if the file cannot be used, a package is missing, or `end` is not a token.
    """
    if path == "bytes":
        if end or pattern:
            raise InputError("--end and --pattern do not go with --tokenizer=bytes; leave them out")
        return _bytes()
    loaders = {".json": _hugging_face, ".model": _sentencepiece, ".tiktoken": _tiktoken}
    kind = Path(path).suffix
    if kind not in loaders:
        known = ", ".join(f"a {suffix} file" for suffix in loaders)
        raise InputError(f"--tokenizer={path}; it must be bytes, {known}")
    if pattern and kind != ".tiktoken":
        raise InputError("--pattern goes with a .tiktoken file; leave it out")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        why = system_reason(error, "give a tokenizer's file")
        raise InputError(f"--tokenizer={path} cannot be read: {why}") from None
    try:
        vocab_size, end_token, encode, decode = loaders[kind](path, content, end, pattern)
    except ImportError as error:
        raise InputError(
            f"--tokenizer={path} needs the package {error.name}; pip install 'pqt_jax[data]'"
        ) from None
    except InputError as error:
        raise InputError(f"--tokenizer={path}: {error}") from None
    except Exception as error:  # each package has its own exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--tokenizer={path} is not a valid tokenizer: {reason:.200}") from None
    return Tokenizer(
        name=os.path.basename(path),
        vocab_size=vocab_size,
        end=end_token,
        fingerprint=fingerprint(content, end, pattern),
        encode=encode,
        decode=decode,
    )


def fingerprint(content: bytes, end: str, pattern: str) -> str:
    """SHA-256, in hexadecimal, of a tokenizer's file and the options of `load`."""
    return hashlib.sha256(content + b"\0" + end.encode() + b"\0" + pattern.encode()).hexdigest()


_Parts = tuple[int, int | None, Callable[[bytes], Any], Callable[[Sequence[int]], bytes]]


def _bytes() -> Tokenizer:
    digest = hashlib.sha256(b"bytes").hexdigest()

    def encode(text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def decode(tokens: Sequence[int]) -> bytes:
        return bytes(token for token in tokens if token < 256)

    return Tokenizer(
        name="bytes", vocab_size=257, end=256, fingerprint=digest, encode=encode, decode=decode
    )


def _hugging_face(path: str, content: bytes, end: str, _: str) -> _Parts:
    import tokenizers  # a heavy package that few runs need

    model = tokenizers.Tokenizer.from_str(content.decode())
    model.no_padding()
    model.no_truncation()
    model.encode_special_tokens = True  # a special token spelled in a text is text

    def encode(text: bytes) -> list[int]:
        return model.encode(text.decode(), add_special_tokens=False).ids

    def decode(tokens: Sequence[int]) -> bytes:
        return model.decode([int(t) for t in tokens]).encode()

    # There may be gaps between the IDs of added tokens and the others.
    size = max(model.get_vocab(with_added_tokens=True).values()) + 1
    return size, _find_end(end, model.token_to_id), encode, decode


def _sentencepiece(path: str, content: bytes, end: str, _: str) -> _Parts:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=content)

    def find(token: str) -> int | None:
        piece = model.piece_to_id(token)
        return None if piece == model.unk_id() else piece

    def encode(text: bytes) -> list[int]:
        return model.encode(text.decode())

    def decode(tokens: Sequence[int]) -> bytes:
        return model.decode([int(t) for t in tokens]).encode()

    file_end = model.eos_id()
    end_token = file_end if not end and file_end >= 0 else _find_end(end, find)
    return model.vocab_size(), end_token, encode, decode


def _tiktoken(path: str, content: bytes, end: str, pattern: str) -> _Parts:
    import tiktoken
    import tiktoken.load
    from tiktoken_ext.openai_public import r50k_pat_str

    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")  # nothing is downloaded or cached
    ranks = tiktoken.load.load_tiktoken_bpe(path)
    if not ranks:
        raise InputError("it holds no ranks")
    name = end or END_TOKENS[0]
    last = max(ranks.values()) + 1
    model = tiktoken.Encoding(
        "file", pat_str=pattern or r50k_pat_str, mergeable_ranks=ranks, special_tokens={name: last}
    )

    def encode(text: bytes) -> list[int]:
        return model.encode_ordinary(text.decode())

    def decode(tokens: Sequence[int]) -> bytes:
        return model.decode_bytes([int(t) for t in tokens])

    return last + 1, last, encode, decode


def _find_end(name: str, find: Callable[[str], int | None]) -> int | None:
    for token in (name,) if name else END_TOKENS:
        token_id = find(token)
        if token_id is not None:
            return token_id
    if name:
        raise InputError(f"it has no token {name!r}; give another --end")
    return None
