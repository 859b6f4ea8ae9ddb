# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Metadata and tensors → GGUF files, tensor by tensor; `gguf_reader` says what is where.

No tensor is kept in memory. The header is written last, so that the type of a tensor need not be
known before its values. The writer of the gguf package wants all types first, and does not notice a
full disk when it writes small tensors.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path

import numpy as np

from pqt_jax.interchange import files
from pqt_jax.interchange.gguf_reader import (
    ALIGNMENT,
    ARRAY,
    MAGIC,
    NUMBERS,
    STRING,
    VERSION,
    StoredTensor,
    Value,
    padded,
)

Store = Callable[[str, int, np.ndarray], None]
_CODES = {dtype: code for code, dtype in NUMBERS.items()}


@contextlib.contextmanager
def create(
    path: Path, metadata: MutableMapping[str, Value], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Store]:
    """Write a file, tensor by tensor.

    Example:
      >>> import tempfile
      >>> from pqt_jax.interchange import gguf_reader
      >>> path = Path(tempfile.mkdtemp()) / "model.gguf"
      >>> with create(path, {"general.architecture": "llama"}, {"x": (2, 3)}) as store:
      ...     store("x", 0, np.ones((2, 3), np.float32))
      >>> gguf_reader.read(path).tensors["x"].shape
      (2, 3)

    Args:
      path: the file, in a folder that gets its name when all is complete (`folders.atomic_folder`).
      metadata: name → value. An int is stored in 32 bits without a sign, a float as float32. A
        number may still be changed until the body ends.
      shapes: name → shape in weights, of all tensors.

    Yields:
      store(name, type, data): writes a tensor, whose bytes are those of `data`. Tensors lie in the
      file in the order of the calls.

    Raises:
      OutputError: if the file cannot be written.
      ValueError: if a tensor is not stored exactly once.
    """
    tensors: dict[str, StoredTensor] = {}
    start = padded(len(_header(metadata, {n: StoredTensor(0, s, 0) for n, s in shapes.items()})))
    with files.output_errors(path):
        file = path.open("wb")
    end = start

    def store(name: str, code: int, data: np.ndarray) -> None:
        nonlocal end
        if name in tensors:
            raise ValueError(f"{name} is stored twice")
        tensors[name] = StoredTensor(code, shapes[name], end - start)
        with files.output_errors(path):
            file.seek(end)
            file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
            file.write(bytes(-data.nbytes % ALIGNMENT))
        end += padded(data.nbytes)

    try:
        yield store
        if missing := shapes.keys() - tensors.keys():
            raise ValueError(f"no values of {min(missing)}")
        with files.output_errors(path):
            file.seek(0)
            file.write(_header(metadata, tensors).ljust(start, b"\0"))
            file.flush()
    finally:
        with files.output_errors(path):
            file.close()


def _header(metadata: Mapping[str, Value], tensors: Mapping[str, StoredTensor]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for name, value in metadata.items():
        parts += [_string(name), _value(value)]
    for name, (code, shape, offset) in tensors.items():
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [_string(name), axes, struct.pack("<IQ", code, offset)]
    return b"".join(parts)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _CODES[value.dtype], value.size) + value.tobytes()
    # A bool is also an int.
    code, form = (
        (7, "?") if isinstance(value, bool) else (4, "I") if isinstance(value, int) else (6, "f")
    )
    return struct.pack(f"<I{form}", code, value)
