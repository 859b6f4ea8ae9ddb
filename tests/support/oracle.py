# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A second implementation of the method, from its definitions: Python integers and NumPy.

It is slow and literal. It shares no code with the package, except the tables of formats
(`FloatFormat.decode`), which the tests of formats check against ml_dtypes.
"""

import functools
import math

import numpy as np

MASK = 0xFFFFFFFF


@functools.cache
def philox(counter, key, rounds=10):
    """Philox4x32: four 32-bit words, from a counter of four words and a key of two."""
    (a, b, c, d), (j, k) = counter, key
    for _ in range(rounds):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ j, right & MASK, left >> 32 ^ d ^ k, left & MASK
        j, k = j + 0x9E3779B9 & MASK, k + 0xBB67AE85 & MASK
    return a, b, c, d


def threefry(key, counter):
    """Threefry2x32-20: two 32-bit words. JAX's `fold_in(key, n)` has the counter (0, n)."""
    schedule = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = counter[0] + key[0] & MASK, counter[1] + key[1] & MASK
    for i in range(5):
        for turn in [(13, 15, 26, 6), (17, 29, 16, 24)][i % 2]:
            x = x + y & MASK
            y = (y << turn | y >> 32 - turn) & MASK ^ x
        x = x + schedule[(i + 1) % 3] & MASK
        y = y + schedule[(i + 2) % 3] + i + 1 & MASK
    return x, y


def draw(key, lead, row, column):
    """The 16-bit draw of one element: row = 32·a + 4·s + q uses draw s of row group 4·a + q."""
    a, s, q = row // 32, row % 32 // 4, row % 4
    word = philox((column & MASK, 4 * a + q & MASK, lead & MASK, 0), key)[s // 2]
    return word >> 16 if s % 2 else word & 0xFFFF


def gauss(bits):
    """R of a draw: sign and 15 bits of magnitude."""
    u = bits & 0x7FFF
    size = 2 if u < 88 else 1 if u < 10398 else 0
    return -size if bits >> 15 else size


def uniform(bits):
    """R of a draw: the middle of one of 65536 cells of (−½, ½)."""
    return (bits + 0.5) / 65536 - 0.5


@functools.cache
def noise(kind, key, shape, lead=0):
    """R of a stack of matrices [leads, M, N], float64."""
    law = {"gauss": gauss, "uniform": uniform}[kind]
    leads, m, n = shape
    out = np.empty(shape)
    for i, row, column in np.ndindex(leads, m, n):
        out[i, row, column] = law(draw(key, lead + i, row, column))
    return out


@functools.cache
def grid(fmt):
    """The finite, non-negative values of a format, in the order of their codes."""
    values = fmt.decode(np.arange(2 ** (fmt.bits - 1)))
    return values[np.isfinite(values)]


def round_to(x, fmt):
    """The nearest value of a format (float64), ties to the even code, saturating."""
    x = np.asarray(x, np.float64)
    values = grid(fmt)
    above = np.clip(np.searchsorted(values, np.abs(x)), 1, len(values) - 1)
    middle = (values[above - 1] + values[above]) / 2
    up = (np.abs(x) > middle) | ((np.abs(x) == middle) & (above % 2 == 0))
    rounded = np.where(up, values[above], values[above - 1])
    return np.where(np.isnan(x), np.nan, np.copysign(rounded, x))


def scale(absmax, fmt, rule):
    """The scale of a block, for a normal absmax: by the rule of OCP, or the least that fits."""
    if rule == "floor":
        return 2.0 ** (math.floor(math.log2(absmax)) - math.floor(math.log2(fmt.max)))
    power = -126
    while absmax > fmt.max * 2.0**power:
        power += 1
    return 2.0**power


def blocks(shape, block):
    """Index and slices of every block of a stack of matrices."""
    leads, m, n = shape
    for lead in range(leads):
        for i, top in enumerate(range(0, m, block[0])):
            for j, left in enumerate(range(0, n, block[1])):
                yield (lead, i, j), np.s_[lead, top : top + block[0], left : left + block[1]]


def perturb(w, step, r, fmt, block, rule="ceil"):
    """ŵ = cast(w + R · max_B|w| · step), float32, of w float32 and R [leads, M, N]."""
    assert w.dtype == step.dtype == np.float32
    out = np.empty_like(w)
    for at, part in blocks(w.shape, block):
        absmax = np.abs(w[part]).max()
        noisy = w[part] + r[part].astype(np.float32) * (absmax * step[at])
        assert noisy.dtype == np.float32
        if fmt.exponent_bits == 8 and fmt.dtype is not None:
            out[part] = noisy.astype(fmt.dtype)
        else:
            s = 1.0 if fmt.exponent_bits == 8 else scale(float(absmax), fmt, rule)
            out[part] = round_to(noisy / np.float64(s), fmt) * s
    return out


def bit_gradient(w, b_t, r, cotangent, block):
    """∂L/∂b_t in float64, and the sum of magnitudes that bounds its rounding error."""
    w, b_t, g = (np.asarray(x, np.float64) for x in (w, b_t, cotangent))
    gradient, bound = np.empty(b_t.shape), np.empty(b_t.shape)
    for at, part in blocks(w.shape, block):
        factor = math.log(2) * np.abs(w[part]).max() * 2.0 ** (1 - b_t[at])
        gradient[at] = -factor * (g[part] * r[part]).sum()
        bound[at] = factor * np.abs(g[part] * r[part]).sum()
    return gradient, bound


def bits_of(x):
    """The bit patterns of a float array, which differ for −0 and 0 and compare equal for NaN."""
    x = np.asarray(x)
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])
