# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Data files of common formats → documents, read one at a time.

JSON lines, or an array      a document is one field of an object, as in C4
CSV, TSV                     a document is a value of one column; the first row has its name
Parquet                      a document is a value of one column
ArrayRecord                  a document is a record
text                         a document is the whole file

Each but Parquet and ArrayRecord may be compressed by gzip, bzip2, xz or zstd. `file_kinds` tells
what a file is.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pqt_jax.data.file_kinds import DAMAGED, open_file, recognize
from pqt_jax.errors import InputError, system_reason

FIELD = "text"


def read_documents(path: Path, field: str = FIELD) -> Iterator[bytes]:
    """Read the documents of a file, in order, including empty ones.

    Args:
      path: the file.
      field: the field of JSON objects, or the column of a table, with the text.

    Yields:
      UTF-8 text; for a plain file its bytes, unchecked. Empty for null.

    Raises:
      InputError: naming file and line, if the file cannot be read or is no file of documents.
    """
    compression = ""
    try:
        kind, compression = recognize(path, "--input")
        if kind == "json":
            yield from _json(path, compression, field)
        elif kind in ("csv", "tsv"):
            yield from _csv(path, compression, field, "," if kind == "csv" else "\t")
        elif kind == "parquet":
            yield from _parquet(path, field)
        elif kind == "array_record":
            yield from _array_record(path)
        else:
            with open_file(path, compression) as file:
                yield file.read()
    except ImportError as error:
        raise InputError(
            f"--input: {path} needs the package {error.name}; pip install {error.name}"
        ) from None
    except DAMAGED as error:
        raise _incomplete(path, compression, error) from None
    except OSError as error:
        if not error.strerror:  # of a damaged gzip, bzip2 or zstd file
            raise _incomplete(path, compression, error) from None
        why = system_reason(error, "leave it out")
        raise InputError(f"--input: {path} cannot be read: {why}") from None


def _incomplete(path: Path, compression: str, error: Exception) -> InputError:
    kind = compression or "compressed"
    reason = " ".join(str(error).split())
    return InputError(f"--input: {path} is not a complete {kind} file: {reason:.200}; leave it out")


def _json(path: Path, compression: str, field: str) -> Iterator[bytes]:
    with open_file(path, compression) as file:
        first = next((line for line in file if line.strip()), b"")
        if first.lstrip().startswith(b"["):
            yield from _json_array(path, first + file.read(), field)
            return
    with open_file(path, compression) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"--input: {path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not JSON: {error}; fix it") from None
            yield _text_of(record, field, where)


def _json_array(path: Path, content: bytes, field: str) -> Iterator[bytes]:
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--input: {path} is not JSON: {error}; fix it") from None
    for number, record in enumerate(records, 1):
        yield _text_of(record, field, f"--input: {path}, entry {number}")


def _text_of(record: Any, field: str, where: str) -> bytes:
    if isinstance(record, dict) and field in record and record[field] is None:
        return b""
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        names = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        if isinstance(record, dict) and field in record:
            names = f"{field}: {type(record[field]).__name__}"
        raise InputError(f"{where} has no text {field!r} (there is {names:.200}); give --field")
    # A lone surrogate is valid in JSON but not in UTF-8: it becomes a question mark.
    return record[field].encode(errors="replace")


def _csv(path: Path, compression: str, field: str, delimiter: str) -> Iterator[bytes]:
    csv.field_size_limit(1 << 30)
    with open_file(path, compression) as file:
        lines = io.TextIOWrapper(cast(BinaryIO, file), "utf-8-sig", newline="")
        try:
            rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
            names = list(rows.fieldnames or ())
            if field not in names:
                there = ", ".join(names)
                raise InputError(
                    f"--input: {path} has no column {field!r} (there is {there:.200}); give --field"
                )
            for row in rows:
                yield (row[field] or "").encode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"--input: {path} has bytes that are not UTF-8 ({error.reason}); convert it"
            ) from None
        except csv.Error as error:
            raise InputError(f"--input: {path} is not CSV: {error}; fix it") from None


def _parquet(path: Path, field: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        if field not in names:
            there = ", ".join(names)
            raise InputError(
                f"--input: {path} has no column {field!r} (there is {there:.200}); give --field"
            )
        kind = file.schema_arrow.field(field).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        is_text = ("is_string", "is_large_string", "is_string_view")
        if not any(getattr(pyarrow.types, name)(kind) for name in is_text):
            raise InputError(f"--input: {path}: column {field!r} is {kind}, no text; give --field")
        missing = file.metadata.num_rows
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            missing -= len(batch)
            for text in batch.column(0).to_pylist():
                yield (text or "").encode()
        if missing:  # of a damaged page, whose rows are passed over without an error
            raise ValueError(f"it should have {file.metadata.num_rows} rows, {missing} more")
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
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
