# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pack codes of a few bits into bytes, and encode powers of two as E8M0 (NumPy, on the host).

Code i takes the bits from `i · bits` to `(i + 1) · bits − 1`, where bit 0 is the lowest bit of the
first byte:

    4 bits    two in one byte, the first in its lower half
    6 bits    four in three bytes
    12 bits   two in three bytes
"""

import math
from collections.abc import Iterator

import numpy as np


def packed_size(count: int, bits: int) -> int:
    """The number of bytes that `count` codes take, `⌈count · bits / 8⌉`."""
    return -(-count * bits // 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes into bytes.

    Example:
      >>> [hex(byte) for byte in pack(np.array([0x1, 0x2, 0x3]), 4)]
      ['0x21', '0x3']

    Args:
      codes: integers from 0 to `2^bits − 1`, int[count].
      bits: per code: 1 to 8, 10, 12, 14 or 16.

    Returns:
      uint8[packed_size(count, bits)]; unused bits of the last byte are zero.

    Raises:
      ValueError: for other bits, or if a code does not fit.
    """
    group, size = _group(bits)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} does not fit {bits} bits")
    columns = _columns(codes.astype(np.uint8 if bits <= 8 else np.uint16, copy=False), group)
    data = np.zeros((len(columns), size), np.uint8)
    for i, byte, left in _overlaps(group, bits):
        data[:, byte] |= _shift(columns[:, i], left).astype(np.uint8)  # its lowest eight bits
    return data.reshape(-1)[: packed_size(codes.size, bits)]


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Invert `pack`.

    Args:
      data: uint8[packed_size(count, bits)].
      bits: per code.
      count: the number of codes.

    Returns:
      uint16[count].

    Raises:
      ValueError: for other bits, or if the number of bytes does not fit the count.
    """
    group, size = _group(bits)
    if data.size != packed_size(count, bits):
        raise ValueError(
            f"{data.size} bytes; {count} codes of {bits} bits take {packed_size(count, bits)}"
        )
    columns = _columns(data, size)
    codes = np.zeros((len(columns), group), np.uint16)
    for i, byte, left in _overlaps(group, bits):
        codes[:, i] |= _shift(columns[:, byte].astype(np.uint16), -left)
    codes &= np.uint16((1 << bits) - 1)
    return codes.reshape(-1)[:count]


def _columns(x: np.ndarray, count: int) -> np.ndarray:
    """A vector in rows of `count`, with zeros at the end of the last row."""
    if missing := -x.size % count:
        x = np.pad(x, (0, missing))
    return x.reshape(-1, count)


def _overlaps(group: int, bits: int) -> Iterator[tuple[int, int, int]]:
    """Yield (code, byte, left) where code `i << left` has its part of a byte, in a group."""
    for i in range(group):
        start = i * bits
        for byte in range(start // 8, (start + bits - 1) // 8 + 1):
            yield i, byte, start - 8 * byte


def _shift(x: np.ndarray, left: int) -> np.ndarray:
    """`x << left` in the dtype of x; to the right if `left` is negative."""
    return x << x.dtype.type(left) if left >= 0 else x >> x.dtype.type(-left)


def _group(bits: int) -> tuple[int, int]:
    """The smallest (number of codes, number of bytes) with the same number of bits."""
    whole = math.lcm(bits, 8) if 1 <= bits <= 16 else math.inf
    if whole > 64:
        raise ValueError(f"codes of {bits} bits are not packed; give 1 to 8, 10, 12, 14 or 16")
    return int(whole) // bits, int(whole) // 8


def to_e8m0(scale: np.ndarray) -> np.ndarray:
    """Encode powers of two from 2^-127 to 2^127 as E8M0 (OCP MX v1.0).

    Returns:
      uint8 of the same shape, `127 + log2(scale)`; 255 for NaN.

    Raises:
      ValueError: for any other number.
    """
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    nan = np.isnan(scale)
    code = exponent + 126
    if not (nan | ((mantissa == 0.5) & (code >= 0) & (code <= 254))).all():
        raise ValueError(
            "a scale is not a power of two from 2^-127 to 2^127; E8M0 cannot represent it"
        )
    return np.where(nan, 255, code).astype(np.uint8)


def from_e8m0(code: np.ndarray) -> np.ndarray:
    """Decode E8M0: uint8 → float32 powers of two; 255 → NaN.

    Example:
      >>> from_e8m0(np.array([0, 127, 128, 255], np.uint8)).tolist()
      [5.877471754111438e-39, 1.0, 2.0, nan]
    """
    power = np.ldexp(np.float32(1), np.minimum(code, 254).astype(np.int32) - 127)
    return np.where(code == 255, np.float32(np.nan), power)
