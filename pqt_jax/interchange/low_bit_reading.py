# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What readers of weights in few bits check: fields of config.json, and tensors.

Each refusal names a field or a tensor, its value, and what is read instead.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pqt_jax.console import shorten
from pqt_jax.errors import InputError
from pqt_jax.interchange import low_bit, safetensors_io
from pqt_jax.interchange.low_bit import GROUP, StoredCodes
from pqt_jax.interchange.safetensors_io import SIZES, StoredTensor
from pqt_jax.numerics import bit_packing

FIELD = "quantization_config"  # where transformers looks for what is in few bits


def wrong_field(name: str, value: Any, wanted: str) -> InputError:
    """The error for a field of config.json: its name, its value, and what is read."""
    stated = f"{name} is missing" if value is None else f"{name}={shorten(repr(value), 200)}"
    return InputError(f"{stated}; it must be {wanted}")


def names_method(method: str, content: Mapping[str, Any]) -> bool:
    """Whether config.json names a method in `quantization_config.quant_method`."""
    config = content.get(FIELD)
    return isinstance(config, dict) and config.get("quant_method") == method


def check_fields(section: Mapping[str, Any], where: str, allowed: Mapping[str, tuple]) -> None:
    """Check fields against the values that are read.

    Example:
      >>> check_fields({"bits": 3}, "weights", {"bits": (4, 8), "zero_point": (None,)})
      Traceback (most recent call last):
          ...
      pqt_jax.errors.InputError: weights.bits=3; it must be 4 or 8

    Args:
      section: a part of config.json.
      where: its name.
      allowed: field → its values; None among them if it may be absent or null.

    Raises:
      InputError: naming the first field with another value.
    """
    for name, values in allowed.items():
        value = section.get(name)
        if not any(value == one and isinstance(value, type(one)) for one in values):
            shown = " or ".join(str(one) for one in values if one is not None and one != {})
            raise wrong_field(f"{where}.{name}", value, shown or "absent")


def check_section(value: Any, where: str) -> Mapping[str, Any]:
    """Return a value of config.json that must be a JSON object."""
    if not isinstance(value, dict):
        raise wrong_field(where, value, "a JSON object")
    return value


def check_names(value: Any, where: str) -> list[str]:
    """Return a value of config.json that must be a list of texts."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong_field(where, value, "a list of texts")
    return value


def check_block(value: Any, where: str) -> tuple[int, int]:
    """Return a value of config.json that must be the rows and columns of blocks."""
    whole = isinstance(value, list) and all(type(side) is int and side > 0 for side in value)
    if not whole or len(value) != 2:
        raise wrong_field(where, value, "two whole numbers above 0")
    return value[0], value[1]


def check_matrix(
    stored: Mapping[str, StoredTensor], found: StoredCodes, shape: tuple[int, int]
) -> None:
    """Check the headers of the two tensors of a matrix.

    Args:
      stored: the tensors of a folder, by name.
      found: those of the matrix.
      shape: [out, in], as config.json has it.

    Raises:
      InputError: if one of them is missing, or has another dtype or shape.
    """
    (rows, columns), (bo, bi) = shape, found.block
    bits = 8 * SIZES[found.codes_dtype]
    if columns % GROUP and (bo == 1 or bits != found.fmt.bits):
        raise InputError(
            f"{found.codes}: by config.json it has rows of {columns} weights, which "
            f"are no groups of {GROUP}; give an undamaged copy"
        )
    codes = rows, columns * found.fmt.bits // bits
    _check_tensor(stored, found.codes, (found.codes_dtype,), codes, shape)
    _check_tensor(
        stored, found.scale, found.scale_dtypes, (-(-rows // bo), -(-columns // bi)), shape
    )


def _check_tensor(
    stored: Mapping[str, StoredTensor],
    name: str,
    dtypes: tuple[str, ...],
    wanted: tuple[int, int],
    shape: tuple[int, int],
) -> None:
    if name not in stored:
        raise InputError(f"no tensor {name}; by config.json its matrix is stored in few bits")
    path, dtype, found, _ = stored[name]
    if dtype not in dtypes or found != wanted:
        raise InputError(
            f"{path.name}: {name} is {dtype} {_join(found)}; for {_join(shape)} weights it must be "
            f"{' or '.join(dtypes)} {_join(wanted)}"
        )


def read_matrix(stored: Mapping[str, StoredTensor], found: StoredCodes) -> np.ndarray:
    """Read the codes and scales of a matrix that `check_matrix` accepts, and multiply them.

    Returns:
      float32[out, in].

    Raises:
      InputError: if a file cannot be read any more, or a scale or a weight is not finite.
    """
    data = safetensors_io.read_tensor(stored[found.codes]).view(np.uint8)
    codes = bit_packing.unpack(data.reshape(-1), found.fmt.bits, data.size * 8 // found.fmt.bits)
    codes = codes.astype(np.uint8).reshape(len(data), -1)
    scale = safetensors_io.read_tensor(stored[found.scale])
    if scale.dtype in (np.uint8, ml_dtypes.float8_e8m0fnu):
        scale = bit_packing.from_e8m0(scale.view(np.uint8))
    scale = scale.astype(np.float32)
    if not np.isfinite(scale).all():
        raise _damaged(stored, found.scale, "a scale is not a number")
    values = low_bit.multiply(found.fmt, codes, scale, found.block)
    if not np.isfinite(values).all():
        raise _damaged(stored, found.codes, "a weight is NaN, or too large for float32")
    return values


def _damaged(stored: Mapping[str, StoredTensor], name: str, reason: str) -> InputError:
    return InputError(f"{stored[name].path}: {name}: {reason}; put a whole copy there")


def _join(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
