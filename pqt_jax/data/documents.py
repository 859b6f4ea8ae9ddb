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

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from pqt_jax.console import format_quantity
from pqt_jax.data.file_kinds import DAMAGED, open_file, recognize
from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files

FIELD = "text"
_JSON_TYPES = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def read_documents(path: Path, field: str = FIELD, argument: str = "--input") -> Iterator[bytes]:
    """Read the documents of a file, in order, including empty ones.

    Args:
      path: the file.
      field: the field of JSON objects, or the column of a table, with the text.
      argument: the name of the argument that gave the file, for messages.

    Yields:
      UTF-8 text; for a plain file its bytes, unchecked. Empty for null.

    Raises:
      InputError: naming file and line, if the file cannot be read or is no file of documents.
    """
    compression, name = "", f"{argument}: {path}"
    try:
        kind, compression = recognize(path, argument)
        if kind == "json":
            yield from _json(path, compression, field, name)
        elif kind in ("csv", "tsv"):
            yield from _csv(path, compression, field, name, "," if kind == "csv" else "\t")
        elif kind == "parquet":
            yield from _parquet(path, field, name)
        elif kind == "array_record":
            yield from _array_record(path, name)
        else:
            with open_file(path, compression) as file:
                yield file.read()
    except ImportError as error:
        raise InputError(
            f"{name} needs the package {error.name}; pip install {error.name}"
        ) from None
    except DAMAGED as error:
        raise _incomplete(name, compression, error) from None
    except OSError as error:
        if not error.strerror:  # of a damaged gzip, bzip2 or zstd file
            raise _incomplete(name, compression, error) from None
        raise InputError(f"{name} cannot be read: {system_reason(error, 'leave it out')}") from None


def _incomplete(name: str, compression: str, error: Exception) -> InputError:
    kind = compression or "compressed"
    reason = " ".join(str(error).split())
    return InputError(f"{name} is not a complete {kind} file: {reason:.200}; leave it out")


def _json(path: Path, compression: str, field: str, name: str) -> Iterator[bytes]:
    with open_file(path, compression) as file:
        first = next((line for line in file if line.strip()), b"")
        if first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            for number, record in enumerate(_parse(first + file.read(), name), 1):
                yield _text_of(record, field, f"{name}, entry {number}")
            return
    with open_file(path, compression) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{name}, line {number}"
                yield _text_of(_parse(line, where), field, where)


def _parse(content: bytes, where: str) -> Any:
    try:
        return files.parse_json(content)
    except ValueError as error:
        raise InputError(f"{where} cannot be read as JSON: {error}; fix it") from None


def _text_of(record: Any, field: str, where: str) -> bytes:
    if not isinstance(record, dict):
        raise InputError(
            f"{where} is {_JSON_TYPES[type(record)]}, and a document is a field of an object; "
            f'write it as {{"{field}": "…"}}'
        )
    if field in record and record[field] is None:
        return b""
    if not isinstance(record.get(field), str):
        there = ", ".join(record)
        if field in record:
            there = f"{field}: {_JSON_TYPES[type(record[field])]}"
        raise InputError(f"{where} has no text {field!r} (there is {there:.200}); give --field")
    try:
        return record[field].encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise InputError(
            f"{where} has half a surrogate pair, {half}, which is no character; fix it"
        ) from None


def _csv(path: Path, compression: str, field: str, name: str, delimiter: str) -> Iterator[bytes]:
    csv.field_size_limit(1 << 30)
    with open_file(path, compression) as file:
        lines = io.TextIOWrapper(cast(BinaryIO, file), "utf-8-sig", newline="")
        try:
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            names = next(rows, [])
            if field not in names:
                raise InputError(
                    f"{name} has no column {field!r} (there is {', '.join(names):.200}); "
                    + _separator_hint(names, delimiter)
                )
            column = {column: i for i, column in enumerate(names)}[field]
            start = rows.line_num
            for row in rows:
                start, line = rows.line_num, start + 1
                if row and len(row) != len(names):
                    raise InputError(
                        f"{name}, line {line} has {format_quantity(len(row), 'value')} for "
                        f"{format_quantity(len(names), 'column')}; fix it"
                    )
                if row:
                    yield row[column].encode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name} has bytes that are not UTF-8 ({error.reason}); convert it to UTF-8"
            ) from None
        except csv.Error as error:
            raise InputError(f"{name} is not CSV: {error}; fix it") from None


def _separator_hint(names: Sequence[str], delimiter: str) -> str:
    """What to do about the names of columns, of which one is missing."""
    others = [other for other in ",;\t|" if other != delimiter and other in "".join(names)]
    if len(names) != 1 or not others:
        return "give --field"
    return f"the separator seems to be {others[0]!r}, and {delimiter!r} is read here: convert it"


def _parquet(path: Path, field: str, name: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        if field not in names:
            raise InputError(
                f"{name} has no column {field!r} (there is {', '.join(names):.200}); give --field"
            )
        kind = file.schema_arrow.field(field).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        is_text = ("is_string", "is_large_string", "is_string_view")
        if not any(getattr(pyarrow.types, name)(kind) for name in is_text):
            raise InputError(f"{name}: column {field!r} is {kind}, no text; give --field")
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
        raise InputError(f"{name} is not a complete Parquet file: {reason:.200}") from None


def _array_record(path: Path, name: str) -> Iterator[bytes]:
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
        raise InputError(f"{name} is not a complete ArrayRecord file: {reason:.200}") from None
