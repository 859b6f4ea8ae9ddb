# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""GGUF files hold what was written, and what is damaged is refused."""

import errno
import struct
from pathlib import Path

import numpy as np
import pytest

from pqt_jax.errors import InputError, OutputError
from pqt_jax.interchange import gguf_reader, gguf_writer

METADATA = {
    "general.architecture": "llama",
    "a.count": 7,
    "a.number": 0.5,
    "a.flag": True,
    "a.texts": ["one", "über", ""],
    "a.numbers": np.array([1.5, -2], np.float32),
    "a.types": np.array([1, -6], np.int32),
}
SHAPES = {"x": (3, 5), "vector": (7,), "y": (2, 64)}
VALUES = {
    "y": (39, np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)),
    "x": (0, np.arange(15, dtype=np.float32).reshape(3, 5)),
    "vector": (1, np.arange(7, dtype=np.float16)),
}


def write(path, metadata=METADATA, values=VALUES):
    with gguf_writer.create(path, dict(metadata), SHAPES) as store:
        for name, (kind, array) in values.items():
            store(name, kind, array)
    return path


def check(metadata):
    assert metadata.keys() == METADATA.keys()
    for name, value in METADATA.items():
        if isinstance(value, np.ndarray):
            assert metadata[name].dtype == value.dtype
        assert type(metadata[name]) is type(value) and np.all(metadata[name] == value)


def test_what_is_read_is_what_was_written(tmp_path):
    file = gguf_reader.read(write(tmp_path / "a.gguf"))
    check(file.metadata)
    assert list(file.tensors) == ["y", "x", "vector"]  # as they were stored
    for name, (kind, array) in VALUES.items():
        tensor = file.tensors[name]
        assert tensor.type == kind and tensor.shape == SHAPES[name] and tensor.offset % 32 == 0
        assert gguf_reader.read_data(file, name, array.nbytes).tobytes() == array.tobytes()


def test_bytes_by_hand(tmp_path):
    path = tmp_path / "a.gguf"
    with gguf_writer.create(path, {"k": 1}, {"t": (1, 2)}) as store:
        store("t", 0, np.array([[1, -2]], np.float32))
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    header += struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 1)
    header += struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 2, 1, 0, 0)
    data = struct.pack("<ff", 1, -2).ljust(32, b"\0")
    assert path.read_bytes() == header.ljust(96, b"\0") + data


def test_the_gguf_package_reads_what_is_written(tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the extra 'peers'")
    file = gguf.GGUFReader(write(tmp_path / "a.gguf"))
    check({name: as_ours(file.fields[name]) for name in METADATA})
    tensors = {tensor.name: tensor for tensor in file.tensors}
    for name, (kind, array) in VALUES.items():
        assert tensors[name].tensor_type == kind
        assert tensors[name].shape.tolist() == list(reversed(SHAPES[name]))
        assert tensors[name].data.tobytes() == array.tobytes()


def as_ours(field):
    value = field.contents()
    if isinstance(value, list) and not isinstance(value[0], str):
        return np.array(value, field.parts[field.data[0]].dtype)
    return value


def test_what_the_gguf_package_writes_is_read(tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the extra 'peers'")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.number", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_array("a.texts", METADATA["a.texts"])
    writer.add_array("a.numbers", [1.5, -2.0])
    writer.add_array("a.types", [1, -6])
    for name, (kind, array) in VALUES.items():
        writer.add_tensor(name, array, raw_dtype=kind if array.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf_reader.read(tmp_path / "a.gguf")
    check(file.metadata)
    for name, (kind, array) in VALUES.items():
        assert file.tensors[name].type == kind and file.tensors[name].shape == SHAPES[name]
        assert gguf_reader.read_data(file, name, array.nbytes).tobytes() == array.tobytes()


def test_a_number_may_be_known_when_all_is_stored(tmp_path):
    metadata = dict(METADATA)
    with gguf_writer.create(tmp_path / "a.gguf", metadata, {"x": (1,)}) as store:
        store("x", 0, np.ones(1, np.float32))
        metadata["a.count"] = 38
    assert gguf_reader.read(tmp_path / "a.gguf").metadata["a.count"] == 38


def test_each_tensor_is_stored_once(tmp_path):
    with pytest.raises(ValueError, match="no values of vector"):
        write(tmp_path / "a.gguf", values={"x": VALUES["x"], "y": VALUES["y"]})
    with pytest.raises(ValueError, match="x is stored twice"):
        with gguf_writer.create(tmp_path / "a.gguf", {}, SHAPES) as store:
            store("x", *VALUES["x"])
            store("x", *VALUES["x"])


@pytest.mark.parametrize("stored", [0, 1, 2, 3])
def test_a_full_disk_is_an_error_whatever_is_written(tmp_path, stored):
    class Full:
        """A file that takes a number of writes."""

        def __init__(self, file):
            self.file, self.left = file, 2 * stored

        def write(self, data):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= 1
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    class FullPath(type(tmp_path)):
        def open(self, mode):
            return Full(super().open(mode))

    with pytest.raises(OutputError, match="no space left on device; free some"):
        write(FullPath(tmp_path / "a.gguf"))


def test_a_small_file_that_finds_no_room_is_an_error():
    with pytest.raises(OutputError, match="no space left on device"):
        write(Path("/dev/full"))


def test_each_truncated_file_is_refused(tmp_path):
    path = write(tmp_path / "a.gguf")
    content = path.read_bytes()
    start = gguf_reader.read(path).start
    for size in range(start - 31):  # the header ends in up to 31 bytes of padding
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="damaged|is not a GGUF file"):
            gguf_reader.read(path)
    path.write_bytes(content[:-33])
    file = gguf_reader.read(path)
    with pytest.raises(InputError, match=r"damaged \(it ends in vector\); put a whole copy there"):
        gguf_reader.read_data(file, "vector", 14)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "4s", b"GGML", "is not a GGUF file; give one"),
        (4, "<I", 1, "has version 1 of GGUF; it must be 2 or 3"),
        (4, ">I", 3, "has version 50331648 of GGUF"),
        (8, "<Q", 1 << 60, "it ends too early"),
        (16, "<Q", 1 << 62, "it ends too early"),
        (24, "<Q", (1 << 64) - 1, "it ends too early"),
        (24 + 8 + 20, "<I", 13, "has a value of type 13"),
        (24 + 8 + 20, "<I", 9, "it ends too early"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, at, form, value, message):
    path = write(tmp_path / "a.gguf")
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at, value)
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        gguf_reader.read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_names_are_unique(tmp_path):
    path = write(tmp_path / "a.gguf")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a.count", b"a.texts"))
    with pytest.raises(InputError, match=r"it has a\.texts twice"):
        gguf_reader.read(path)
    path.write_bytes(content.replace(b"\x01\0\0\0\0\0\0\0x", b"\x01\0\0\0\0\0\0\0y"))
    with pytest.raises(InputError, match="it has y twice"):
        gguf_reader.read(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file or directory; give a GGUF file"):
        gguf_reader.read(tmp_path / "a.gguf")
    with pytest.raises(InputError, match="Is a directory; give a GGUF file"):
        gguf_reader.read(tmp_path)
    aligned = write(tmp_path / "b.gguf", METADATA | {"general.alignment": 64})
    with pytest.raises(InputError, match=r"general\.alignment=64; it must be 32"):
        gguf_reader.read(aligned)
