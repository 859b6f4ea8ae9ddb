# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Matrices in few bits as other software stores them: what all its layouts have in common.

A matrix of others is [out, in], as in transformers; ours is [in, out]. Along `in`, each 32 weights
of a row share a scale, a power of two that is stored as E8M0. Our block of bi×bo over [in, out] is
such a group where 32 divides bi: its scale is repeated over `bo` rows. Codes are those of OCP, so
nothing is quantized again: codes and scales are transposed, repeated and stored in another order.

Source: OCP Microscaling Formats (MX) v1.0 (2023), for groups of 32, E8M0, and codes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.numerics import bit_packing
from pqt_jax.numerics.formats import FloatFormat

GROUP = 32  # weights along `in` that share a scale


class EncodedMatrix(NamedTuple):
    """A matrix in few bits.

    Attributes:
      fmt: the format of the codes.
      codes: uint8[out, in], one OCP code in each byte, in its lowest bits.
      scale: uint8[⌈out/bo⌉, ⌈in/bi⌉], E8M0: 127 + log2 of the scale.
      block: (bo, bi), weights that share a scale; GROUP divides bi.
    """

    fmt: FloatFormat
    codes: np.ndarray
    scale: np.ndarray
    block: tuple[int, int]

    @property
    def group_scale(self) -> np.ndarray:
        """uint8[out, in/32]: the scale of each group of 32 weights of a row."""
        (bo, bi), (rows, columns) = self.block, self.codes.shape
        scale = np.repeat(self.scale, bi // GROUP, 1)[:, : columns // GROUP]
        return np.repeat(scale, bo, 0)[:rows]

    @property
    def square_scale(self) -> np.ndarray:
        """uint8[⌈out/32⌉, in/32]: the scale of each square of 32×32, where 32 divides bo."""
        return self.group_scale[::GROUP]

    @property
    def packed(self) -> np.ndarray:
        """uint8[out, in·bits/8]: the codes of a row without gaps, as in `numerics.bit_packing`."""
        data = bit_packing.pack(self.codes.reshape(-1), self.fmt.bits)  # no row ends inside a byte
        return data.reshape(len(self.codes), -1)


class StoredCodes(NamedTuple):
    """In which two tensors a folder holds a matrix in few bits.

    Attributes:
      fmt: the format of the codes.
      codes: the name of the tensor of codes: those of a row without gaps, from the lowest bits on.
      codes_dtype: its dtype by the name in safetensors.
      scale: the name of the tensor of scales, [⌈out/bo⌉, ⌈in/bi⌉].
      scale_dtypes: the dtypes that it may have. U8 and F8_E8M0 are E8M0, others are numbers.
      block: (bo, bi).
    """

    fmt: FloatFormat
    codes: str
    codes_dtype: str
    scale: str
    scale_dtypes: tuple[str, ...] = ("U8",)
    block: tuple[int, int] = (1, GROUP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowBitLayout:
    """How one kind of software stores a model in a folder like those of transformers.

    The names of tensors are those of transformers, such as "model.layers.0.mlp.up_proj.weight".

    Attributes:
      name: the value of `--layout`.
      models: names of the models that it serves, `ModelSpec.name`.
      find_refusal: a model's configuration → what its software lacks for it, or None. None if it
        computes all of these models.
      formats: the formats that all matrices may have, by their name in `--format`.
      carrier: our format → the format that a matrix is stored in: the same, or a wider one that
        holds each of its values; None if it is stored as numbers in bfloat16.
      squares: the formats whose scales may be stored for blocks of 32×32, without repetition.
      describe: (name, format, shape [out, in], squares) → the tensors to store, by name.
      store: (name, matrix, squares) → the values of these tensors.
      config: (name of each matrix → its format, or None for numbers; squares) → fields to add to
        config.json.
      recognizes: whether a config.json describes a folder of this layout.
      find: (name, config.json) → in which tensors the matrix is stored; None if as numbers under
        its own name. It is as numbers, too, if there are no scales. Raises InputError, which names
        field and value, for a config.json that says something else than is read here.
    """

    name: str
    models: tuple[str, ...]
    formats: tuple[str, ...]
    carrier: Callable[[FloatFormat], FloatFormat | None]
    squares: tuple[str, ...]
    describe: Callable[[str, FloatFormat, tuple[int, int], bool], dict[str, TensorSpec]]
    store: Callable[[str, EncodedMatrix, bool], dict[str, np.ndarray]]
    config: Callable[[Mapping[str, FloatFormat | None], bool], dict[str, Any]]
    recognizes: Callable[[Mapping[str, Any]], bool]
    find: Callable[[str, Mapping[str, Any]], StoredCodes | None]
    find_refusal: Callable[[Any], str | None] | None = None


def recode(matrix: EncodedMatrix, fmt: FloatFormat) -> EncodedMatrix:
    """The same values in the codes of a wider format; scales do not change.

    Example:
      >>> from pqt_jax.numerics.formats import E2M1, E4M3
      >>> one = EncodedMatrix(E2M1, np.array([[2, 15]], np.uint8), np.array([[127]]), (32, 32))
      >>> recode(one, E4M3).codes.tolist()  # 1 and -6
      [[56, 204]]

    Args:
      matrix: the matrix.
      fmt: a format that has all values of `matrix.fmt`.

    Raises:
      ValueError: if the format lacks one of the values.
    """
    if fmt == matrix.fmt:
        return matrix
    table = {_bits(value): code for code, value in enumerate(_values(fmt))}
    try:
        codes = np.array([table[_bits(value)] for value in _values(matrix.fmt)], np.uint8)
    except KeyError:
        raise ValueError(f"{fmt} does not have all values of {matrix.fmt}") from None
    return matrix._replace(fmt=fmt, codes=codes[matrix.codes])


def decode(matrix: EncodedMatrix) -> np.ndarray:
    """The float32[out, in] numbers that a matrix stands for, code · 2^(scale − 127)."""
    scale = bit_packing.from_e8m0(matrix.group_scale)
    return multiply(matrix.fmt, matrix.codes, scale, (1, GROUP))


def multiply(
    fmt: FloatFormat, codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]
) -> np.ndarray:
    """Codes times the scales of their blocks.

    Magnitudes below 2^-126 become 0, as in `quantization.codes`.

    Args:
      fmt: the format of the codes.
      codes: uint8[out, in].
      scale: float32[⌈out/bo⌉, ⌈in/bi⌉].
      block: (bo, bi).

    Returns:
      float32[out, in]; Inf for what float32 cannot represent.
    """
    (bo, bi), (rows, columns) = block, codes.shape
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values = _values(fmt)[codes]
        values *= np.repeat(np.repeat(scale, bi, 1)[:, :columns], bo, 0)[:rows]
    return np.where(np.abs(values) < np.float32(2.0**-126), np.copysign(0, values), values)


def _values(fmt: FloatFormat) -> np.ndarray:
    return fmt.decode(np.arange(1 << fmt.bits)).astype(np.float32)


def _bits(value: np.float32) -> int:
    """The bits of a number, so that 0 and -0 differ and NaN equals itself."""
    return int(np.float32(value).view(np.uint32)) if value == value else -1
