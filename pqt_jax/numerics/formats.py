# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Number formats as data: sign, `e` exponent bits, `m` mantissa bits, and the special codes.

A code `s | E | M` of a format with bias `2^(e−1) − 1` has the value

    (−1)^s · 2^(max(E, 1) − bias) · ([E > 0] + M / 2^m)

unless the format reserves it. A format uses one of three conventions:

    "ieee"  the top exponent is ±Inf and NaN       (BF16, E5M2)
    "nan"   only the all-ones magnitude is NaN     (E4M3, as in OCP FP8)
    "none"  every code is a finite number          (E3M2, E2M3, E2M1, as in OCP MX)

Source: OCP Microscaling Formats (MX) v1.0 (2023); OCP 8-bit Floating Point (OFP8) v1.0 (2023).
"""

import dataclasses
import re
from typing import Any, Literal

import ml_dtypes
import numpy as np

Specials = Literal["ieee", "nan", "none"]


@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format ExMy.

    Example:
      >>> E4M3.max, E4M3.min_normal, E4M3.min_subnormal
      (448.0, 0.015625, 0.001953125)
      >>> FloatFormat(3, 2) == E3M2
      True

    Attributes:
      exponent_bits: `e`, 1 to 8.
      mantissa_bits: `m`, 0 to 22 (23 for float32 itself, E8M23).
      specials: the convention for reserved codes. None picks the one that OCP uses at that width:
        "ieee" from five exponent bits on, "nan" at four, "none" below.
    """

    exponent_bits: int
    mantissa_bits: int
    specials: Specials | None = None

    def __post_init__(self):
        e, m = self.exponent_bits, self.mantissa_bits
        if not isinstance(e, int) or not 1 <= e <= 8:
            raise ValueError(f"FloatFormat: exponent_bits={e!r}; it must be 1 to 8, as in float32")
        if not isinstance(m, int) or not (0 <= m <= 22 or (e, m) == (8, 23)):
            raise ValueError(f"FloatFormat: mantissa_bits={m!r}; it must be 0 to 22 (or E8M23)")
        if self.specials is None:
            by_ocp = "ieee" if e >= 5 else "nan" if e == 4 else "none"
            object.__setattr__(self, "specials", by_ocp)
        if self.specials not in ("ieee", "nan", "none"):
            raise ValueError(
                f"FloatFormat: specials={self.specials!r}; it must be 'ieee', 'nan' or 'none'"
            )
        if e == 8 and self.specials != "ieee":
            raise ValueError("FloatFormat: eight exponent bits need specials='ieee', as in float32")
        if e == 1 and self.specials == "ieee":
            raise ValueError("FloatFormat: with specials='ieee' one exponent bit leaves no numbers")
        if (e, self.mantissa_bits) == (1, 0) and self.specials == "nan":
            raise ValueError("FloatFormat: with specials='nan' E1M0 leaves nothing but 0")

    @property
    def name(self) -> str:
        """`E4M3`, with the usual names for BF16, FP16 and FP32."""
        e, m = self.exponent_bits, self.mantissa_bits
        return {(8, 7): "BF16", (5, 10): "FP16", (8, 23): "FP32"}.get((e, m), f"E{e}M{m}")

    @property
    def label(self) -> str:
        """The name in tables and pictures: `FP6 E3M2`; BF16, FP16 and FP32 are as in `name`.

        Example:
          >>> E3M2.label, as_format("E4M7").label, BF16.label
          ('FP6 E3M2', 'FP12 E4M7', 'BF16')
        """
        return self.name if self.name in _BY_NAME else f"FP{self.bits} {self.name}"

    @property
    def bits(self) -> int:
        """Bits per value, the sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """Exponent bias, `2^(e−1) − 1`."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def max_code(self) -> int:
        """The code of the largest finite value."""
        codes = 1 << (self.exponent_bits + self.mantissa_bits)
        reserved = {"ieee": 1 << self.mantissa_bits, "nan": 1, "none": 0}[self.specials or "none"]
        return codes - 1 - reserved

    @property
    def nan_code(self) -> int:
        """The code of quiet NaN; without NaN, that of Inf; without both, that of `max`."""
        after = {"ieee": 1 + (1 << self.mantissa_bits >> 1), "nan": 1, "none": 0}
        return self.max_code + after[self.specials or "none"]

    @property
    def max(self) -> float:
        """The largest finite value."""
        return float(self.decode(np.asarray(self.max_code)))

    @property
    def emax(self) -> int:
        """The exponent of the largest finite value, `floor(log2(max))`."""
        return max(self.max_code >> self.mantissa_bits, 1) - self.bias

    @property
    def min_normal(self) -> float:
        """The smallest normal value, `2^(1 − bias)`."""
        return 2.0 ** (1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        """The smallest positive value, and the spacing of the subnormals."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def noise_bits(self) -> int:
        """The largest b_t whose unit of noise survives the cast at the block maximum, `m + 2`."""
        return self.mantissa_bits + 2

    @property
    def dtype(self) -> np.dtype | None:
        """The NumPy or ml_dtypes type of this format, or None."""
        return _DTYPES.get(self)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the float64 values of integer codes, by NumPy; reserved codes are NaN or Inf.

        Example:
          >>> E2M1.decode(np.arange(8)).tolist()
          [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        """
        codes = np.asarray(codes).astype(np.int64)
        m = self.mantissa_bits
        magnitude = codes & ((1 << (self.bits - 1)) - 1)
        exponent, mantissa = magnitude >> m, magnitude & ((1 << m) - 1)
        value = np.ldexp((exponent > 0) + mantissa / 2.0**m, np.maximum(exponent, 1) - self.bias)
        infinite = (self.specials == "ieee") & (mantissa == 0)
        value = np.where(magnitude > self.max_code, np.where(infinite, np.inf, np.nan), value)
        return np.where(codes >> (self.bits - 1) & 1, -value, value)

    def __str__(self) -> str:
        return self.name


FP32 = FloatFormat(8, 23)
BF16 = FloatFormat(8, 7)
FP16 = FloatFormat(5, 10)
E4M7 = FloatFormat(4, 7)  # FP12; no standard defines it, so it has the special codes of E4M3
E4M3 = FloatFormat(4, 3)
E5M2 = FloatFormat(5, 2)
E3M2 = FloatFormat(3, 2)
E2M3 = FloatFormat(2, 3)
E2M1 = FloatFormat(2, 1)

_DTYPES = {
    FP32: np.dtype(np.float32),
    BF16: np.dtype(ml_dtypes.bfloat16),
    FP16: np.dtype(np.float16),
    E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    E5M2: np.dtype(ml_dtypes.float8_e5m2),
    E3M2: np.dtype(ml_dtypes.float6_e3m2fn),
    E2M3: np.dtype(ml_dtypes.float6_e2m3fn),
    E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    FloatFormat(4, 3, "ieee"): np.dtype(ml_dtypes.float8_e4m3),
    FloatFormat(3, 4, "ieee"): np.dtype(ml_dtypes.float8_e3m4),
}


_BY_DTYPE = {dtype: fmt for fmt, dtype in _DTYPES.items()}
_BY_NAME = {f.name: f for f in (FP32, BF16, FP16)}
FORMATS = {  # by the names that commands take
    "bf16": BF16,
    "fp8_e4m3": E4M3,
    "fp8_e5m2": E5M2,
    "fp6_e3m2": E3M2,
    "fp6_e2m3": E2M3,
    "fp4_e2m1": E2M1,
}
_ACCEPTED = (*FORMATS, *(str(dtype) for dtype in _DTYPES.values()))
NAMES_IN_WORDS = f"ExMy, such as E3M2, or one of {', '.join(_ACCEPTED)}"


def as_format(dtype: Any) -> FloatFormat:
    """Return the format that a `FloatFormat`, a NumPy or ml_dtypes type, or a name stands for.

    Example:
      >>> as_format("float6_e3m2fn") == as_format("fp6_e3m2") == as_format("E3M2") == E3M2
      True
      >>> as_format(ml_dtypes.bfloat16) == BF16
      True

    Args:
      dtype: `FloatFormat`, dtype, scalar type, or name such as "fp8_e4m3", "float8_e4m3fn" or
        "E4M3". Names that begin with "fp" are those of `FORMATS`.

    Returns:
      The format.

    Raises:
      ValueError: for an unknown type, and for numbers of bits that no format has.
    """
    if isinstance(dtype, FloatFormat):
        return dtype
    if isinstance(dtype, str) and (bits := re.fullmatch(r"E([0-9])M([0-9]{1,2})", dtype)):
        return FloatFormat(int(bits[1]), int(bits[2]))
    try:
        if isinstance(dtype, str):
            named = _BY_NAME.get(dtype) or FORMATS.get(dtype)
            dtype = named or getattr(ml_dtypes, dtype, dtype)
        return dtype if isinstance(dtype, FloatFormat) else _BY_DTYPE[np.dtype(dtype)]
    except (TypeError, KeyError):
        raise ValueError(f"dtype={dtype!r} names no format; give {NAMES_IN_WORDS}") from None
