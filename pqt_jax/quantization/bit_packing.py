# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Codes of a few bits ↔ bytes, and powers of two ↔ E8M0 (NumPy, on the host).

Code i of a stream takes the bits from `i · bits` on, counted from the lowest bit of the first byte:

    4 bits    two in one byte, the first in its lower half
    6 bits    four in three bytes
    12 bits   two in three bytes
"""

import math

import numpy as np


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` codes, `⌈count · bits / 8⌉`."""
    return -(-count * bits // 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes → bytes.

    Example:
      >>> [hex(byte) for byte in pack(np.array([0x1, 0x2, 0x3]), 4)]
      ['0x21', '0x3']

    Args:
      codes: unsigned integers below `2^bits`, flat.
      bits: 1 to 16, such that a whole number of codes fits into eight bytes or fewer.

    Returns:
      uint8[packed_size(len(codes), bits)]; what is left of the last byte is zero.

    Raises:
      ValueError: for other bits, and for codes that do not fit.
    """
    group, size = _group(bits)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} does not fit {bits} bits")
    padded = np.pad(codes.astype(np.uint64), (0, -codes.size % group)).reshape(-1, group)
    words = np.zeros(len(padded), np.uint64)
    for i in range(group):
        words |= padded[:, i] << np.uint64(i * bits)
    data = words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :size]
    return np.ascontiguousarray(data).reshape(-1)[: packed_size(codes.size, bits)]


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Bytes → codes, the inverse of `pack`.

    Args:
      data: uint8[packed_size(count, bits)].
      bits: of a code.
      count: number of codes.

    Returns:
      uint16[count].

    Raises:
      ValueError: if the number of bytes is not that of so many codes.
    """
    group, size = _group(bits)
    if data.size != packed_size(count, bits):
        raise ValueError(
            f"{data.size} bytes; {count} codes of {bits} bits take {packed_size(count, bits)}"
        )
    padded = np.pad(data, (0, -data.size % size)).reshape(-1, size)
    words = np.zeros((len(padded), 8), np.uint8)
    words[:, :size] = padded
    words = words.view("<u8").reshape(-1)
    codes = np.empty((len(words), group), np.uint16)
    for i in range(group):
        codes[:, i] = (words >> np.uint64(i * bits)) & np.uint64((1 << bits) - 1)
    return codes.reshape(-1)[:count]


def _group(bits: int) -> tuple[int, int]:
    """The least (codes, bytes) that take the same bits."""
    whole = math.lcm(bits, 8) if 1 <= bits <= 16 else math.inf
    if whole > 64:
        raise ValueError(f"codes of {bits} bits are not packed; give 1 to 8, 10, 12, 14 or 16")
    return int(whole) // bits, int(whole) // 8


def to_e8m0(scale: np.ndarray) -> np.ndarray:
    """Powers of two from 2^-127 to 2^127 → uint8 `127 + log2(scale)`; NaN → 255 (OCP MX v1.0).

    Raises:
      ValueError: for any other number.
    """
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    nan = np.isnan(scale)
    code = exponent + 126
    if not (nan | ((mantissa == 0.5) & (code >= 0) & (code <= 254))).all():
        raise ValueError("a scale is no power of two from 2^-127 to 2^127; E8M0 cannot hold it")
    return np.where(nan, 255, code).astype(np.uint8)


def from_e8m0(code: np.ndarray) -> np.ndarray:
    """uint8 → float32 powers of two; 255 → NaN.

    Example:
      >>> from_e8m0(np.array([0, 127, 128, 255], np.uint8)).tolist()
      [5.877471754111438e-39, 1.0, 2.0, nan]
    """
    power = np.ldexp(np.float32(1), np.minimum(code, 254).astype(np.int32) - 127)
    return np.where(code == 255, np.float32(np.nan), power)
