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
from pqt_jax.interchange import low_bit
from pqt_jax.interchange.low_bit import GROUP, Read
from pqt_jax.interchange.safetensors_io import DTYPE_NAMES
from pqt_jax.numerics import bit_packing
from pqt_jax.numerics.formats import FloatFormat

Scheme = tuple[FloatFormat, tuple[int, int] | None]  # of a matrix: see `read_matrix`


def wrong_field(name: str, value: Any, wanted: str) -> InputError:
    """The error for a field of config.json: its name, its value, and what is read."""
    stated = f"{name} is missing" if value is None else f"{name}={shorten(repr(value), 200)}"
    return InputError(f"{stated}; it must be {wanted}")


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


def read_matrix(read: Read, name: str, scale_name: str, scheme: Scheme) -> np.ndarray:
    """Read the codes and scales of a matrix, and multiply them.

    Args:
      read: as in `LowBitLayout.load`.
      name: the tensor of the codes: F8_E4M3[out, in], or U8[out, in·bits/8] without gaps.
      scale_name: the tensor of the scales.
      scheme: (the format of the codes, (bo, bi)). Without a block, scales are U8[out, in/32] in
        E8M0. With one, they are [⌈out/bo⌉, ⌈in/bi⌉], E8M0 if they are stored as F8_E8M0, else
        numbers.

    Returns:
      float32[out, in].

    Raises:
      InputError: if a tensor is missing, does not fit the other, or has NaN.
    """
    fmt, block = scheme
    codes = _read_codes(read, name, fmt)
    dtypes = ("U8",) if block is None else ("F8_E8M0", "BF16", "F16", "F32")
    scale = _read(read, scale_name, *dtypes)
    (rows, columns), (bo, bi) = codes.shape, block or (1, GROUP)
    grid = -(-rows // bo), -(-columns // bi)
    if scale.shape != grid:
        raise InputError(
            f"{scale_name} is {_shape(scale)}; it must be {grid[0]}×{grid[1]}, as {name} has "
            f"{rows}×{columns} weights"
        )
    if scale.dtype in (np.uint8, ml_dtypes.float8_e8m0fnu):
        scale = bit_packing.from_e8m0(scale.view(np.uint8))
    if not np.isfinite(scale.astype(np.float32)).all():
        raise InputError(f"{scale_name}: a scale is not a number; put a whole copy there")
    values = low_bit.multiply(fmt, codes, scale.astype(np.float32), (bo, bi))
    if not np.isfinite(values).all():
        raise InputError(
            f"{name}: a weight is NaN, or too large for float32; put a whole copy there"
        )
    return values


def _read_codes(read: Read, name: str, fmt: FloatFormat) -> np.ndarray:
    """The codes of a matrix, one in each byte."""
    if fmt.bits == 8:
        codes = _read(read, name, "F8_E4M3").view(np.uint8)
    else:
        data = _read(read, name, "U8")
        rows, size = data.shape
        if size % (unit := GROUP * fmt.bits // 8):
            raise InputError(
                f"{name} is {_shape(data)}; its rows must be multiples of {unit} bytes"
            )
        codes = bit_packing.unpack(data.reshape(-1), fmt.bits, rows * size * 8 // fmt.bits)
        codes = codes.astype(np.uint8).reshape(rows, -1)
    return codes


def _read(read: Read, name: str, *dtypes: str) -> np.ndarray:
    """Read a matrix of one of these dtypes."""
    value = read(name)
    if value is None:
        raise InputError(f"no tensor {name}; by config.json its matrix is stored in few bits")
    if (found := DTYPE_NAMES[value.dtype]) not in dtypes or value.ndim != 2:
        raise InputError(
            f"{name} is {found} {_shape(value)}; it must be a matrix of {' or '.join(dtypes)}"
        )
    return value


def _shape(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape)) or "a scalar"
