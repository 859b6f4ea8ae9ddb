# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Data files of common formats → documents, read one at a time.

*.jsonl, *.json (.gz)        a document is one field of the object on each line, as in C4
*.parquet                    a document is a value of one column
*.array_record               a document is a record
any other file (.gz)         a document is the whole file
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from pqt_jax.errors import InputError, system_reason

FIELD = "text"


def read_documents(path: Path, field: str = FIELD) -> Iterator[bytes]:
    """Read the documents of a file, in order, including empty ones.

    Args:
      path: the file. Its suffix decides the format.
      field: the field of JSON objects, or the column of a Parquet file, with the text.

    Yields:
      UTF-8 text; for a plain file its bytes, unchecked.

    Raises:
      InputError: naming file and line, if the file cannot be read.
    """
    suffixes = path.suffixes[-2:]
    kind = path.suffix if path.suffix != ".gz" else (suffixes[0] if len(suffixes) == 2 else "")
    try:
        if kind in (".jsonl", ".json"):
            yield from _json_lines(path, field)
        elif kind == ".parquet":
            yield from _parquet(path, field)
        elif kind in (".array_record", ".arrayrecord"):
            yield from _array_record(path)
        else:
            with _open(path) as file:
                yield file.read()
    except ImportError as error:
        raise InputError(
            f"--input: {path} needs the package {error.name}; pip install 'pqt_jax[data]'"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"--input: {path} is not a complete gzip file: {error}; leave it out"
        ) from None
    except OSError as error:
        why = system_reason(error, "leave it out") if error.strerror else f"{error}; leave it out"
        raise InputError(f"--input: {path} cannot be read: {why}") from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _json_lines(path: Path, field: str) -> Iterator[bytes]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"--input: {path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not JSON: {error}; fix it") from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                names = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                if isinstance(record, dict) and field in record:
                    names = f"{field}: {type(record[field]).__name__}"
                raise InputError(
                    f"{where} has no text {field!r} (there is {names:.200}); give --field"
                )
            # A lone surrogate is valid in JSON but not in UTF-8: it becomes a question mark.
            yield record[field].encode(errors="replace")


def _parquet(path: Path, field: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if field not in names:
            there = ", ".join(names)
            raise InputError(
                f"--input: {path} has no column {field!r} (there is {there:.200}); give --field"
            )
        kind = file.schema_arrow.field(field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise InputError(f"--input: {path}: column {field!r} is {kind}, no text; give --field")
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for text in batch.column(0).to_pylist():
                yield (text or "").encode()
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--input: {path} is not a complete Parquet file: {reason:.200}") from None


def _array_record(path: Path) -> Iterator[bytes]:
    from array_record.python import (
        array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
    )

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        for _ in range(reader.num_records()):
            yield reader.read()
        if not reader.ok():  # a truncated file has no records and raises no error
            raise ValueError("its end is missing")
    except (ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--input: {path} is not a complete ArrayRecord file: {reason:.200}"
        ) from None
