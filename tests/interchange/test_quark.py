# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The bytes of Quark's layout, its config.json, and what is read of other folders."""

import ml_dtypes
import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.interchange.quark import LAYOUT
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3
from support import low_bit_folder

UP, DOWN = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "down"))
SCALE = f"{UP}_scale"
ROW = range(16)
FP6 = ([[*ROW[:8]] * 4, [0x3F] * 32], "40200c44611c" * 4 + "ff" * 24)
BYTES = {  # (format, codes of two rows of 32) → bytes computed by hand
    "fp4": (
        E2M1,
        [[*ROW, *ROW], [*ROW[::-1], *ROW[::-1]]],
        "1032547698badcfe" * 2 + "efcdab8967452301" * 2,
    ),
    "fp6_e2m3": (E2M3, *FP6),
    "fp6_e3m2": (E3M2, *FP6),
    "fp8_e4m3": (E4M3, [[0x38, 0xB8] * 16, [0x7E] * 32], "38b8" * 16 + "7e" * 32),
}


@pytest.mark.parametrize("fmt, codes, expected", BYTES.values(), ids=BYTES)
def test_the_bytes_of_groups(fmt, codes, expected):
    scale = np.array([[126], [130]], np.uint8)
    found = LAYOUT.store(UP, EncodedMatrix(fmt, np.array(codes, np.uint8), scale, (1, 32)), False)
    specs = LAYOUT.describe(UP, fmt, (2, 32), False)
    assert {name: x.shape for name, x in found.items()} == {n: s.shape for n, s in specs.items()}
    assert {name: spec.dtype for name, spec in specs.items()} == {
        UP: "F8_E4M3" if fmt == E4M3 else "U8",
        SCALE: "U8",
    }
    assert found[UP].tobytes().hex() == expected
    assert found[SCALE].tobytes() == b"\x7e\x82"


def test_the_bytes_of_squares():
    codes = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    scale = np.array([[127, 128], [126, 0]], np.uint8)
    found = LAYOUT.store(UP, EncodedMatrix(E4M3, codes, scale, (32, 32)), True)
    assert found[UP].tobytes() == codes.tobytes()
    assert found[SCALE].tobytes() == b"\x7f\x80\x7e\x00"
    specs = LAYOUT.describe(UP, E4M3, (64, 64), True)
    assert specs == {UP: ("F8_E4M3", (64, 64)), SCALE: ("F8_E8M0", (2, 2))}
    with pytest.raises(InputError, match="has 80 rows; with scales of 32×32 blocks they must be a"):
        LAYOUT.describe(UP, E4M3, (80, 64), True)
    LAYOUT.describe(UP, E4M3, (80, 64), False)


def test_config_json():
    config = LAYOUT.config({UP: E3M2, DOWN: None}, False)["quantization_config"]
    assert config["quant_method"] == "quark" and config["layer_quant_config"] == {}
    assert config["exclude"] == ["lm_head", DOWN.removesuffix(".weight")]
    layer = config["global_quant_config"]
    assert {layer[name] for name in ("input_tensors", "output_tensors", "bias")} == {None}
    expected = {"dtype": "fp6_e3m2", "qscheme": "per_group", "group_size": 32, "ch_axis": -1}
    expected |= {"scale_format": "e8m0", "is_dynamic": False, "scale_type": "float"}
    assert expected.items() <= layer["weight"].items()
    squares = LAYOUT.config({UP: E4M3}, True)["quantization_config"]["global_quant_config"]
    expected = {"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [32, 32]}
    expected |= {"scale_type": "float8_e8m0fnu", "symmetric": True, "is_dynamic": False}
    assert expected.items() <= squares["weight"].items()
    mixed = LAYOUT.config({UP: E4M3, "a.weight": E2M1, DOWN: E2M3, "b.weight": None}, False)
    config = mixed["quantization_config"]
    assert config["exclude"] == ["lm_head", "b"]
    assert config["global_quant_config"]["weight"]["dtype"] == "fp4"
    layers = {n: layer["weight"]["dtype"] for n, layer in config["layer_quant_config"].items()}
    assert layers == {"model.layers.0.mlp.up_proj": "fp8_e4m3", DOWN[:-7]: "fp6_e2m3"}
    assert LAYOUT.config({UP: None}, False) == {}


WEIGHT = {"dtype": "fp8_e4m3", "qscheme": "per_group", "group_size": 32, "ch_axis": -1}
WEIGHT |= {"scale_format": "e8m0", "is_dynamic": False, "symmetric": None}


def content(weight=WEIGHT, layer=None, **fields):
    config = {"quant_method": "quark", "global_quant_config": {"weight": weight} | (layer or {})}
    return {"quantization_config": config | {"export": {"pack_method": "reorder"}} | fields}


def load(folder, content, tensors, name=UP):
    return low_bit_folder.load(folder, LAYOUT, content, tensors, name)


def names(content, name):
    """The tensors of a matrix that is stored in few bits."""
    found = LAYOUT.find(name, content)
    return None if found is None else (found.codes, found.scale)


ONES = np.full((64, 64), 0x38, np.uint8).view(ml_dtypes.float8_e4m3fn)  # codes of 1
TENSORS = {UP: ONES, SCALE: np.full((64, 2), 128, np.uint8)}  # scales of 2


def test_groups_and_blocks_of_any_size(tmp_path):
    np.testing.assert_array_equal(load(tmp_path, content(), TENSORS), np.full((64, 64), 2))
    blocks = {"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [48, 16]}
    scale = np.arange(8).reshape(2, 4) / 4 - 0.75
    for dtype in (np.float32, ml_dtypes.bfloat16):
        found = load(tmp_path, content(blocks), {UP: ONES, SCALE: scale.astype(dtype)})
        np.testing.assert_array_equal(found, np.repeat(np.repeat(scale, 48, 0), 16, 1)[:64])


def test_patterns_choose_layers(tmp_path):
    fp4 = {"weight": WEIGHT | {"dtype": "fp4"}}
    layers = {"*up_proj": {"weight": None}, "*layers.0*": fp4}
    chosen = content(layer_quant_config=layers, exclude=["lm_head", "*q_proj"])
    assert load(tmp_path, chosen, TENSORS) is None and names(chosen, UP) is None
    assert names(chosen, DOWN) == (DOWN, f"{DOWN}_scale")
    codes = {DOWN: np.full((64, 32), 0x22, np.uint8), f"{DOWN}_scale": TENSORS[SCALE]}
    np.testing.assert_array_equal(load(tmp_path, chosen, codes, DOWN), np.full((64, 64), 2))
    query = "model.layers.1.self_attn.q_proj.weight"
    assert names(chosen, query) is None
    embedding = "model.embed_tokens.weight"
    assert names(chosen, embedding) is None


FIELD = "quantization_config.global_quant_config"
REFUSED = {
    "integers": (content(WEIGHT | {"dtype": "int4"}), f"{FIELD}.weight.dtype='int4'; it must be"),
    "by tensor": (
        content(WEIGHT | {"qscheme": "per_tensor"}),
        f"{FIELD}.weight.qscheme='per_tensor'; it must be per_group or per_block",
    ),
    "blocks of fp4": (
        content(WEIGHT | {"dtype": "fp4", "qscheme": "per_block"}),
        f"{FIELD}.weight.qscheme='per_block'; it must be per_group",
    ),
    "no scheme": (content(WEIGHT | {"qscheme": None}), "weight.qscheme is missing; it must be per"),
    "group size": (content(WEIGHT | {"group_size": 16}), "weight.group_size=16; it must be 32"),
    "axis": (content(WEIGHT | {"ch_axis": 0}), f"{FIELD}.weight.ch_axis=0; it must be -1 or 1"),
    "scales": (
        content(WEIGHT | {"scale_format": None}),
        f"{FIELD}.weight.scale_format is missing; it must be e8m0",
    ),
    "dynamic": (content(WEIGHT | {"is_dynamic": True}), "is_dynamic=True; it must be False"),
    "zero points": (content(WEIGHT | {"symmetric": False}), "symmetric=False; it must be True"),
    "two stages": (content([WEIGHT, WEIGHT]), f"{FIELD}.weight=[{{'dtype': 'fp8_e4m3', "),
    "activations": (
        content(layer={"input_tensors": {"dtype": "fp4"}}),
        f"{FIELD}.input_tensors={{'dtype': 'fp4'}}; it must be absent",
    ),
    "of a layer": (
        content(layer_quant_config={"a": {"weight": WEIGHT, "bias": 1}}),
        "quantization_config.layer_quant_config.a.bias=1; it must be absent",
    ),
    "blocks": (
        content({"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [0, 32]}),
        f"{FIELD}.weight.block_size=[0, 32]; it must be two whole numbers above 0",
    ),
    "types": (
        content(layer_type_quant_config={"a": 1}),
        "layer_type_quant_config={'a': 1}; it must be",
    ),
    "rotated": (content(algo_config=[{"name": "rotation"}]), "algo_config=[{'name': 'rotation'}];"),
    "cache": (content(kv_cache_quant_config={"*k_proj": 1}), "kv_cache_quant_config={'*k_proj'"),
    "softmax": (content(softmax_quant_spec=WEIGHT), "quantization_config.softmax_quant_spec={"),
    "not packed": (
        content(export={"weight_format": "fake_quantized"}),
        "export.weight_format='fake_quantized'; it must be real_quantized",
    ),
    "no export": (content(export=None), "quantization_config.export is missing; it must be a JSON"),
    "no config": (content(global_quant_config=None), f"{FIELD} is missing; it must be a JSON"),
    "exclude": (content(exclude="lm_head"), "exclude='lm_head'; it must be a list of texts"),
}


@pytest.mark.parametrize("content, message", REFUSED.values(), ids=REFUSED)
def test_what_is_stored_otherwise_is_refused_by_its_field(content, message):
    with pytest.raises(InputError) as caught:
        LAYOUT.find(UP, content)
    assert message in str(caught.value) and "\n" not in str(caught.value)
