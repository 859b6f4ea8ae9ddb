# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Named arrays → safetensors files: one file, or shards with an index, as Hugging Face has them.

    model.safetensors
    model-00001-of-00002.safetensors … model.safetensors.index.json: {"weight_map": {name: file}}

The safetensors package would need all arrays in memory, and hides errors of the system.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pqt_jax.interchange import files
from pqt_jax.interchange.safetensors_io import DTYPE_NAMES, FILE, INDEX, SIZES

SHARD_BYTES = 5_000_000_000  # as in transformers


class TensorSpec(NamedTuple):
    """What a tensor will be stored as.

    Attributes:
      dtype: the dtype by its name in safetensors, one of `SIZES`.
      shape: the tensor's shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Number of bytes of the values."""
        return math.prod(self.shape) * SIZES[self.dtype]


def write_stream(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    values: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors as they are made, in any order: none is kept in memory.

    Args:
      folder: an empty folder.
      specs: all tensors, in the order in which they lie in the files.
      values: (name, array) of each tensor once. The array has the shape and the size of a value of
        its spec; its bytes are written.
      shard_bytes: maximum size of a shard, unless a single tensor is larger.

    Raises:
      OutputError: if they cannot be written.
      ValueError: if the values are not those of the specs.
    """
    shards = _divide(specs, shard_bytes)
    names = [FILE]
    if (count := len(shards)) > 1:
        names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    missing = dict(specs)
    with contextlib.ExitStack() as stack:
        places: dict[str, tuple[Path, BinaryIO, int]] = {}
        for path, shard in zip((folder / name for name in names), shards, strict=True):
            with files.output_errors(path):
                file = stack.enter_context(path.open("wb", buffering=0))
                # transformers requires this format
                start = _write_header(file, shard, {"format": "pt"})
            for name, spec in shard.items():
                places[name] = path, file, start
                start += spec.nbytes
        for name, array in values:
            spec = missing.pop(name)
            if array.shape != spec.shape or array.nbytes != spec.nbytes:
                raise ValueError(f"{name} is {array.dtype}{array.shape}; it must be {spec}")
            path, file, start = places[name]
            with files.output_errors(path):
                file.seek(start)
                _write_all(file, _bytes_of(array))
        if missing:
            raise ValueError(f"no values of {min(missing)}")
    if count > 1:
        weight_map = {
            name: file for file, shard in zip(names, shards, strict=True) for name in shard
        }
        metadata = {
            "total_parameters": sum(math.prod(spec.shape) for spec in specs.values()),
            "total_size": sum(spec.nbytes for spec in specs.values()),
        }
        index = {"metadata": metadata, "weight_map": weight_map}
        files.write(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _divide(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    room = shard_bytes
    for name, spec in specs.items():
        if spec.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = spec
        room -= spec.nbytes
    return shards


def write_file(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, tensor by tensor.

    Args:
      path: the file to write.
      tensors: name → array of a dtype in `DTYPE_NAMES`.
      metadata: the file's metadata.

    Raises:
      OSError: if it cannot be written.
    """
    specs = {n: TensorSpec(DTYPE_NAMES[x.dtype], x.shape) for n, x in tensors.items()}
    with path.open("wb", buffering=0) as file:
        _write_header(file, specs, metadata)
        for array in tensors.values():
            _write_all(file, _bytes_of(array))


def _write_header(
    file: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> int:
    """Write the header of a file; returns the position of the first value."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.nbytes
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of eight
    _write_all(file, memoryview(len(text).to_bytes(8, "little") + text))
    return 8 + len(text)


def _write_all(file: BinaryIO, data: memoryview) -> None:
    """Write to an unbuffered file, which may take a part of the data at a time."""
    while data:
        data = data[file.write(data) :]


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
