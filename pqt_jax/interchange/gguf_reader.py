# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""GGUF files → metadata, and where their tensors are.

    header      "GGUF", version, number of tensors, number of metadata
    metadata    for each its name, the type of its value, the value
    tensors     for each its name, shape with the last axis first, type, offset in the data
    data        the tensors in that order, each from a multiple of 32 on

Numbers are little-endian. The reader of the gguf package takes each count for right, so that a
damaged file would fill the memory.

Source: the specification of GGUF, version 3, in the repository of ggml.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
Value = bool | int | float | str | list[str] | np.ndarray
STRING, ARRAY = 8, 9
NUMBERS = dict(  # code of a type → its dtype
    zip(
        (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12),
        map(np.dtype, ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "<u8", "<i8", "<f8")),
        strict=True,
    )
)
_MOST_AXES = 4


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
      type: the code of its type; `gguf_tensors.TensorType` has those that we use.
      shape: its shape, in weights; the last axis is contiguous.
      offset: position of its first byte in the file.
    """

    type: int
    shape: tuple[int, ...]
    offset: int


class GGUF(NamedTuple):
    """What a file holds.

    Attributes:
      path: the file.
      metadata: name → value. Arrays are lists of strings, or NumPy arrays.
      tensors: name → tensor, in the order of the file.
      start: position of the data.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, StoredTensor]
    start: int


def padded(size: int) -> int:
    """The size up to the next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def read(path: Path) -> GGUF:
    """Read the metadata of a file, and where its tensors are.

    Args:
      path: a GGUF file of version 2 or 3.

    Returns:
      What it holds. Whether the file has all bytes of the tensors is not checked.

    Raises:
      InputError: if it is no such file, cannot be read, or is damaged.
    """
    try:
        with files.open_file(path) as file:
            return _read(path, _Cursor(file))
    except OSError as error:
        raise InputError(f"{path}: {system_reason(error, 'give a GGUF file')}") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); put a whole copy there") from None


def _read(path: Path, cursor: "_Cursor") -> GGUF:
    if cursor.left < 24 or cursor.take(4) != MAGIC:
        raise InputError(f"{path} is not a GGUF file; give one")
    version, tensor_count, value_count = cursor.unpack("<IQQ")
    if version not in (2, VERSION):
        raise InputError(f"{path} has version {version} of GGUF; it must be 2 or {VERSION}")
    metadata: dict[str, Value] = {}
    for _ in range(cursor.checked(value_count, 12)):
        name = cursor.string()
        (code,) = cursor.unpack("<I")
        _insert(metadata, name, cursor.value(code))
    tensors: dict[str, StoredTensor] = {}
    for _ in range(cursor.checked(tensor_count, 24)):
        name = cursor.string()
        (axes,) = cursor.unpack("<I")
        if not 1 <= axes <= _MOST_AXES:
            raise ValueError(f"tensor {name} has {axes} axes")
        shape = cursor.unpack(f"<{axes}Q")[::-1]
        code, offset = cursor.unpack("<IQ")
        _insert(tensors, name, StoredTensor(code, shape, offset))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if alignment != ALIGNMENT:
        raise InputError(f"{path}: general.alignment={alignment}; it must be {ALIGNMENT}")
    start = padded(cursor.position)
    tensors = {name: one._replace(offset=start + one.offset) for name, one in tensors.items()}
    return GGUF(path, metadata, tensors, start)


def _insert(into: dict[str, Any], name: str, value: Any) -> None:
    if name in into:
        raise ValueError(f"it has {name} twice")
    into[name] = value


class _Cursor:
    """Reads a file from its begin on; ValueError for what would lie behind its end."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.left = file.seek(0, 2)
        self.position = file.seek(0)

    def take(self, size: int) -> bytes:
        """The next bytes."""
        content = self._file.read(self.checked(size, 1))
        if len(content) != size:
            raise ValueError("it was truncated while it was read")
        self.left -= size
        self.position += size
        return content

    def checked(self, count: int, size: int) -> int:
        """The number of things that follow, each of `size` bytes or more."""
        if count * size > self.left:
            raise ValueError(f"at byte {self.position} it ends too early")
        return count

    def unpack(self, form: str) -> tuple[Any, ...]:
        """Numbers, as `struct.unpack`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def string(self) -> str:
        """A string, whose length precedes it."""
        return self.take(*self.unpack("<Q")).decode(errors="replace")

    def value(self, code: int) -> Value:
        """A value of the type with this code."""
        if code == STRING:
            return self.string()
        if code == ARRAY:
            code, count = self.unpack("<IQ")
            if code == STRING:
                return [self.string() for _ in range(self.checked(count, 8))]
            dtype = self.dtype(code)
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        dtype = self.dtype(code)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def dtype(self, code: int) -> np.dtype:
        """The dtype of numbers."""
        if code not in NUMBERS:
            raise ValueError(f"at byte {self.position} it has a value of type {code}")
        return NUMBERS[code]


def read_data(file: GGUF, name: str, size: int) -> np.ndarray:
    """Read the bytes of a tensor.

    Args:
      file: from `read`.
      name: the tensor's name.
      size: number of its bytes.

    Returns:
      uint8[size].

    Raises:
      InputError: if the file has fewer bytes, or cannot be read any more.
    """
    offset = file.tensors[name].offset
    try:
        with files.open_file(file.path) as opened:
            if offset + size > opened.seek(0, 2):
                raise InputError(
                    f"{file.path} is damaged (it ends in {name}); put a whole copy there"
                )
            opened.seek(offset)
            return np.frombuffer(opened.read(size), np.uint8)
    except OSError as error:
        raise InputError(f"{file.path}: {system_reason(error, 'put it back')}") from None
