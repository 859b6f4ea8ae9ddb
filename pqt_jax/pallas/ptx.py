# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Inline PTX of the kernels: two 16-bit draws in a word → two numbers R in bfloat16.

A draw is compared as float16. Numbers without a sign bit have the order of their bit patterns, and
the patterns of NaN compare false, so that

    |float16(draw)| < float16(10398)  ⇔  u < 10398,  u = draw & 0x7FFF

`noise` explains the thresholds. A true comparison gives a mask, or 1 in float16, whose bits 0x3C00
are 2⁻⁷ in bfloat16. Tests run this text for all 65,536 draws, by an interpreter of PTX.

Source: PTX ISA, `set`, `lop3`, `fma` on packed halves.
"""

from pqt_jax.numerics import noise

ROUNDED_NORMAL = """{
.reg .b32 magnitude, one, two, signed;
abs.f16x2 magnitude, $1;
set.lt.u32.f16x2 one, magnitude, $2;
set.lt.u32.f16x2 two, magnitude, $3;
lop3.b32 signed, $1, $4, $5, 0xEA;
and.b32 signed, signed, one;
lop3.b32 $0, two, $6, signed, 0x6A;
}"""
"""R of both draws: ±1 where |R| ≥ 1, whose exponent is one more where |R| = 2; 0 is +0."""

SCALED_ROUNDED_NORMAL = """{
.reg .b32 magnitude, one, two;
abs.f16x2 magnitude, $1;
set.lt.f16x2.f16x2 one, magnitude, $2;
set.lt.f16x2.f16x2 two, magnitude, $3;
fma.rn.bf16x2 one, two, $4, one;
lop3.b32 $0, one, $1, $5, 0x78;
}"""
"""R · 2⁻⁷ of both draws, by one instruction less; 0 may be −0."""
SCALE = 2.0**-7


def _pair(half: int) -> int:
    return half << 16 | half


_THRESHOLDS = (_pair(noise.ONE_BELOW), _pair(noise.TWO_BELOW))
_ONE, _SIGN, _EXPONENT = _pair(0x3F80), _pair(0x8000), _pair(0x7F80)
CONSTANTS = {
    ROUNDED_NORMAL: (*_THRESHOLDS, _SIGN, _ONE, _EXPONENT),
    SCALED_ROUNDED_NORMAL: (*_THRESHOLDS, _ONE, _SIGN),
}

MULTIPLY_ADD = (
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
)
"""D = A · B + C by a warp: A of 16×16 and B of 16×8 in bfloat16, C and D of 16×8 in float32."""
