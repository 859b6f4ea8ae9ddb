# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents out of files as others ship them, and what is said of files that are broken."""

import gzip

import pytest

from pqt_jax.data import documents
from pqt_jax.errors import InputError
from support.document_files import TEXTS, json_lines


def write_parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_array_record(path):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()


def read(path, **options):
    return [text.decode() for text in documents.read_documents(path, **options)]


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines()))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json_lines() + b"\n\n"))  # as C4 names them
    write_parquet(tmp_path / "d.parquet", text=TEXTS, number=[1, 2, 3, 4])
    write_array_record(tmp_path / "e.array_record")
    for path in sorted(tmp_path.iterdir()):
        assert read(path) == TEXTS, path
    (tmp_path / "a.jsonl").write_bytes(json_lines("body"))
    assert read(tmp_path / "a.jsonl", field="body") == TEXTS


def test_any_other_file_is_one_document(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = 1\n")
    (tmp_path / "a.py.gz").write_bytes(gzip.compress(b"x = 1\n"))
    (tmp_path / "b.bin").write_bytes(b"\xff\n")
    assert read(tmp_path / "a.py") == read(tmp_path / "a.py.gz") == ["x = 1\n"]
    assert list(documents.read_documents(tmp_path / "b.bin")) == [b"\xff\n"]


def test_a_byte_order_mark_and_empty_lines_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf[{"text": "a"}]')
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n')
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbftext,n\n\na,1\n\n")
    for path in tmp_path.iterdir():
        assert read(path) == ["a"], path


def test_a_null_in_parquet_is_an_empty_document(tmp_path):
    write_parquet(tmp_path / "a.parquet", text=["a", None])
    assert read(tmp_path / "a.parquet") == ["a", ""]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2 cannot be read as JSON: "),
        ("a.jsonl", b'{"body": "a", "url": 3}\n', "line 1 has no text 'text' (there is body, url)"),
        (
            "a.jsonl",
            b'["text"]\n',
            'entry 1 is a string, and a document is a field of an object; write it as {"text":',
        ),
        ("a.jsonl", b'{"text": 3}\n', "line 1 has no text 'text' (there is text: a number)"),
        ("a.jsonl", b"7\n", "line 1 is a number, and a document is a field of an object"),
        ("a.jsonl", b"null\n", "line 1 is null, and a document is a field of an object"),
        (
            "a.json",
            b'\xef\xbb\xbf[{"body": 1}]',
            "entry 1 has no text 'text' (there is body); give",
        ),
        ("a.jsonl", b"[" * 10**5, "a.jsonl cannot be read as JSON: it is nested too deep; fix it"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b\\ud83d"}',
            "line 2 has half a surrogate pair, '\\ud83d', which is no character; fix it",
        ),
        ("a.csv", b'text,n\n"a\nb",1\nc\n', "a.csv, line 4 has 1 value for 2 columns; fix it"),
        ("a.csv", b'n,text\n1,"a"\n2,b,c\n', "a.csv, line 3 has 3 values for 2 columns; fix it"),
        (
            "a.csv",
            b"id;text\n1;a\n",
            "(there is id;text); the separator seems to be ';', and ',' is read here: convert it",
        ),
        ("a.csv", b"id\ttext\n1\ta\n", "the separator seems to be '\\t', and ',' is read here: "),
        ("a.tsv", b"id,text\n1,a\n", "the separator seems to be ',', and '\\t' is read here: "),
        ("a.csv", b"id,body\n1,a\n", "no column 'text' (there is id, body); give --field"),
        ("a.csv", "text\na\n".encode("utf-16"), "is text in UTF-16; convert it to UTF-8"),
        (
            "a.csv",
            "text\na\n".encode("utf-16-le"),
            "it is no text in UTF-8; leave it out, or convert",
        ),
        ("a.jsonl", b"{}", "line 1 has no text 'text' (there is ); give --field"),
        (
            "a.jsonl.gz",
            gzip.compress(json_lines(), mtime=0)[:-20],
            "a.jsonl.gz is not a complete gzip file: ",
        ),
        ("a.parquet", b"PAR1", "a.parquet is not a complete Parquet file: "),
        ("a.array_record", b"abc", "a.array_record is not a complete ArrayRecord file: "),
        ("none.jsonl", None, "none.jsonl cannot be read: No such file or directory; leave it out"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(documents.read_documents(tmp_path / name))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_columns_that_are_no_text_are_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", body=["a"], text=[1])
    with pytest.raises(InputError, match="column 'text' is int64, no text; give --field"):
        read(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column 'x' \(there is body, text\); give --field"):
        read(tmp_path / "a.parquet", field="x")


def test_parquet_pages_are_compared_with_their_checksums_and_rows_counted(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    texts = [f"document {i}" for i in range(300)]
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, **options)
    whole, reasons = bytearray(path.read_bytes()), ""
    text = whole.index(b"document 150")
    for at, bit in [*((at, bit) for at in range(4, 40) for bit in range(8)), (text, 0)]:
        whole[at] ^= 1 << bit
        path.write_bytes(whole)
        whole[at] ^= 1 << bit
        try:
            assert read(path) == texts, (at, bit)
        except InputError as error:
            reasons += str(error)
    assert "could not verify page integrity" in reasons.lower(), reasons
    assert "it should have 300 rows, " in reasons
