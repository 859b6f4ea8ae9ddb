# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tensors of GGUF files have the bytes that ggml reads, and stand for the same numbers."""

import numpy as np
import pytest

from pqt_jax.interchange import gguf_tensors, low_bit
from pqt_jax.interchange.gguf_tensors import TensorType
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3, E4M7, E5M2
from support import llama_cpp

RNG = np.random.default_rng(0)


def matrix(fmt, rows=70, columns=96, block=(32, 32), scales=(106, 142)):
    codes = RNG.integers(0, 1 << fmt.bits, (rows, columns)).astype(np.uint8)
    codes[np.isnan(fmt.decode(codes)) | np.isinf(fmt.decode(codes))] = 0
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    return EncodedMatrix(fmt, codes, RNG.integers(*scales, grid).astype(np.uint8), block)


def check_numbers(kind, data, one):
    """The bytes are those of the numbers of a matrix; a negative zero may be a positive one."""
    expected = low_bit.decode(one)
    found = gguf_tensors.decode(kind, data, one.codes.shape)
    np.testing.assert_array_equal(found, expected)
    return found, expected


def test_a_block_of_mxfp4_by_hand():
    codes = np.arange(32, dtype=np.uint8)[None] % 16  # 0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives
    one = EncodedMatrix(E2M1, codes, np.array([[130]], np.uint8), (1, 32))
    data = gguf_tensors.encode_mxfp4(one)
    # Byte j has weights j and j + 16, which are the same here.
    assert data.tolist() == [[130] + [17 * code for code in range(16)]]
    codes[0, 1], codes[0, 17], codes[0, 31] = 7, 2, 12
    data = gguf_tensors.encode_mxfp4(one)
    assert data[0, [0, 1, 2, 16]].tolist() == [130, 0x00, 0x27, 0xCF]
    found = gguf_tensors.decode(TensorType.MXFP4, data, (1, 32))[0]
    assert found[[1, 17, 31, 15]].tolist() == [48, 8, -16, -48]


def test_a_block_of_q8_0_by_hand():
    codes = np.zeros((1, 64), np.uint8)
    codes[0, :4] = [0b011111, 0b111111, 0b000001, 0b101000]  # 7.5, -7.5, 1/8, -1
    one = EncodedMatrix(E2M3, codes, np.array([[128, 200]], np.uint8), (1, 32))
    data = gguf_tensors.encode_q8_0(one)
    # d = 2 / 8 is 0x3400; 8 · code. The second block has no number but 0, so that its d is 0.
    assert data[0, :7].tolist() == [0x00, 0x34, 60, 196, 1, 248, 0] and not data[0, 7:].any()
    assert gguf_tensors.decode(TensorType.Q8_0, data, (1, 64))[0, :4].tolist() == [
        15,
        -15,
        0.25,
        -2,
    ]
    halves = EncodedMatrix(E2M1, codes[:, :32] % 16, np.array([[128]], np.uint8), (1, 32))
    data = gguf_tensors.encode_q8_0(halves)  # d = 2 / 2
    assert data[0, :6].tolist() == [
        0x00,
        0x3C,
        244,
        244,
        1,
        0,
    ]  # codes 15, 15, 1 and 8, which is -0


@pytest.mark.parametrize("block", [(32, 32), (1, 32), (64, 64)])
def test_formats_are_stored_in_types_that_hold_all_their_values(block):
    for fmt, kind in ((E2M1, TensorType.MXFP4), (E2M3, TensorType.Q8_0)):
        one = matrix(fmt, block=block)
        stored, data = gguf_tensors.encode([one])
        assert stored == kind and data.nbytes == gguf_tensors.size(kind, one.codes.shape)
        found, expected = check_numbers(kind, data, one)
        assert np.signbit(expected[expected == 0]).any() and not np.signbit(found[found == 0]).any()
    for fmt in (E3M2, E4M3, E5M2):
        one = matrix(fmt, block=block)
        stored, data = gguf_tensors.encode([one])
        found, expected = check_numbers(stored, data, one)
        assert stored == TensorType.BF16 and found.tobytes() == expected.tobytes()


def test_twelve_bits_are_exact_in_bfloat16():
    values = np.ldexp(E4M7.decode(np.arange(1 << 12)), -20).astype(np.float32)
    values = values[np.isfinite(values)].reshape(1, -1)
    kind, data = gguf_tensors.encode([values])
    assert kind == TensorType.BF16
    assert gguf_tensors.decode(kind, data, values.shape).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("formats", "kind"),
    [
        ((E2M1, E2M1, E2M1), TensorType.MXFP4),
        ((E2M1, E2M3, E2M1), TensorType.Q8_0),
        ((E2M3, E2M3, E3M2), TensorType.BF16),
    ],
)
def test_matrices_of_several_formats_become_one_tensor(formats, kind):
    parts = [matrix(fmt, rows=32) for fmt in formats]
    stored, data = gguf_tensors.encode(parts)
    assert stored == kind
    found = gguf_tensors.decode(kind, data, (96, 96))
    np.testing.assert_array_equal(found, np.concatenate([low_bit.decode(part) for part in parts]))


def test_numbers_among_matrices_decide_the_type():
    numbers = RNG.normal(size=(8, 96)).astype(np.float32)
    for wanted in (TensorType.BF16, TensorType.F32):
        kind, data = gguf_tensors.encode([matrix(E2M1, rows=32), numbers], wanted)
        assert kind == wanted
        found = gguf_tensors.decode(kind, data, (40, 96))[32:]
        assert (found == numbers).all() == (wanted == TensorType.F32)
        assert np.abs(found - numbers).max() <= 2**-8 * np.abs(numbers).max()


@pytest.mark.parametrize("scale", [100, 107, 142, 145])
def test_a_scale_that_float16_lacks_makes_bfloat16(scale):
    one = matrix(E2M3)._replace(block=(1, 96))
    one = one._replace(scale=np.full((70, 1), 127, np.uint8))
    one.scale[3] = scale
    kind, data = gguf_tensors.encode([one])
    # d = 2^(scale - 127 - 3) is from 2^-24 to 2^15
    assert kind == (TensorType.Q8_0 if 106 <= scale <= 145 else TensorType.BF16)
    check_numbers(kind, data, one)
    one.scale[3] = 146
    assert gguf_tensors.encode([one])[0] == TensorType.BF16
    one.codes[3] = 0
    assert gguf_tensors.encode([one])[0] == TensorType.Q8_0


def test_products_that_are_subnormal_are_zero_as_everywhere():
    one = matrix(E2M1, scales=(0, 4))
    kind, data = gguf_tensors.encode([one])
    found, _ = check_numbers(kind, data, one)
    assert (found != 0).any() and not (np.abs(found[found != 0]) < 2.0**-126).any()


def test_types_have_names():
    names = [gguf_tensors.name_type(code) for code in (0, 39, 12, 4711)]
    assert names == ["F32", "MXFP4", "Q4_K", "type 4711"]


def every_block():
    """MXFP4: each scale with each code; Q8_0: finite float16 with some integers."""
    codes = np.arange(16, dtype=np.uint8)
    scales = np.arange(256, dtype=np.uint8)[:, None]
    mxfp4 = np.concatenate([scales, np.tile(codes | codes << 4, (256, 1))], axis=1)
    d = np.arange(0, 1 << 16, 7, dtype=np.uint16).view(np.float16)
    d = d[np.isfinite(d)][:, None]
    integers = RNG.integers(-128, 128, (len(d), 32)).astype(np.int8)
    q8_0 = np.concatenate([d.view(np.uint8), integers.view(np.uint8)], axis=1)
    return {TensorType.MXFP4: mxfp4.astype(np.uint8), TensorType.Q8_0: q8_0}


@pytest.mark.parametrize("kind", [TensorType.MXFP4, TensorType.Q8_0])
def test_the_gguf_package_decodes_each_block_to_the_same_bits(kind):
    quants = pytest.importorskip("gguf.quants", reason="needs the extra 'peers'")
    data = every_block()[kind]
    found = gguf_tensors.decode(kind, data.reshape(-1), (len(data), 32))
    with np.errstate(over="ignore"):
        expected = quants.dequantize(data, kind)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.skipif(not llama_cpp.is_installed, reason="needs xllamacpp, of the extra 'peers'")
@pytest.mark.parametrize("kind", [TensorType.MXFP4, TensorType.Q8_0])
def test_ggml_decodes_each_block_to_the_same_bits(kind):
    data = every_block()[kind]
    found = gguf_tensors.decode(kind, data.reshape(-1), (len(data), 32))
    assert found.tobytes() == llama_cpp.dequantize(kind, data, found.size).tobytes()
