# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The texts of `ptx` on the registers of Mosaic GPU.

A slice is one vector of four numbers in each lane: lane 8·q + c has the row q and the columns 4·c
to 4·c + 3 of its warp's block. Mosaic's interpreter has no inline PTX; it takes the way of `body`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from pqt_jax.numerics import philox
from pqt_jax.pallas import ptx

_LOWER, _UPPER = 0x5410, 0x7632  # of `prmt`: the lower, or the upper, halves of two words
_ACCUMULATOR = "!llvm.struct<(f32, f32, f32, f32)>"


def decode(text: str, layout: Any, word: jax.Array) -> jax.Array:
    """Return pairs R of a slice of words, uint32 in and out, by a text of `ptx`."""
    like = plgpu.ShapeDtypeStruct(word.shape, jnp.uint32, layout=layout)

    def apply(_, words):
        lanes = [_decode(text, x) for x in _numbers(words)]
        return _array(words, lanes, is_signed=False)

    inline: Any = plgpu.inline_mgpu(arg_types=(layout,), return_type=like)
    return inline(apply)(word)


def sum_of_products(rows: Sequence[jax.Array], words: philox.Words, layout: Any) -> jax.Array:
    """Return a slice whose sum over a block is `Σ_B ∂L/∂ŵ · R` times `ptx.SCALE`.

    The tensor cores multiply A, two slices of ∂L/∂ŵ, with B, R of the same weights. A lane holds
    its own weights of both, so that the products of a weight with its own R are on the diagonal of
    A · B; the other sums are not read. ∂L/∂ŵ is never unpacked.

    Args:
      rows: eight bfloat16 slices of ∂L/∂ŵ.
      words: from `body.make_words`.
      layout: that of the slices.

    Returns:
      float32, one slice.
    """
    like = plgpu.ShapeDtypeStruct(rows[0].shape, jnp.float32, layout=layout)
    types = ((layout,) * len(rows), (layout,) * len(words))

    def apply(_, rows, words):
        zero = _float(0.0)
        even, odd = [zero] * 4, [zero] * 4  # with the first and the second pair of columns
        gradients = [_pairs(x) for x in rows]
        for k, word in enumerate(words):
            lanes = _numbers(word)
            a = [*gradients[2 * k], *gradients[2 * k + 1]]
            for columns, total in ((lanes[:2], even), (lanes[2:], odd)):
                halves = (
                    _select_bytes(columns[0], columns[1], which) for which in (_LOWER, _UPPER)
                )
                b = [_decode(ptx.SCALED_ROUNDED_NORMAL, x) for x in halves]
                total[:] = _multiply_add(a, b, total)
        total = _diagonal(even, odd)
        return _array(rows[0], [total, zero, zero, zero], is_signed=None)

    inline: Any = plgpu.inline_mgpu(arg_types=types, return_type=like)
    return inline(apply)(tuple(rows), tuple(words))


def _diagonal(even: list[Any], odd: list[Any]) -> Any:
    """Sum the numbers of a lane that lie on the diagonals.

    Lane 4·r + c has of the result the columns 2·c and 2·c + 1 of the rows r and r + 8. The rows r
    are first pairs of columns of a slice, the rows r + 8 the second pairs.
    """
    lane = _inline(_int32(), [], "mov.u32 $0, %laneid;", "=r")
    row, column = arith.shrui(lane, _int(2)), arith.shli(arith.andi(lane, _int(3)), _int(1))
    sums = []
    for i in range(2):
        own = arith.cmpi(arith.CmpIPredicate.eq, row, arith.addi(column, _int(i)))
        sums.append(arith.select(own, arith.addf(even[i], odd[2 + i]), _float(0.0)))
    return arith.addf(*sums)


def _decode(text: str, word: Any) -> Any:
    constants = [_int(x) for x in ptx.CONSTANTS[text]]
    registers = "=r,r" + ",r" * len(constants)
    return _inline(_int32(), [word, *constants], text, registers)


def _select_bytes(low: Any, high: Any, which: int) -> Any:
    return _inline(_int32(), [low, high, _int(which)], "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r")


def _multiply_add(a: list[Any], b: list[Any], c: list[Any]) -> list[Any]:
    registers = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
    result = _inline(ir.Type.parse(_ACCUMULATOR), [*a, *b, *c], ptx.MULTIPLY_ADD, registers)
    return [llvm.extractvalue(ir.F32Type.get(), result, [i]) for i in range(4)]


def _inline(result: Any, operands: list[Any], text: str, registers: str) -> Any:
    return llvm.inline_asm(result, operands, text, registers)


def _int32() -> Any:
    return ir.IntegerType.get_signless(32)


def _int(value: int) -> Any:
    signed = int(np.uint32(value).astype(np.int32))
    return arith.constant(_int32(), ir.IntegerAttr.get(_int32(), signed))


def _float(value: float) -> Any:
    return arith.constant(ir.F32Type.get(), ir.FloatAttr.get(ir.F32Type.get(), value))


def _numbers(array: Any) -> list[Any]:
    """The numbers of this lane in a slice, as values of MLIR."""
    register = array.registers.item()
    return [_element(register, i) for i in range(ir.VectorType(register.type).shape[0])]


def _pairs(array: Any) -> list[Any]:
    """The numbers of this lane in a slice of bfloat16, two in each word."""
    register = vector.bitcast(ir.VectorType.get((2,), _int32()), array.registers.item())
    return [_element(register, i) for i in range(2)]


def _element(register: Any, i: int) -> Any:
    return vector.extract(register, dynamic_position=[], static_position=_position(i))


def _array(like: Any, numbers: list[Any], is_signed: bool | None) -> Any:
    """A slice of the layout of another, from the numbers of this lane."""
    register = llvm.mlir_undef(ir.VectorType.get((len(numbers),), numbers[0].type))
    for i, x in enumerate(numbers):
        register = vector.insert(x, register, dynamic_position=[], static_position=_position(i))
    registers = np.empty_like(like.registers)
    registers[...] = register
    return mgpu.FragmentedArray(_registers=registers, _layout=like.layout, _is_signed=is_signed)


def _position(i: int) -> Any:
    return ir.DenseI64ArrayAttr.get([i])
