# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kinds of tokenizer files: content → vocabulary, special tokens, encode and decode.

What a text spells is text. A special token has a name, such as "</s>", and vocabularies of whole
words or pieces hold this name like any other entry, so a text that spells it would get the token.
Here special tokens are taken out of what texts are compared with. A text that spells one becomes
the tokens of its parts, or the unknown token.
"""

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pqt_jax.errors import InputError

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # tried in this order
_MOST = 2**24
_RANKS = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # the first line of a tiktoken file


class Parts(NamedTuple):
    """What a file says of its tokenizer.

    Attributes:
      vocab_size: every token is smaller.
      begin: the token that the file puts before a text, or None.
      end: the token that ends a document, or None if it is unknown.
      encode: text → tokens, without special tokens.
      decode: tokens → bytes of text, without special tokens.
    """

    vocab_size: int
    begin: int | None
    end: int | None
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], bytes]


def read_hugging_face(content: bytes, end: str, _: str) -> Parts:
    """Read a tokenizer.json; `begin` is what its post-processor adds."""
    import tokenizers  # a heavy package that few runs need

    model = tokenizers.Tokenizer.from_str(content.decode())
    end_token = find_end(end, model.token_to_id)
    vocabulary = model.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1  # there may be gaps before added tokens
    if size > _MOST:  # the package takes memory for every number up to the largest
        raise InputError(f"it has token {size - 1}; tokens must be below {_MOST}")
    own = model.get_vocab(with_added_tokens=False)  # what texts are compared with
    added = model.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    ends = {name for name, token in vocabulary.items() if token == end_token}
    if names := (special & own.keys()) | (ends - special):
        model = tokenizers.Tokenizer.from_str(_hide(json.loads(model.to_str()), names))
    model.no_padding()
    model.no_truncation()
    model.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        # Unlike `encode`, it lets other threads run: `processes` needs that. It is faster, too.
        return model.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(tokens: Sequence[int]) -> bytes:
        return model.decode([int(t) for t in tokens]).encode()

    begin = None
    if model.num_special_tokens_to_add(is_pair=False):
        example = model.encode("a")
        if example.special_tokens_mask[:2] == [1, 0]:  # one before the text
            begin = example.ids[0]
    return Parts(size, begin, end_token, encode, decode)


def _hide(content: dict[str, Any], names: Iterable[str]) -> str:
    """Rename tokens of a tokenizer.json to what no text spells; their numbers stay.

    A token of one character keeps its name, since without it a text could not be written.
    """
    model, mark = content["model"], secrets.token_hex(16)
    names = {name for name in names if len(name) > 1}

    def rename(name: str) -> str:
        return mark + name if name in names else name

    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {rename(name): token for name, token in vocabulary.items()}
    else:  # of Unigram
        model["vocab"] = [[rename(name), score] for name, score in vocabulary]
    if model.get("unk_token"):
        model["unk_token"] = rename(model["unk_token"])
    if "merges" in model:  # of BPE
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if not names & {left, right, left + right.removeprefix(prefix)}
        ]
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in names
        token["content"] = rename(token["content"])
    return json.dumps(content)


def read_sentencepiece(content: bytes, end: str, _: str) -> Parts:
    """Read a model of SentencePiece; `begin` is its BOS."""
    import sentencepiece

    if _RANKS.match(content):
        raise InputError(
            "it holds ranks of tiktoken, as Llama 3's does, without the pattern and the special "
            "tokens that belong to them; give the tokenizer.json of the same model"
        )
    model = sentencepiece.SentencePieceProcessor(model_proto=content)

    def find(token: str) -> int | None:
        piece = model.piece_to_id(token)
        return None if piece == model.unk_id() else piece

    file_end = model.eos_id()
    end_token = file_end if not end and file_end >= 0 else find_end(end, find)
    # A "user defined" token is found in texts, a "control" token is not.
    if end_token is not None and end_token in model.encode(model.id_to_piece(end_token)):
        # Only here, since not every version of protobuf can load this module.
        from sentencepiece import sentencepiece_model_pb2

        proto: Any = sentencepiece_model_pb2.ModelProto.FromString(content)  # pyright: ignore
        piece = proto.pieces[end_token]
        if piece.type == piece.USER_DEFINED:
            piece.type = piece.CONTROL
            model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encode(text: str) -> list[int]:
        return model.encode(text)

    def decode(tokens: Sequence[int]) -> bytes:
        return model.decode([int(t) for t in tokens]).encode()

    begin = model.bos_id()
    return Parts(model.vocab_size(), begin if begin >= 0 else None, end_token, encode, decode)


def read_tiktoken(content: bytes, end: str, pattern: str) -> Parts:
    """Read byte-pair ranks of tiktoken; the token after the last of them ends documents."""
    import regex  # tiktoken needs it, too
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = read_ranks(content)
    if pattern and regex.compile(pattern).match("") is not None:
        raise InputError(f"--pattern={pattern!r} matches the empty text; it must take a character")
    last = max(ranks.values()) + 1
    model = tiktoken.Encoding(
        "file",
        pat_str=pattern or r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={end or END_TOKENS[0]: last},
    )
    pieces = {rank: piece for piece, rank in ranks.items()}

    def encode(text: str) -> list[int]:
        tokens = model.encode_ordinary(text)
        if pattern and len(model.decode_bytes(tokens)) != len(text.encode()):
            raise ValueError("--pattern leaves out some of its characters")
        return tokens

    def decode(tokens: Sequence[int]) -> bytes:
        return b"".join(pieces.get(int(token), b"") for token in tokens)

    return Parts(last + 1, None, last, encode, decode)


def read_ranks(content: bytes) -> dict[bytes, int]:
    """Read lines of a piece in base64 and its rank, and check what tiktoken takes for granted.

    Returns:
      Piece → rank, with all single bytes.

    Raises:
      InputError: naming the first line that is none.
    """
    ranks: dict[bytes, int] = {}
    lines: dict[int, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            coded, rank = line.split()
            piece, rank = base64.b64decode(coded, validate=True), int(rank)
        except ValueError:
            raise InputError(f"line {number} is no piece in base64 and its rank") from None
        if not 0 <= rank < 2**31:
            raise InputError(f"line {number}: rank {rank}; it must be 0 or more and below 2^31")
        if rank in lines:
            raise InputError(f"line {number}: rank {rank} is that of line {lines[rank]}, too")
        if piece in ranks:
            raise InputError(f"line {number} holds the piece of line {lines[ranks[piece]]}")
        ranks[piece], lines[rank] = rank, number
    if not ranks:
        raise InputError("it holds no ranks")
    for value in range(256):
        if bytes([value]) not in ranks:
            raise InputError(f"it has no rank for byte {value}, so it cannot read all texts")
    return ranks


def find_end(name: str, find: Callable[[str], int | None]) -> int | None:
    """The token that ends a document: the named one, or for "" the first of `END_TOKENS`, or None.

    Args:
      name: of the token.
      find: name → token, or None.

    Raises:
      InputError: if the named token is not there.
    """
    for token in (name,) if name else END_TOKENS:
        token_id = find(token)
        if token_id is not None:
            return token_id
    if name:
        raise InputError(f"it has no token {name!r}; give another --end")
    return None
