# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The bytes of tensors in GGUF files.

Along a row, each 32 weights are a block:

    MXFP4   17 bytes: E8M0 byte, then 16 bytes of which byte j has weight j in its lower four bits
            and weight j + 16 in its upper ones, as codes of E2M1
    Q8_0    34 bytes: float16 d, then 32 integers of one byte; a weight is d · integer

    our format   stored as
    E2M1         MXFP4; in a tensor with rows of E2M3, Q8_0 with d = scale / 2
    E2M3         Q8_0 with d = scale / 8
    others       BF16

Nothing is rounded: Q8_0 is used only where float16 has each d, from 2^-24 to 2^15, and BF16 has all
values of up to eight significant bits. A weight of -0 becomes +0 in MXFP4 and Q8_0: they lack -0.

Source: ggml, `ggml-common.h` (block_mxfp4, block_q8_0) and `ggml-quants.c`.
"""

import enum
import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from pqt_jax.interchange import low_bit
from pqt_jax.interchange.low_bit import GROUP, EncodedMatrix
from pqt_jax.numerics.formats import E2M1, E2M3, FloatFormat

Part = EncodedMatrix | np.ndarray  # in few bits, or numbers


class TensorType(enum.IntEnum):
    """The types that are written and read, with their codes in GGUF."""

    F32 = 0
    F16 = 1
    Q8_0 = 8
    BF16 = 30
    MXFP4 = 39

    @property
    def block(self) -> tuple[int, int]:
        """Weights and bytes of a block, of which a row has a whole number."""
        return _BLOCKS[self]


_BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.Q8_0: (GROUP, 34),
    TensorType.BF16: (1, 2),
    TensorType.MXFP4: (GROUP, 17),
}
_DTYPES = {
    TensorType.F32: np.dtype(np.float32),
    TensorType.F16: np.dtype(np.float16),
    TensorType.BF16: np.dtype(ml_dtypes.bfloat16),
}
# Other types, for messages.
_OTHERS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K"}
_OTHERS |= {13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS", 40: "NVFP4"}
_LOG2_UNIT = {E2M1: -1, E2M3: -3}  # values are whole multiples of 2^this, of at most 127
_SUBNORMAL = 2  # below this E8M0 byte, products may be subnormal numbers of float32


def name_type(code: int) -> str:
    """The name of a type, of which files may have others than we read."""
    try:
        return TensorType(code).name
    except ValueError:
        return _OTHERS.get(code, f"type {code}")


def carrier(formats: Sequence[FloatFormat | None]) -> TensorType:
    """The type of a tensor whose rows have these formats, None for numbers.

    A tensor with a block that Q8_0 cannot hold is stored as BF16 instead, see `encode`.

    Example:
      >>> from pqt_jax.numerics.formats import E4M3
      >>> [carrier(formats).name for formats in ([E2M1], [E2M1, E2M3, E2M1], [E2M1, E4M3, E2M1])]
      ['MXFP4', 'Q8_0', 'BF16']
    """
    if all(fmt == E2M1 for fmt in formats):
        return TensorType.MXFP4
    return TensorType.Q8_0 if all(fmt in _LOG2_UNIT for fmt in formats) else TensorType.BF16


def size(kind: TensorType, shape: tuple[int, ...]) -> int:
    """The number of bytes of a tensor; the last axis has a whole number of blocks."""
    weights, count = kind.block
    return math.prod(shape) // weights * count


def encode(
    parts: Sequence[Part], numbers: TensorType = TensorType.BF16
) -> tuple[TensorType, np.ndarray]:
    """The type and the bytes of matrices that are stored below each other as one tensor.

    Args:
      parts: matrices [out, in].
      numbers: the type of parts that are float32 numbers, F32 or BF16.

    Returns:
      (type, uint8[sum of out, bytes of a row]).
    """
    kind = carrier([part.fmt if isinstance(part, EncodedMatrix) else None for part in parts])
    if any(isinstance(part, np.ndarray) and part.dtype == np.float32 for part in parts):
        kind = numbers
    rows = [_encode_part(part, kind) for part in parts]
    if any(row is None for row in rows):  # of Q8_0
        kind = TensorType.BF16
        rows = [_encode_part(part, kind) for part in parts]
    return kind, np.concatenate([row for row in rows if row is not None])


def _encode_part(part: Part, kind: TensorType) -> np.ndarray | None:
    if isinstance(part, np.ndarray):
        return encode_numbers(part, kind)
    if kind == TensorType.MXFP4:
        return encode_mxfp4(part)
    if kind == TensorType.Q8_0:
        return encode_q8_0(part)
    return encode_numbers(low_bit.decode(part), kind)


def encode_mxfp4(matrix: EncodedMatrix) -> np.ndarray:
    """MXFP4 bytes of a matrix in E2M1.

    Returns:
      uint8[out, 17 · in / 32].
    """
    codes, scale = matrix.codes, matrix.group_scale
    if scale.size and scale.min() < _SUBNORMAL:  # ggml has subnormal numbers, we do not
        codes = np.where(low_bit.decode(matrix) == 0, 0, codes).astype(np.uint8)
    halves = codes.reshape(*scale.shape, 2, GROUP // 2)
    blocks = np.empty((*scale.shape, 17), np.uint8)
    blocks[..., 0] = scale
    blocks[..., 1:] = halves[..., 0, :] | halves[..., 1, :] << 4
    return blocks.reshape(len(codes), -1)


def encode_q8_0(matrix: EncodedMatrix) -> np.ndarray | None:
    """Q8_0 bytes of a matrix in E2M1 or E2M3, or None if float16 lacks one of its d.

    Returns:
      uint8[out, 34 · in / 32].
    """
    log2_unit, scale = _LOG2_UNIT[matrix.fmt], matrix.group_scale
    table = matrix.fmt.decode(np.arange(1 << matrix.fmt.bits)) * 2.0**-log2_unit
    integers = table.astype(np.int8)[matrix.codes].reshape(*scale.shape, GROUP)
    exact = np.ldexp(1.0, scale.astype(np.int32) - 127 + log2_unit)
    exact = np.where(integers.any(-1), exact, 0)
    with np.errstate(over="ignore"):
        d = exact.astype("<f2")
    if (d != exact).any():
        return None
    blocks = np.empty((*scale.shape, 34), np.uint8)
    blocks[..., :2] = d[..., None].view(np.uint8)
    blocks[..., 2:] = integers.view(np.uint8)
    return blocks.reshape(len(matrix.codes), -1)


def encode_numbers(values: np.ndarray, kind: TensorType) -> np.ndarray:
    """Numbers rounded to F32, F16 or BF16, to nearest, ties to even.

    Returns:
      uint8 of the same shape, but for the last axis, which has the bytes.
    """
    return np.ascontiguousarray(values.astype(_DTYPES[kind])).view(np.uint8)


def decode(kind: TensorType, data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a tensor, as ggml computes them.

    Args:
      kind: the type.
      data: uint8[`size(kind, shape)`].
      shape: the tensor's shape in weights.

    Returns:
      float32 of that shape.
    """
    if kind in _DTYPES:
        with np.errstate(invalid="ignore"):
            return data.view(_DTYPES[kind]).astype(np.float32).reshape(shape)
    blocks = data.reshape(-1, kind.block[1])
    if kind == TensorType.Q8_0:
        d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
        with np.errstate(invalid="ignore"):
            return (d * blocks[:, 2:].view(np.int8)).reshape(shape)
    codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    # Twice the values, so that half of each scale is a finite number, as in ggml; -0 becomes 0.
    doubled = 2 * E2M1.decode(np.arange(16)).astype(np.float32) + np.float32(0)
    half = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    with np.errstate(over="ignore"):
        return (doubled[codes] * half).reshape(shape)
