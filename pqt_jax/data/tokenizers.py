# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers, from files at hand: bytes of text ↔ tokens.

    bytes               a token is a byte, 256 ends a document; needs no file
    *.json              Hugging Face's tokenizers
    *.model             SentencePiece
    *.tiktoken          byte-pair ranks of tiktoken

Their packages are the extra `data`.
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
    """How text becomes tokens.

    Attributes:
      name: "bytes", or the name of its file.
      vocab_size: tokens are below it.
      end: the token that ends a document; None where none is known.
      fingerprint: SHA-256 of what decides about the tokens.
      encode: UTF-8 text → tokens, none of which stands for more than that text; UnicodeDecodeError
        for what is no text.
      decode: tokens → bytes of text; of a character that is not whole its own (bytes, *.tiktoken),
        or those of U+FFFD.
    """

    name: str
    vocab_size: int
    end: int | None
    fingerprint: str
    encode: Callable[[bytes], Sequence[int] | np.ndarray]
    decode: Callable[[Sequence[int]], bytes]

    @property
    def dtype(self) -> np.dtype:
        """The smaller of uint16 and uint32 that holds every token."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)


def count_first_token_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> float:
    """Bytes of text that the first of some tokens stands for.

    Of a character that several tokens make together, each stands for an equal share.

    Args:
      tokenizer: that made them.
      tokens: of a whole document, at least one.
    """
    count, text = 0, _REPLACEMENT
    while text.endswith(_REPLACEMENT) and count < min(len(tokens), 4):  # UTF-8 takes four at most
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
      end: the token that ends a document; "" for what its file says, or the first of `END_TOKENS`.
      pattern: of a tiktoken file, the regular expression that cuts text before pairs are merged; ""
        for GPT-2's.

    Raises:
      InputError: for a file that cannot be used, a package that is missing, or an `end` that is no
        token.
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
    digest = hashlib.sha256(content + b"\0" + end.encode() + b"\0" + pattern.encode()).hexdigest()
    try:
        vocab_size, end_token, encode, decode = loaders[kind](path, content, end, pattern)
    except ImportError as error:
        raise InputError(
            f"--tokenizer={path} needs the package {error.name}; pip install 'pqt_jax[data]'"
        ) from None
    except InputError as error:
        raise InputError(f"--tokenizer={path}: {error}") from None
    except Exception as error:  # each package raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--tokenizer={path} is no whole tokenizer: {reason:.200}") from None
    return Tokenizer(os.path.basename(path), vocab_size, end_token, digest, encode, decode)


Loaded = tuple[int, int | None, Callable[[bytes], Any], Callable[[Sequence[int]], bytes]]


def _bytes() -> Tokenizer:
    digest = hashlib.sha256(b"bytes").hexdigest()
    encode = lambda text: np.frombuffer(text, np.uint8)  # noqa: E731
    decode = lambda tokens: bytes(t for t in tokens if t < 256)  # noqa: E731
    return Tokenizer("bytes", 257, 256, digest, encode, decode)


def _hugging_face(path: str, content: bytes, end: str, _: str) -> Loaded:
    import tokenizers  # a heavy package that few runs need

    model = tokenizers.Tokenizer.from_str(content.decode())
    model.no_padding()
    model.no_truncation()
    model.encode_special_tokens = True  # what a text spells is text

    def encode(text: bytes) -> list[int]:
        return model.encode(text.decode(), add_special_tokens=False).ids

    def decode(tokens: Sequence[int]) -> bytes:
        return model.decode([int(t) for t in tokens]).encode()

    # Ids need not be dense: added tokens may lie beyond the others.
    size = max(model.get_vocab(with_added_tokens=True).values()) + 1
    return size, _end(end, model.token_to_id), encode, decode


def _sentencepiece(path: str, content: bytes, end: str, _: str) -> Loaded:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=content)

    def find(token: str) -> int | None:
        found = model.piece_to_id(token)
        return None if found == model.unk_id() else found

    own = model.eos_id()
    last = own if not end and own >= 0 else _end(end, find)
    encode = lambda text: model.encode(text.decode())  # noqa: E731
    decode = lambda tokens: model.decode([int(t) for t in tokens]).encode()  # noqa: E731
    return model.vocab_size(), last, encode, decode


def _tiktoken(path: str, content: bytes, end: str, pattern: str) -> Loaded:
    import tiktoken
    import tiktoken.load
    from tiktoken_ext.openai_public import r50k_pat_str

    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")  # nothing is fetched, and nothing kept
    ranks = tiktoken.load.load_tiktoken_bpe(path)
    if not ranks:
        raise InputError("it holds no ranks")
    name = end or END_TOKENS[0]
    last = max(ranks.values()) + 1
    model = tiktoken.Encoding(
        "file", pat_str=pattern or r50k_pat_str, mergeable_ranks=ranks, special_tokens={name: last}
    )
    encode = lambda text: model.encode_ordinary(text.decode())  # noqa: E731
    decode = lambda tokens: model.decode_bytes([int(t) for t in tokens])  # noqa: E731
    return last + 1, last, encode, decode


def _end(given: str, find: Callable[[str], int | None]) -> int | None:
    for token in (given,) if given else END_TOKENS:
        found = find(token)
        if found is not None:
            return found
    if given:
        raise InputError(f"it has no token {given!r}; give another --end")
    return None
