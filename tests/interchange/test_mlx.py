# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The layout of MLX: bytes worked out by hand, and what is read again."""

import dataclasses

import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange import low_bit
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.interchange.mlx import LAYOUT
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3, E4M7, E5M2
from support import low_bit_folder

NAME = "model.layers.0.mlp.up_proj.weight"
SCALES = "model.layers.0.mlp.up_proj.scales"
FOUR = {"group_size": 32, "bits": 4, "mode": "mxfp4"}


def make_matrix(fmt, rows=70, columns=96, block=(32, 32)):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << fmt.bits, (rows, columns)).astype(np.uint8)
    if fmt == E4M3:
        codes[codes & 127 == 127] = 0  # no NaN
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    return EncodedMatrix(fmt, codes, rng.integers(90, 150, grid).astype(np.uint8), block)


def test_bytes_of_fp4_are_pairs_and_words_are_little_endian():
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    one = EncodedMatrix(E2M1, np.repeat(codes, 2, 0), np.array([[130]], np.uint8), (32, 32))
    stored = LAYOUT.store(NAME, one, False)
    assert {name: array.tolist() for name, array in stored.items()} == {
        NAME: [[0x76543210, 0xFEDCBA98] * 2] * 2,
        SCALES: [[130], [130]],
    }
    assert {name: array.dtype for name, array in stored.items()} == {NAME: "<u4", SCALES: "u1"}


def test_bytes_of_fp8_are_codes():
    codes = np.arange(32, dtype=np.uint8)[None]
    one = EncodedMatrix(E4M3, codes, np.array([[1]], np.uint8), (32, 32))
    stored = LAYOUT.store(NAME, one, False)
    assert stored[NAME][0, :2].tolist() == [0x03020100, 0x07060504]
    assert stored[NAME].tobytes() == codes.tobytes() and stored[SCALES].tolist() == [[1]]
    six = one._replace(fmt=E3M2, codes=codes[:, ::-1] + 32)
    # 28 of E3M2 is 1.75 · 16, in E4M3 0 1011 110; its largest negative one has the sign, too.
    assert LAYOUT.store(NAME, six, False)[NAME][0, 0] >> 0 & 255 == 0b1_1011_110


@pytest.mark.parametrize("block", [(32, 32), (1, 32), (16, 64)])
@pytest.mark.parametrize("fmt", [E2M1, E2M3, E3M2, E4M3])
def test_what_is_stored_is_read_again(tmp_path, fmt, block):
    one = make_matrix(fmt, block=block)
    stored = LAYOUT.store(NAME, one, False)
    config = LAYOUT.config({NAME: fmt}, False)
    assert LAYOUT.recognizes(config)
    specs = LAYOUT.describe(NAME, fmt, one.codes.shape, False)
    assert specs.keys() == stored.keys()
    for name, array in stored.items():
        assert specs[name].shape == array.shape and specs[name].nbytes == array.nbytes
    loaded = low_bit_folder.load(tmp_path, LAYOUT, config, stored, NAME, one.codes.shape)
    assert loaded.tobytes() == low_bit.decode(one).tobytes()


def test_config_names_each_layer_only_if_they_differ():
    four = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    eight = {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    assert LAYOUT.config({"a.weight": E2M1, "b.weight": E2M1}, False) == {"quantization": four}
    assert LAYOUT.config({"a.weight": E4M3, "b.weight": None}, False) == {"quantization": eight}
    assert LAYOUT.config({"a.weight": None}, False) == {}
    mixed = {"a.weight": E2M1, "b.weight": E3M2, "c.weight": E4M3, "d.weight": None}
    assert LAYOUT.config(mixed, False) == {
        "quantization": eight | {"a": four, "b": eight, "c": eight}
    }


def test_carriers_hold_each_value():
    assert [LAYOUT.carrier(f) for f in (E2M1, E3M2, E2M3, E4M3)] == [E2M1, E4M3, E4M3, E4M3]
    assert [LAYOUT.carrier(f) for f in (E4M7, E5M2, BF16)] == [None] * 3


def test_numbers_are_left_to_the_caller(tmp_path):
    numbers = {NAME: np.zeros((64, 64), np.float32)}
    assert low_bit_folder.load(tmp_path, LAYOUT, {"quantization": FOUR}, numbers, NAME) is None
    assert LAYOUT.find(NAME, {"quantization": FOUR | {NAME[:-7]: False}}) is None
    assert not LAYOUT.recognizes({}) and not LAYOUT.recognizes({"quantization": None})


@pytest.mark.parametrize(
    "entry, message",
    [
        (FOUR | {"mode": "affine"}, "quantization.mode='affine'; it must be mxfp4 or mxfp8"),
        ({"group_size": 64, "bits": 4}, "quantization.mode is missing; it must be mxfp4 or mxfp8"),
        (FOUR | {"mode": ["x"]}, "quantization.mode=['x']; it must be mxfp4 or mxfp8"),
        (FOUR | {NAME[:-7]: 7}, f"quantization.{NAME[:-7]}=7; it must be a JSON object"),
        (FOUR | {"bits": 8}, "quantization.bits=8; it must be 4"),
        (FOUR | {"group_size": 16}, "quantization.group_size=16; it must be 32"),
    ],
)
def test_what_is_stored_otherwise_is_refused(entry, message):
    with pytest.raises(InputError) as caught:
        LAYOUT.find(NAME, {"quantization": entry})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields, wanted",
    [
        ({"attention_bias": "qkv", "head_dim": 8}, "attention_bias='qkv' and head_dim=8"),
        ({"attention_bias": "qkv", "qk_norm": True}, "qk_norm and attention_bias='qkv'"),
        ({"attention_bias": "all", "qk_norm": True}, "qk_norm and attention_bias='all'"),
        ({"attention_bias": "all", "head_dim": 8}, None),
        ({"attention_bias": "qkv"}, None),
        ({"qk_norm": True, "head_dim": 8}, None),
    ],
)
def test_models_that_mlx_lm_lacks_are_refused(fields, wanted):
    """It has no heads of another width in qwen2, and no biases in qwen3."""
    refusal = LAYOUT.find_refusal(dataclasses.replace(low_bit_folder.LLAMA, **fields))
    assert refusal is None if wanted is None else wanted in refusal
