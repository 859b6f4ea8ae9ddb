# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a file is: by its first bytes, and by its suffix where these say nothing.

    compressed by gzip, bzip2, xz or zstd       opened as what is inside
    JSON lines, CSV, Parquet, ArrayRecord       files of documents
    text                                        what has none of the marks of another kind

The suffix alone would take a compressed file without ".gz" for text, and ".JSONL" too.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from pqt_jax.errors import InputError
from pqt_jax.interchange import files

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
}
_SUFFIXES_OF_COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_UTF16 = "text in UTF-16"
# Files that are not text. What could be taken for the start of a text is left out.
_OTHERS = {
    b"PK\x03\x04": "a zip archive (also .docx, .xlsx and PyTorch's .pt)",
    b"ARROW1": "an Arrow file",
    b"ORC\x00": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF-": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3\x00": "an SQLite database",
    b"GGUF": "a GGUF model",
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
}
_HEAD = 1 << 16  # bytes that are looked at
# What reading a damaged compressed file raises, besides an OSError without a number.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


class FileKind(NamedTuple):
    """What a file is.

    Attributes:
      kind: "json", "csv", "tsv", "parquet", "array_record" or "text".
      compression: "gzip", "bzip2", "xz", "zstd" or "".
    """

    kind: str
    compression: str


def recognize(path: Path, argument: str) -> FileKind:
    """Tell what a file is.

    Args:
      path: the file.
      argument: the name of the argument, for messages.

    Raises:
      InputError: for a file that is none of the kinds that are read.
      OSError: if it cannot be read.
    """
    with files.open_file(path) as file:
        head = file.read(_HEAD)
    compression = _match(_COMPRESSED, head)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if compression:
        head = b""
        with contextlib.suppress(*DAMAGED, OSError):
            with open_file(path, compression) as file:  # whoever reads it says what is missing
                head = file.read(_HEAD)
    if suffixes and (named := _SUFFIXES_OF_COMPRESSED.get(suffixes[-1])):
        suffixes.pop()
        if not compression:
            raise InputError(f"{argument}: {path} is no {named} file; put a whole copy there")
    kind = _SUFFIXES.get(suffixes[-1], "text") if suffixes else "text"
    if head.startswith(b"PAR1"):
        kind = "parquet"
    if kind in ("parquet", "array_record"):
        if compression:
            raise InputError(f"{argument}: {path} is a {compression} file of {kind}; unpack it")
        return FileKind(kind, "")
    what = _match(_OTHERS, head) or _match(_COMPRESSED, head)
    if what == _UTF16:
        raise InputError(f"{argument}: {path} is {what}; convert it to UTF-8")
    if what:
        raise InputError(
            f"{argument}: {path} is {what}, no text; leave it out, or convert it to JSON lines"
        )
    if b"\x00" in head:
        raise InputError(
            f"{argument}: {path} holds zero bytes, so it is no text in UTF-8; leave it out, or "
            "convert it to UTF-8"
        )
    return FileKind(kind, compression)


def is_marked_up(name: str) -> bool:
    """Whether a name is that of a file of documents, which is text itself, as JSON and CSV are.

    Example:
      >>> [is_marked_up(name) for name in ("c4/a.jsonl", "a.CSV", "a.txt")]
      [True, True, False]
    """
    return _SUFFIXES.get(Path(name).suffix.lower()) in ("json", "csv", "tsv")


def open_file(path: Path, compression: str) -> IO[bytes]:
    """Open a file, and read what is inside of it if it is compressed.

    Raises:
      ImportError: for zstd without the package zstandard.
      OSError: if it cannot be opened.
    """
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(path))
    if compression == "bzip2":
        return cast(IO[bytes], bz2.open(path))
    if compression == "xz":
        return cast(IO[bytes], lzma.open(path))
    if compression == "zstd":
        return io.BufferedReader(_ZstdFile(path))
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """What is inside a zstd file of one or more frames.

    One that is cut off raises EOFError, and other damage an OSError, as in files of bzip2.
    """

    def __init__(self, path: Path):
        import zstandard

        self.decompressor, self.file = zstandard.ZstdDecompressor(), path.open("rb")
        self.error = zstandard.ZstdError
        self.frame: Any = None
        self.data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.data:
            block = self.frame.unused_data if self.frame and self.frame.eof else b""
            block = block or self.file.read(_HEAD)
            if not block:
                if self.frame and not self.frame.eof:
                    raise EOFError("its end is missing")
                return 0
            if not self.frame or self.frame.eof:
                self.frame = self.decompressor.decompressobj()
            try:
                self.data = self.frame.decompress(block)
            except self.error as error:
                raise OSError(str(error)) from None
        count = min(len(buffer), len(self.data))
        buffer[:count], self.data = self.data[:count], self.data[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _match(marks: dict[bytes, str], head: bytes) -> str:
    return next((name for mark, name in marks.items() if head.startswith(mark)), "")
