# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The bytes of compressed-tensors, its config.json, and what is read of other folders."""

import ml_dtypes
import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange.compressed_tensors import LAYOUT
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3
from support import low_bit_folder

UP, DOWN = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "down"))
E8M0 = np.array([[126], [130]], np.uint8)
ROW = range(16)
BYTES = {  # (format, codes of two rows of 32) → bytes computed by hand
    "mxfp4": (
        E2M1,
        [[*ROW, *ROW], [*ROW[::-1], *ROW[::-1]]],
        "1032547698badcfe" * 2 + "efcdab8967452301" * 2,
    ),
    "mxfp6": (E2M3, [[*ROW[:8]] * 4, [0x3F] * 32], "40200c44611c" * 4 + "ff" * 24),
    "mxfp8": (E4M3, [[0x38, 0xB8] * 16, [0x7E] * 32], "38b8" * 16 + "7e" * 32),
}


@pytest.mark.parametrize("fmt, codes, expected", BYTES.values(), ids=BYTES)
def test_the_bytes_of_groups(fmt, codes, expected):
    matrix = EncodedMatrix(fmt, np.array(codes, np.uint8), E8M0, (1, 32))
    found = LAYOUT.store(UP, matrix, False)
    specs = LAYOUT.describe(UP, fmt, (2, 32), False)
    assert {name: x.shape for name, x in found.items()} == {n: s.shape for n, s in specs.items()}
    name = UP if fmt == E4M3 else f"{UP}_packed"
    assert found[name].tobytes().hex() == expected
    assert found[f"{UP}_scale"].tobytes() == b"\x7e\x82"
    assert [spec.dtype for spec in specs.values()] == ["F8_E4M3" if fmt == E4M3 else "U8", "U8"]


def test_the_bytes_of_squares():
    codes = np.arange(40 * 64, dtype=np.uint32).reshape(40, 64).astype(np.uint8)
    scale = np.array([[127, 128], [126, 0]], np.uint8)
    found = LAYOUT.store(UP, EncodedMatrix(E4M3, codes, scale, (32, 32)), True)
    assert found[UP].tobytes() == codes.tobytes()
    # 1, 2, 0.5 and 2^-127 in bfloat16, little-endian
    assert found[f"{UP}_scale"].tobytes().hex() == "803f0040003f4000"
    specs = LAYOUT.describe(UP, E4M3, (40, 64), True)
    assert specs == {UP: ("F8_E4M3", (40, 64)), f"{UP}_scale": ("BF16", (2, 2))}


def group(bits, name, targets, **weights):
    base = {"num_bits": bits, "type": "float", "symmetric": True, "dynamic": False}
    if not weights:
        weights = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
        weights["zp_dtype"] = "torch.uint8"
    activations = {"input_activations": None, "output_activations": None}
    return {"targets": targets, "weights": base | weights, **activations, "format": name}


def test_config_json():
    found = LAYOUT.config({UP: E2M3, DOWN: None}, False)
    assert found == {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "mxfp6-pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head", DOWN.removesuffix(".weight")],
            "config_groups": {"group_0": group(6, "mxfp6-pack-quantized", ["Linear"])},
        }
    }
    squares = LAYOUT.config({UP: E4M3}, True)["quantization_config"]["config_groups"]
    block = {"strategy": "block", "block_structure": [32, 32]}
    assert squares == {"group_0": group(8, "float-quantized", ["Linear"], **block)}
    mixed = LAYOUT.config({UP: E4M3, "a.weight": E2M1, DOWN: E2M1, "b.weight": None}, False)
    config = mixed["quantization_config"]
    assert config["format"] == "mixed-precision" and config["ignore"] == ["lm_head", "b"]
    assert config["config_groups"] == {
        "group_0": group(4, "mxfp4-pack-quantized", ["a", DOWN.removesuffix(".weight")]),
        "group_1": group(8, "mxfp8-quantized", [UP.removesuffix(".weight")]),
    }
    assert LAYOUT.config({UP: None}, False) == {}
    assert LAYOUT.carrier(E3M2) == E4M3


def content(*groups, **fields):
    groups = {f"group_{i}": group for i, group in enumerate(groups)}
    config = {"quant_method": "compressed-tensors", "quantization_status": "compressed"}
    return {"quantization_config": config | {"config_groups": groups} | fields}


def load(folder, content, tensors, name=UP):
    return low_bit_folder.load(folder, LAYOUT, content, tensors, name)


def names(content, name):
    """The tensors of a matrix that is stored in few bits."""
    found = LAYOUT.find(name, content)
    return None if found is None else (found.codes, found.scale)


MX = {"num_bits": 8, "type": "float", "group_size": 32}
MXFP8 = {"targets": ["Linear"], "weights": MX, "format": "mxfp8-quantized"}
ONES = np.full((64, 64), 0x38, np.uint8).view(ml_dtypes.float8_e4m3fn)  # codes of 1
TENSORS = {UP: ONES, f"{UP}_scale": np.full((64, 2), 128, np.uint8)}  # scales of 2


def test_fields_that_have_defaults_may_be_absent(tmp_path):
    np.testing.assert_array_equal(load(tmp_path, content(MXFP8), TENSORS), np.full((64, 64), 2))
    inherited = MXFP8 | {"format": None}
    found = load(tmp_path, content(inherited, format="mxfp8-quantized", ignore=None), TENSORS)
    np.testing.assert_array_equal(found, np.full((64, 64), 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["float-quantized", "naive-quantized"])
def test_blocks_of_any_size_with_scales_of_any_value(tmp_path, name, dtype):
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 16]}
    blocks = {"targets": ["re:.*up_proj"], "weights": weights, "format": name}
    scale = np.arange(8).reshape(2, 4) / 4 - 0.75
    found = load(tmp_path, content(blocks), {UP: ONES, f"{UP}_scale": scale.astype(dtype)})
    np.testing.assert_array_equal(found, np.repeat(np.repeat(scale, 48, 0), 16, 1)[:64])
    assert names(content(blocks), UP) == (UP, f"{UP}_scale")


def test_the_most_specific_target_decides(tmp_path):
    """A name goes before a regular expression, that before a class, and `ignore` before all."""
    named = MXFP8 | {"targets": [UP.removesuffix(".weight")]}
    pattern = group(4, "mxfp4-pack-quantized", ["re:.*mlp.*"])
    linear = group(6, "mxfp6-pack-quantized", ["Linear"])
    groups = linear, pattern, named
    other = "model.layers.0.self_attn.q_proj.weight"
    for name, expected in ((UP, UP), (DOWN, f"{DOWN}_packed"), (other, f"{other}_packed")):
        assert names(content(*groups), name) == (expected, f"{name}_scale")
    for ignored in ("re:.*up_proj$", UP.removesuffix(".weight"), "Linear"):
        assert names(content(*groups, ignore=[ignored]), UP) is None
        assert load(tmp_path, content(*groups, ignore=[ignored]), TENSORS) is None
    assert names(content(named), DOWN) is None
    embedding = "model.embed_tokens.weight"
    assert names(content(linear), embedding) is None
    both = MXFP8 | {"targets": ["Linear", "Embedding"]}
    assert names(content(both), embedding) == (embedding, f"{embedding}_scale")


def weights(**fields):
    return content(MXFP8 | {"weights": MX | fields})


GROUP = "quantization_config.config_groups.group_0"
REFUSED = {
    "bits": (weights(num_bits=4), f"{GROUP}.weights.num_bits=4; it must be 8"),
    "integers": (weights(type="int"), f"{GROUP}.weights.type='int'; it must be float"),
    "no type": (weights(type=None), f"{GROUP}.weights.type is missing; it must be float"),
    "group size": (weights(group_size=16), f"{GROUP}.weights.group_size=16; it must be 32"),
    "no group size": (weights(group_size=None), f"{GROUP}.weights.group_size is missing"),
    "strategy": (weights(strategy="channel"), ".weights.strategy='channel'; it must be group"),
    "zero points": (weights(symmetric=False), ".weights.symmetric=False; it must be True"),
    "dynamic": (weights(dynamic=True), f"{GROUP}.weights.dynamic=True; it must be False"),
    "a number": (weights(symmetric=1), f"{GROUP}.weights.symmetric=1; it must be True"),
    "no weights": (content(MXFP8 | {"weights": None}), "weights is missing; it must be a JSON"),
    "activations": (
        content(MXFP8 | {"input_activations": {"num_bits": 8}}),
        f"{GROUP}.input_activations={{'num_bits': 8}}; it must be absent",
    ),
    "outputs": (
        content(MXFP8 | {"output_activations": {"num_bits": 8}}),
        f"{GROUP}.output_activations={{'num_bits': 8}}; it must be absent",
    ),
    "format": (
        content(MXFP8 | {"format": "pack-quantized"}),
        f"{GROUP}.format='pack-quantized'; it must be one of mxfp4-pack-quantized, mxfp6-pack-",
    ),
    "a list": (content(MXFP8 | {"format": ["a"]}), f"{GROUP}.format=['a']; it must be one of"),
    "no format": (content(MXFP8 | {"format": None}), f"{GROUP}.format is missing; it must be"),
    "targets": (content(MXFP8 | {"targets": "Linear"}), ".targets='Linear'; it must be a list"),
    "pattern": (content(MXFP8 | {"targets": ["re:("]}), "a target='re:('; it must be a name or a"),
    "ignore": (content(MXFP8, ignore=[1]), "quantization_config.ignore=[1]; it must be a list of"),
    "a group": (content(3), f"{GROUP}=3; it must be a JSON object"),
    "format of all": (
        content(format="nvfp4-pack-quantized"),
        "quantization_config.format='nvfp4-pack-",
    ),
    "groups": (content(config_groups=[]), "quantization_config.config_groups=[]; it must be a"),
    "status": (content(MXFP8, quantization_status="frozen"), "='frozen'; it must be compressed"),
    "cache": (content(MXFP8, kv_cache_scheme={}), "kv_cache_scheme={}; it must be absent"),
    "sparse": (
        content(MXFP8, sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config={'format': 'sparse-24-bitmask'}; it must be {'format': 'dense'}",
    ),
    "rotated": (content(MXFP8, transform_config={"a": 1}), "transform_config={'a': 1}; it must be"),
    "blocks": (
        content(group(8, "float-quantized", ["Linear"], strategy="block", block_structure="32x32")),
        f"{GROUP}.weights.block_structure='32x32'; it must be two whole numbers above 0",
    ),
}


@pytest.mark.parametrize("content, message", REFUSED.values(), ids=REFUSED)
def test_what_is_stored_otherwise_is_refused_by_its_field(content, message):
    with pytest.raises(InputError) as caught:
        LAYOUT.find(UP, content)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_scales_of_another_dtype_are_refused(tmp_path):
    """Software that reads these folders takes F8_E8M0 for numbers to convert to bytes."""
    scale = TENSORS[f"{UP}_scale"].view(ml_dtypes.float8_e8m0fnu)
    message = "weight_scale is F8_E8M0 64×2; for 64×64 weights it must be U8 64×2"
    with pytest.raises(InputError, match=message):
        load(tmp_path, content(MXFP8), TENSORS | {f"{UP}_scale": scale})
