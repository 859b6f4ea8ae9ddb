# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Safetensors files → named arrays: one file, or shards with an index, as Hugging Face has them.

    model.safetensors
    model-00001-of-00002.safetensors … model.safetensors.index.json: {"weight_map": {name: file}}

The safetensors package checks the files that are read. Values are read by NumPy, since the package
does not return bfloat16 arrays.
"""

from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
DTYPES = FLOAT_DTYPES | {"U8": np.uint8, "U32": np.uint32}
DTYPES |= {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu}
SIZES = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}  # bytes of a value
DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class StoredTensor(NamedTuple):
    """Where a tensor is stored.

    Attributes:
      path: the file.
      dtype: the dtype by its name in safetensors, such as "F32".
      shape: the tensor's shape.
      offset: position of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Find all tensors of a folder by the headers of its files.

    Raises:
      InputError: if there are no tensors, or a file is missing or damaged; the message names it.
    """
    if (folder / FILE).exists():
        return _read_header(folder / FILE)
    if (folder / INDEX).exists():
        return _find_in_shards(folder)
    if pickled := [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt"))]:
        raise InputError(
            f"{folder} holds {pickled[0].name} and no {FILE}; convert it to safetensors, as "
            "save_pretrained of transformers does"
        )
    raise InputError(f"{folder} holds neither {FILE} nor {INDEX}; put the weights there")


def read_tensor(tensor: StoredTensor) -> np.ndarray:
    """Read a tensor whose dtype is in `DTYPES`, in that dtype.

    Raises:
      InputError: if its file cannot be read any more.
    """
    count = int(np.prod(tensor.shape, dtype=np.int64))
    try:
        values = np.fromfile(tensor.path, DTYPES[tensor.dtype], count, offset=tensor.offset)
    except OSError as error:
        raise InputError(f"{tensor.path}: {system_reason(error, 'put it back')}") from None
    if values.size != count:
        raise InputError(f"{tensor.path} was truncated while it was read; put it back")
    return values.reshape(tensor.shape)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
      InputError: if the file cannot be read, or has no JSON object.
    """
    try:
        content = files.read_json(path)
    except OSError as error:
        raise InputError(f"{path}: {system_reason(error, 'give a file')}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); put a whole copy there") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object; put a whole copy there")
    return content


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with files.open_file(path) as file:
            with safe_open(path, framework="numpy") as checked:  # sizes, offsets and dtypes
                names = set(checked.keys())
            length = int.from_bytes(file.read(8), "little")
            header = files.parse_json(file.read(length))
    except OSError as error:
        # An OSError of the safetensors package has a text but no number.
        reason = system_reason(error, "put it back") if error.errno else f"{error}; put it back"
        raise InputError(f"{path}: {reason}") from None
    except (SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({reason}); put a whole copy there") from None
    start = 8 + length
    return {
        name: StoredTensor(
            path=path,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=start + entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name in names
    }


def _find_in_shards(folder: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder / INDEX}: {weight_map=}; it must say where tensors are")
    tensors: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(map(str, weight_map.values())):
        if Path(file).name != file:
            raise InputError(f"{folder / INDEX}: {file!r}; it must be a file in the same folder")
        if not (folder / file).is_file():
            raise InputError(f"{folder / INDEX} names {file}, which is missing; put it there")
        shard = _read_header(folder / file)
        if twice := tensors.keys() & shard.keys():
            raise InputError(
                f"{folder / file} holds {min(twice)}, and so does "
                f"{tensors[min(twice)].path.name}; put a whole copy there"
            )
        tensors |= shard
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].path.name != file:
            raise InputError(f"{folder / INDEX}: {name} is not in {file}; put a whole copy there")
    return tensors
