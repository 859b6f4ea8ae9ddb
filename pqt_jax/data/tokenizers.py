# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers from local files: bytes of text ↔ tokens.

    bytes               each byte is a token, and 256 ends a document; needs no file
    *.json              Hugging Face's tokenizers
    *.model             SentencePiece
    *.tiktoken          byte-pair ranks of tiktoken

The packages that read them are installed by the extra `data`. `tokenizer_kinds` reads the files.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pqt_jax.data import tokenizer_kinds
from pqt_jax.data.tokenizer_kinds import Parts
from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_READERS = {
    ".json": tokenizer_kinds.read_hugging_face,
    ".model": tokenizer_kinds.read_sentencepiece,
    ".tiktoken": tokenizer_kinds.read_tiktoken,
}


class TextError(ValueError):
    """A text that a tokenizer cannot encode. The message is what follows the name of the text."""


class Tokenizer(NamedTuple):
    """Conversion between text and tokens.

    Attributes:
      name: "bytes", or the name of its file.
      vocab_size: every token is smaller.
      begin: the token (BOS) that the file puts before a document, or None. `encode` adds none.
      end: the token that ends a document, or None if it is unknown. `encode` never returns it,
        whatever a text spells.
      fingerprint: SHA-256 of the file and the options.
      encode: UTF-8 text → tokens, without special tokens. Raises TextError for bytes that are not
        UTF-8, and for a text that the tokenizer's package cannot encode.
      decode: tokens → bytes of text. Of an incomplete character, its bytes (bytes, *.tiktoken) or
        those of U+FFFD.
    """

    name: str
    vocab_size: int
    begin: int | None
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
    kind = Path(path).suffix
    if kind not in _READERS:
        known = ", ".join(f"a {suffix} file" for suffix in _READERS)
        raise InputError(f"--tokenizer={path}; it must be bytes, {known}")
    if pattern and kind != ".tiktoken":
        raise InputError("--pattern goes with a .tiktoken file; leave it out")
    try:
        content = files.read_bytes(Path(path))
    except OSError as error:
        why = system_reason(error, "give a tokenizer's file")
        raise InputError(f"--tokenizer={path} cannot be read: {why}") from None
    try:
        with _package_errors():
            parts = _READERS[kind](content, end, pattern)
    except ImportError as error:
        raise InputError(
            f"--tokenizer={path} needs the package {error.name}; pip install 'pqt_jax[data]'"
        ) from None
    except InputError as error:
        raise InputError(f"--tokenizer={path}: {error}") from None
    except ValueError as error:
        raise InputError(f"--tokenizer={path} is not a valid tokenizer: {error}") from None
    return Tokenizer(
        name=os.path.basename(path),
        vocab_size=parts.vocab_size,
        begin=parts.begin,
        end=parts.end,
        fingerprint=fingerprint(content, end, pattern),
        encode=_checked_encode(parts),
        decode=parts.decode,
    )


def fingerprint(content: bytes, end: str, pattern: str) -> str:
    """SHA-256, in hexadecimal, of a tokenizer's file and the options of `load`."""
    return hashlib.sha256(content + b"\0" + end.encode() + b"\0" + pattern.encode()).hexdigest()


def _bytes() -> Tokenizer:
    digest = hashlib.sha256(b"bytes").hexdigest()

    def encode(text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def decode(tokens: Sequence[int]) -> bytes:
        return bytes(token for token in tokens if token < 256)

    return Tokenizer(
        name="bytes",
        vocab_size=257,
        begin=None,
        end=256,
        fingerprint=digest,
        encode=encode,
        decode=decode,
    )


def _checked_encode(parts: Parts) -> Callable[[bytes], Sequence[int]]:
    """`Tokenizer.encode` of the parts of a file."""

    def encode(text: bytes) -> Sequence[int]:
        try:
            characters = text.decode()
        except UnicodeDecodeError as error:
            raise TextError(f"has bytes that are not UTF-8 ({error.reason})") from None
        try:
            with _package_errors():
                tokens = parts.encode(characters)
        except ValueError as error:
            raise TextError(f"cannot be tokenized: {error}") from None
        if parts.end in tokens:  # such as the unknown token
            raise TextError(f"holds text that becomes token {parts.end}, which ends documents")
        return tokens

    return encode


@contextlib.contextmanager
def _package_errors() -> Iterator[None]:
    """Make ValueErrors of a line from what a tokenizer's package raises.

    Each package has its own exceptions. A panic of Rust code is a BaseException, which also cannot
    be pickled, and it is written to stderr by itself.
    """
    with _without_stderr():
        try:
            yield
        except (InputError, ImportError):
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{reason:.200}") from None


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr."""
    try:
        saved = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
