# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Token files → a training and a validation stream, memory-mapped and checked.

    DIR with index.json     written by `data.prepare`; the index has counts and digests
    GLOB of *.bin           files of nanoGPT (uint16 tokens) or llm.c (a header, then tokens)

Files that are truncated, empty or changed, and tokens outside the vocabulary, are refused here,
before compilation.
"""

import dataclasses
import functools
import glob
import hashlib
import json
import operator
import shlex
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.data.source import VALIDATION_ONE_IN, Text, match_files
from pqt_jax.data.splits import describe_contradictions, list_some, named_split
from pqt_jax.errors import MALFORMED, InputError, system_reason
from pqt_jax.interchange import files

INDEX = "index.json"
DIGEST = "sha256"  # the field of the index that has the digest of the others
VERSION = 1
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
SPLITS = ("train", "validation")
_FIELD = "config.data.tokens"
_GIVE = "give a folder that pqt_jax.data.prepare made, or a glob of .bin files"
_HEADER = 1024  # bytes of an llm.c header: int32 magic, version, number of tokens, zeros
_MAGIC = {
    20240520: (1, np.uint16),
    20240801: (7, np.uint32),
}  # of GPT-2 and Llama 3: version, dtype
_CHUNK = 1 << 24  # number of tokens checked at a time


class Stream:
    """The concatenation of arrays or shards, read in slices.

    Example:
      >>> stream = Stream([np.arange(3, dtype=np.uint16), np.arange(3, 8, dtype=np.uint16)])
      >>> len(stream), stream[1:5].tolist()
      (8, [1, 2, 3, 4])

    Args:
      arrays: arrays or shards of one dtype.
    """

    def __init__(self, arrays: Sequence[Any]):
        self.arrays = list(arrays)
        self.ends = np.cumsum([len(array) for array in self.arrays])
        self.dtype = self.arrays[0].dtype

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self.ends[-1])

    def __getitem__(self, at: slice) -> np.ndarray:
        """Tokens `start:stop`; a copy if they are in several arrays."""
        start, stop, _ = at.indices(len(self))
        first, slices = int(np.searchsorted(self.ends, start, side="right")), []
        for array, end in zip(self.arrays[first:], self.ends[first:], strict=True):
            begin = int(end) - len(array)
            if begin >= stop:
                break
            slices.append(array[max(start - begin, 0) : stop - begin])
        return slices[0] if len(slices) == 1 else np.concatenate(slices or [self.arrays[0][:0]])


@dataclasses.dataclass(frozen=True)
class Shard:
    """Tokens of a file.

    Attributes:
      path: the file.
      offset: number of bytes before the first token.
      count: number of tokens.
      dtype: the dtype of the tokens.
      digest: SHA-256 of the file; "" if it is unknown.
    """

    path: Path
    offset: int
    count: int
    dtype: np.dtype
    digest: str = ""

    def __len__(self) -> int:
        """Number of tokens."""
        return self.count

    def __getitem__(self, at: slice) -> np.ndarray:
        """Tokens `start:stop`, mapped into memory."""
        return _map(self)[at]

    def part(self, start: int, stop: int) -> "Shard":
        """The shard of the tokens `start:stop`; its digest is unknown."""
        offset = self.offset + start * self.dtype.itemsize
        return dataclasses.replace(self, offset=offset, count=stop - start, digest="")


@functools.lru_cache(maxsize=256)
def _map(shard: Shard) -> np.ndarray:
    """Map a file into memory. A map keeps the file open, and there may be 10,000 files."""
    return np.memmap(shard.path, shard.dtype, "r", shard.offset, (shard.count,))


class Index(NamedTuple):
    """The content of `index.json`.

    Attributes:
      vocab_size: every token is smaller.
      end: the token after each document.
      tokenizer: the name of its file, the options given to `tokenizers.load`, its fingerprint, and
        "begin", the token before each document, or None.
      shards: the shards of each of `SPLITS`.
      bytes: the number of bytes of text of each of `SPLITS`.
    """

    vocab_size: int
    end: int
    tokenizer: dict[str, Any]
    shards: dict[str, list[Shard]]
    bytes: dict[str, int]


def load(path: str, vocab_size: int, argument: str = _FIELD) -> Text:
    """Open token files.

    Args:
      path: a folder written by `data.prepare`, or a glob of .bin files. Files whose name or folder
        has the word val, valid, validation or dev are for validation; if there are none, the last
        twentieth of all tokens is.
      vocab_size: the model's vocabulary size; every token must be smaller.
      argument: the name of the argument that gave the path, for messages.

    Returns:
      The streams, with a fingerprint of contents and order.

    Raises:
      InputError: naming the file, if it cannot be used for training.
    """
    folder = Path(path)
    _map.cache_clear()  # files may have been replaced since the last call
    try:
        if folder.is_dir():
            return _load_prepared(folder, vocab_size, argument)
        return _load_binary(path, vocab_size)
    except OSError as error:
        why = system_reason(error, "give files of tokens")
        raise InputError(f"{argument}={path!r}: {error.filename} cannot be read: {why}") from None


def read_index(folder: Path, argument: str = _FIELD) -> Index:
    """Read the index of a prepared folder.

    Raises:
      InputError: if there is no index, or it is damaged or has another version.
    """
    path = folder / INDEX
    if not path.exists():
        raise InputError(f"{argument}={str(folder)!r} holds no {INDEX}; {_GIVE}")
    try:
        index = files.read_json(path)
        if (version := index["version"]) == VERSION:
            if index.get(DIGEST, digest := compute_digest(index)) != digest:
                raise ValueError(DIGEST)
            return _parse(folder, index)
    except OSError as error:
        raise InputError(f"{path}: {system_reason(error, 'put a copy back')}") from None
    except MALFORMED:
        raise InputError(f"{path} is damaged; put a copy back, or prepare the data again") from None
    raise InputError(
        f"{path} is of version {version!r}, and version {VERSION} is read; prepare again"
    )


def compute_digest(index: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, of all other fields of an index, in any order and layout."""
    others = {name: value for name, value in index.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def parse_tokenizer(description: dict[str, Any]) -> dict[str, Any]:
    """Read the description of a tokenizer; raises one of `MALFORMED` if it is damaged."""
    options = {name: description[name] for name in ("end", "pattern", "fingerprint")}
    "".join(options.values()).encode()  # raises for what is no text
    begin = description.get("begin")
    if begin is not None and not 0 <= operator.index(begin):
        raise ValueError(f"begin={begin}")
    return {"name": files.check_name(description["name"]), **options, "begin": begin}


def _parse(folder: Path, index: dict[str, Any]) -> Index:
    dtype, about = _DTYPES[index["dtype"]], parse_tokenizer(index["tokenizer"])
    shards = {
        split: [
            Shard(
                path=folder / files.check_name(shard["file"]),
                offset=0,
                count=operator.index(shard["tokens"]),
                dtype=dtype,
                digest=str(shard["sha256"]),
            )
            for shard in index[split]["shards"]
        ]
        for split in SPLITS
    }
    size, end = operator.index(index["vocab_size"]), operator.index(index["end"])
    if not 0 <= end < size or not all(shards.values()):
        raise ValueError(f"vocab_size={size}, end={end}, or no shards")
    sizes = {split: operator.index(index[split]["bytes"]) for split in SPLITS}
    return Index(vocab_size=size, end=end, tokenizer=about, shards=shards, bytes=sizes)


def _load_prepared(folder: Path, vocab_size: int, argument: str) -> Text:
    index = read_index(folder, argument)
    digest, streams = hashlib.sha256(), []
    for split, shards in index.shards.items():
        for shard in shards:
            _check_size(shard, argument)
            _check_digest(shard, argument)
            if index.vocab_size > vocab_size:  # most tokenizers have tokens that never occur
                for at, tokens in _chunks(shard):
                    _check_range(shard, at, tokens, vocab_size, argument)
            digest.update(f"{split} {shard.count} {shard.digest}\n".encode())
        streams.append(Stream(shards))
    where = f"{folder}, tokenizer {index.tokenizer['name']}"
    return _make_text(streams, digest.hexdigest(), where, index.end)


def _load_binary(pattern: str, vocab_size: int) -> Text:
    give = _GIVE
    if not glob.has_magic(pattern):
        prepare = "python -m pqt_jax.data.prepare --tokenizer FILE --input FILES --out"
        give = f"make that folder by {prepare} {shlex.quote(pattern)}, or give a glob of .bin files"
    root, paths = match_files(pattern, _FIELD, give)
    shards = {path: _read_shard(path, vocab_size) for path in sorted(paths)}
    if len(kinds := {shard.dtype for shard in shards.values()}) > 1:
        raise InputError(f"{_FIELD}={pattern!r} has files of {' and of '.join(map(str, kinds))}")
    digest = hashlib.sha256()
    for path, shard in shards.items():
        digest.update(f"{path.name} {shard.count}\n".encode(errors="surrogateescape"))
        for at, tokens in _chunks(shard):
            digest.update(tokens.tobytes())
            _check_range(shard, at, tokens, vocab_size)
    names = {path: path.relative_to(root).as_posix() for path in shards}
    held_out = [path for path in shards if named_split(names[path]) == "validation"]
    validation = [shards[path] for path in held_out]
    train = [shard for path, shard in shards.items() if path not in held_out]
    if not train:
        raise InputError(
            f"{_FIELD}={pattern!r} matches validation files alone; give training files"
        )
    said = f"; validation: {list_some([names[path] for path in held_out])}"
    if not validation:  # the last tokens, as for a single text file
        total = sum(map(len, train))
        split, ends = total - total // VALIDATION_ONE_IN, np.cumsum([len(shard) for shard in train])
        cuts = [
            (shard, min(max(0, split - int(end) + len(shard)), len(shard)))
            for shard, end in zip(train, ends, strict=True)
        ]
        train = [shard.part(0, cut) for shard, cut in cuts if cut]
        validation = [shard.part(cut, len(shard)) for shard, cut in cuts if cut < len(shard)]
        validation = validation or [np.zeros(0, train[0].dtype)]
        said = "; validation: the last tokens"
    trained = [name for path, name in names.items() if path not in held_out]
    if contradictions := describe_contradictions(trained, []):
        said += f"; {contradictions}"
    return _make_text([Stream(train), Stream(validation)], digest.hexdigest(), f"{root}{said}")


def _make_text(streams: Sequence[Stream], digest: str, where: str, end: int | None = None) -> Text:
    train, validation = streams
    description = (
        f"{len(train) + len(validation):,} tokens under {where}, {len(validation):,} of them for "
        f"validation, fingerprint {digest[:12]}"
    )
    return Text(
        train=train, validation=validation, fingerprint=digest, description=description, end=end
    )


def _read_shard(path: Path, vocab_size: int) -> Shard:
    """Read the size and dtype of a .bin file, from its header if it has one."""
    with files.open_file(path) as file:
        magic, file_version, count = struct.unpack("<3i", file.read(12).ljust(12, b"\0"))
    if magic in _MAGIC:
        version, dtype = _MAGIC[magic]
        if file_version != version:
            raise InputError(
                f"{_FIELD}: {path} is a file of llm.c of version {file_version}, and version "
                f"{version} is read; write it anew"
            )
        shard = Shard(path=path, offset=_HEADER, count=count, dtype=np.dtype(dtype))
    else:
        size = path.stat().st_size
        shard = Shard(path=path, offset=0, count=size // 2, dtype=np.dtype(np.uint16))
        if size % 2:
            raise InputError(f"{_FIELD}: {path} has {size} bytes, no whole number of uint16 tokens")
        if vocab_size > 1 << 16:
            raise InputError(
                f"{_FIELD}: {path} has no header, so its tokens would be read as uint16, which "
                f"cannot hold config.model.vocab_size={vocab_size}; give files with a header of "
                "llm.c, or a folder of pqt_jax.data.prepare"
            )
    _check_size(shard)
    return shard


def _check_size(shard: Shard, argument: str = _FIELD) -> None:
    size, wanted = shard.path.stat().st_size, shard.offset + shard.count * shard.dtype.itemsize
    if shard.count < 1:
        raise InputError(f"{argument}: {shard.path} is empty; leave it out")
    if size != wanted:
        raise InputError(
            f"{argument}: {shard.path} has {size:,} bytes and must have {wanted:,}; it is "
            "incomplete, put a copy back"
        )


def _check_digest(shard: Shard, argument: str) -> None:
    with shard.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.digest:
            raise InputError(f"{argument}: {shard.path} is not what was written; put a copy back")


def _check_range(
    shard: Shard, at: int, tokens: np.ndarray, vocab_size: int, argument: str = _FIELD
) -> None:
    """Check the tokens of a shard from `at` on."""
    if (worst := int(tokens.max())) >= vocab_size:
        raise InputError(
            f"{argument}: {shard.path} holds token {worst} at {at + int(tokens.argmax())}; it must "
            f"be below config.model.vocab_size={vocab_size}"
        )


def _chunks(shard: Shard) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(shard), _CHUNK):
        yield start, shard[start : start + _CHUNK]
