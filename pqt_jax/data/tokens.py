# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files of tokens → a training and a validation stream, mapped into memory and checked.

    DIR with index.json     what `data.prepare` writes; the index has counts and digests
    GLOB of *.bin           nanoGPT's (tokens alone, uint16) and llm.c's (a header says which)

Whatever is torn, empty, changed or out of the vocabulary is found here, before anything compiles.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.data.source import VALIDATION_ONE_IN, Text, match_files
from pqt_jax.errors import InputError, system_reason

INDEX = "index.json"
VERSION = 1
SPLITS = ("train", "validation")
_FIELD = "config.data.tokens"
_GIVE = "give a folder that pqt_jax.data.prepare made, or a glob of .bin files"
_HEADER = 1024  # bytes, of llm.c: int32 magic, version, count of tokens, zeros
_MAGIC = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}  # of GPT-2's and Llama 3's
_CHUNK = 1 << 24  # tokens looked at at once


class Stream:
    """Arrays one after the other as one, of which slices are read.

    Example:
      >>> stream = Stream([np.arange(3, dtype=np.uint16), np.arange(3, 8, dtype=np.uint16)])
      >>> len(stream), stream[1:5].tolist()
      (8, [1, 2, 3, 4])

    Args:
      parts: arrays of one dtype; may be memory maps.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self.ends[-1])

    def __getitem__(self, at: slice) -> np.ndarray:
        """Tokens `start:stop`, copied where they lie in several parts."""
        start, stop, _ = at.indices(len(self))
        first, found = int(np.searchsorted(self.ends, start, side="right")), []
        for part, end in zip(self.parts[first:], self.ends[first:], strict=True):
            begin = int(end) - len(part)
            if begin >= stop:
                break
            found.append(part[max(start - begin, 0) : stop - begin])
        return found[0] if len(found) == 1 else np.concatenate(found or [self.parts[0][:0]])


class Shard(NamedTuple):
    """A file of tokens.

    Attributes:
      path: of the file.
      offset: bytes before the first token.
      count: of tokens.
      dtype: of tokens.
      digest: SHA-256 of the file, where it is known.
    """

    path: Path
    offset: int
    count: int
    dtype: np.dtype
    digest: str = ""

    def tokens(self) -> np.ndarray:
        """They, mapped into memory."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.count,))


class Index(NamedTuple):
    """What `index.json` says.

    Attributes:
      vocab_size: tokens are below it.
      end: the token behind each document.
      tokenizer: name, and what `tokenizers.load` was given.
      shards: those of each of `SPLITS`.
    """

    vocab_size: int
    end: int
    tokenizer: dict[str, str]
    shards: dict[str, list[Shard]]


def load(path: str, vocab_size: int) -> Text:
    """Open files of tokens.

    Args:
      path: folder that `data.prepare` made, or a glob of .bin files, of which those with "val" in
        their name are for validation; where none is, the last twentieth of all tokens.
      vocab_size: of the model; every token has to be below it.

    Returns:
      The streams, with a fingerprint of contents and order.

    Raises:
      InputError: naming the file, for anything that cannot be trained on.
    """
    folder = Path(path)
    try:
        if folder.is_dir():
            return _prepared(folder, vocab_size)
        return _binary(path, vocab_size)
    except OSError as error:
        why = system_reason(error, "give files of tokens")
        raise InputError(f"{_FIELD}={path!r}: {error.filename} cannot be read: {why}") from None


def read_index(folder: Path) -> Index:
    """The index of a prepared folder.

    Raises:
      InputError: if there is none, or it is of another version.
    """
    path = folder / INDEX
    if not path.exists():
        raise InputError(f"{_FIELD}={str(folder)!r} holds no {INDEX}; {_GIVE}")
    try:
        index = json.loads(path.read_text())
        if (version := index["version"]) == VERSION:
            return _parse(folder, index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is damaged; put a copy back, or prepare the data again") from None
    raise InputError(f"{path} is of version {version!r}, and this reads {VERSION}; prepare again")


def _parse(folder: Path, index: dict[str, Any]) -> Index:
    dtype, tokenizer = np.dtype(index["dtype"]), index["tokenizer"]
    about = {name: str(tokenizer[name]) for name in ("name", "end", "pattern")}
    shards = {
        part: [
            Shard(folder / shard["file"], 0, int(shard["tokens"]), dtype, str(shard["sha256"]))
            for shard in index[part]["shards"]
        ]
        for part in SPLITS
    }
    size, end = int(index["vocab_size"]), int(index["end"])
    if not 0 <= end < size:
        raise ValueError(f"vocab_size={size}, end={end}")
    return Index(size, end, about, shards)


def _prepared(folder: Path, vocab_size: int) -> Text:
    index = read_index(folder)
    if index.vocab_size > vocab_size:
        raise InputError(
            f"{_FIELD}={str(folder)!r} has a vocabulary of {index.vocab_size} tokens; "
            f"config.model.vocab_size={vocab_size} must be at least that"
        )
    digest, streams = hashlib.sha256(), []
    for part, shards in index.shards.items():
        for shard in shards:
            _check_size(shard)
            _check_digest(shard)
            digest.update(f"{part} {shard.count} {shard.digest}\n".encode())
        streams.append(Stream([shard.tokens() for shard in shards]))
    where = f"{folder}, tokenizer {index.tokenizer['name']}"
    return _text(streams, digest.hexdigest(), where, index.end)


def _binary(pattern: str, vocab_size: int) -> Text:
    root, paths = match_files(pattern, _FIELD, _GIVE)
    shards = {path: _shard(path) for path in sorted(paths)}
    if len(kinds := {shard.dtype for shard in shards.values()}) > 1:
        raise InputError(f"{_FIELD}={pattern!r} has files of {' and of '.join(map(str, kinds))}")
    digest = hashlib.sha256()
    for path, shard in shards.items():
        digest.update(f"{path.name} {shard.count}\n".encode(errors="surrogateescape"))
        for at, tokens in _chunks(shard):
            digest.update(tokens.tobytes())
            if (worst := int(tokens.max())) >= vocab_size:
                where = at + int(tokens.argmax())
                raise InputError(
                    f"{_FIELD}: {path} holds token {worst} at {where}; it must be below "
                    f"config.model.vocab_size={vocab_size}"
                )
    held = [shard.tokens() for path, shard in shards.items() if "val" in path.name]
    rest = [shard.tokens() for path, shard in shards.items() if "val" not in path.name]
    if not rest:
        raise InputError(
            f"{_FIELD}={pattern!r} matches validation files alone; give training files"
        )
    if not held:  # the end, as of a single text file
        every = Stream(rest)
        cut = len(every) - len(every) // VALIDATION_ONE_IN
        ends = [int(end) for end in every.ends]
        rest = [p[: max(0, cut - e + len(p))] for p, e in zip(every.parts, ends, strict=True)]
        held = [p[max(0, cut - e + len(p)) :] for p, e in zip(every.parts, ends, strict=True)]
    return _text([Stream(rest), Stream(held)], digest.hexdigest(), str(root))


def _text(streams: Sequence[Stream], digest: str, where: str, end: int | None = None) -> Text:
    train, validation = streams
    description = (
        f"{len(train) + len(validation):,} tokens under {where}, {len(validation):,} of them held "
        f"out, fingerprint {digest[:12]}"
    )
    return Text(train, validation, digest, description, end)


def _shard(path: Path) -> Shard:
    """A .bin file by its header, or without one."""
    head = np.fromfile(path, np.int32, 3)
    known = _MAGIC.get((int(head[0]), int(head[1]))) if len(head) == 3 else None
    if known is None:
        size = path.stat().st_size
        shard = Shard(path, 0, size // 2, np.dtype(np.uint16))
        if size % 2:
            raise InputError(f"{_FIELD}: {path} has {size} bytes, no whole number of uint16 tokens")
    else:
        shard = Shard(path, _HEADER, int(head[2]), np.dtype(known))
    _check_size(shard)
    return shard


def _check_size(shard: Shard) -> None:
    found, wanted = shard.path.stat().st_size, shard.offset + shard.count * shard.dtype.itemsize
    if not shard.count:
        raise InputError(f"{_FIELD}: {shard.path} is empty; leave it out")
    if found != wanted:
        raise InputError(
            f"{_FIELD}: {shard.path} has {found:,} bytes and must have {wanted:,}; it is torn, put "
            "a copy back"
        )


def _check_digest(shard: Shard) -> None:
    with shard.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.digest:
            raise InputError(f"{_FIELD}: {shard.path} is not what was written; put a copy back")


def _chunks(shard: Shard) -> Iterator[tuple[int, np.ndarray]]:
    tokens = shard.tokens()
    for start in range(0, len(tokens), _CHUNK):
        yield start, tokens[start : start + _CHUNK]
