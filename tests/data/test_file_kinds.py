# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files are known by what is in them: none becomes training text by accident."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pytest

from pqt_jax.data import documents, prepare, source, splits
from pqt_jax.errors import InputError
from support.document_files import TEXTS, json_lines


def zstd(content):
    import zstandard

    return zstandard.compress(content)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def read(path, **options):
    return [text.decode() for text in documents.read_documents(path, **options)]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json"])
def test_compressed_json_lines_are_read_whatever_their_suffix(tmp_path, name, suffix):
    compressed = COMPRESS[suffix](json_lines())
    for path in (tmp_path / f"{name}.{suffix}", tmp_path / f"{name}.{suffix.upper()}"):
        path.write_bytes(compressed)
        assert read(path) == TEXTS
    path = tmp_path / name  # the suffix of the compression was lost
    path.write_bytes(compressed)
    assert read(path) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_that_is_cut_off_is_named(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(COMPRESS[suffix](json_lines() * 4000)[:-9])
    with pytest.raises(InputError, match=f"{path} is not a complete .* file: .*; leave it out"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("content", [b"", b"\x1f", b"plain text"], ids=str)
def test_a_file_that_is_not_as_compressed_as_its_name_is_named(tmp_path, suffix, content):
    """A download that ended early leaves a file of no bytes, which would be no documents."""
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is no .*; put a whole copy there"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_with_a_wrong_byte_is_named_by_every_reader(tmp_path, suffix):
    content = bytearray(COMPRESS[suffix](json_lines() * 4000))
    content[6:60] = bytes(54)
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is not a complete .* file: .*; leave it out"):
        read(path)
    with pytest.raises(InputError, match=f"config.data.files: {path} is a .* file, and text is"):
        source.load(str(path))


def test_an_array_of_objects_is_read_as_lines_are(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    assert read(path) == TEXTS
    path.write_text('[{"text": "a"}, {"body": "b"}]')
    with pytest.raises(InputError, match="entry 2 has no text 'text' .there is body.; give"):
        read(path)


def test_columns_of_csv_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,"one, with a comma\nand a line"\n2,two\n')
    assert read(tmp_path / "a.csv") == ["one, with a comma\nand a line", "two"]
    (tmp_path / "a.TSV.gz").write_bytes(gzip.compress(b"text\tid\none\t1\n"))
    assert read(tmp_path / "a.TSV.gz") == ["one"]
    with pytest.raises(InputError, match="no column 'body' .there is id, text.; give --field"):
        read(tmp_path / "a.csv", field="body")


def test_csv_has_lines_where_csv_says_and_ends_with_a_whole_character(tmp_path):
    """Other characters that Python takes for the ends of lines are text."""
    path, text = tmp_path / "a.csv", "a\u2028b\x0bc\x85d\x1ce"
    path.write_text(f"text\n{text}\n", encoding="utf-8", newline="")
    assert read(path) == [text]
    path.write_bytes(b"text\nover \xc3")
    with pytest.raises(InputError, match="a.csv has bytes that are not UTF-8 .unexpected end"):
        read(path)


def test_null_is_an_empty_document_in_json_too(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": "a"}\n')
    assert read(tmp_path / "a.jsonl") == ["", "a"]


def test_text_columns_of_every_arrow_type(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        table = pyarrow.table({"text": pyarrow.array(["a", None, "b"], kind)})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet") == ["a", "", "b"]
    table = pyarrow.table({"text": pyarrow.array(["a", "b", "a"]).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "no_suffix")
    assert read(tmp_path / "no_suffix") == ["a", "b", "a"]


def write_png(path):
    from matplotlib import image

    image.imsave(path, np.zeros((4, 4, 3)), format="png")


def npy():
    file = io.BytesIO()
    np.save(file, np.arange(4))
    return file.getvalue()


def write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "text")


NO_TEXT = {
    "picture": (write_png, "a PNG picture, no text"),
    "zip": (write_zip, "a zip archive"),
    "array": (lambda path: path.write_bytes(npy()), "a NumPy array"),
    "utf-16": (lambda path: path.write_text("some text", "utf-16"), "text in UTF-16"),
    "zeros": (lambda path: path.write_bytes(b"text\0text"), "zero bytes"),
    "twice": (
        lambda path: path.write_bytes(gzip.compress(gzip.compress(b"text"))),
        "gzip, no text",
    ),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_is_no_text_is_refused_by_every_reader(tmp_path, kind):
    write, message = NO_TEXT[kind]
    path = tmp_path / "text.txt"
    write(path)
    with pytest.raises(InputError, match=f"--input: {path} .*{message}"):
        read(path)
    with pytest.raises(InputError, match=f"config.data.files: {path} "):
        source.load(str(path))


def test_compressed_text_is_not_trained_on_as_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(gzip.compress(b"text" * 100))
    with pytest.raises(InputError, match="is a gzip file, and text is read here; unpack it"):
        source.load(str(path))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val.bin", "validation"),
        ("fineweb_val_000001.bin", "validation"),
        ("val/0.bin", "validation"),
        ("a/valid/train_0.bin", "train"),  # the file's own name counts first
        ("medieval.bin", ""),
        ("retrain.bin", ""),
        ("TEST-2.txt", "test"),
        ("development.txt", ""),
    ],
)
def test_names_tell_splits_by_whole_words(name, split):
    assert splits.named_split(name) == split


def test_text_files_say_what_is_held_out_and_what_contradicts_a_name(tmp_path):
    for i in range(30):
        (tmp_path / f"train_{i}.txt").write_text(f"text {i}\n" * 9)
    (tmp_path / "test.txt").write_text("kept\n" * 9)
    text = source.load(f"{tmp_path}/*.txt")
    assert "; validation: train_" in text.description
    assert "for validation in spite of " in text.description


def test_several_inputs_are_all_read(tmp_path, capsys):
    for name in ("a", "b", "c"):
        lines = [json.dumps({"text": f"{name} {i}"}) for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "val.jsonl").write_text('{"text": "d"}')
    common = ["--tokenizer=bytes", "--processes=1", "--validation=0.3"]
    many = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    assert prepare.main([*common, f"--out={tmp_path / 'one'}", "--input", *many]) == 0
    assert (
        prepare.main(
            [*common, f"--out={tmp_path / 'two'}"]
            + [f"--input={path}" for path in [*many, many[0]]]
        )
        == 0
    )
    assert capsys.readouterr().err == ""
    one, two = ((tmp_path / name / "index.json").read_text() for name in ("one", "two"))
    assert one == two
    index = json.loads(one)
    assert index["train"]["documents"] + index["validation"]["documents"] == 120
    assert (
        prepare.main(
            [*common, f"--out={tmp_path / 'three'}", "--input", *many, str(tmp_path / "val.jsonl")]
        )
        == 0
    )
    assert "warning: documents of all files are divided, also those of " in capsys.readouterr().err
