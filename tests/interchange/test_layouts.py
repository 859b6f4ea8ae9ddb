# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What all layouts of few bits promise: the bits of our own rounding, and one line for the rest."""

import json

import ml_dtypes
import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange import (
    huggingface,
    layouts,
    low_bit,
    safetensors_io,
    safetensors_writer,
)
from pqt_jax.interchange.layouts import LAYOUTS
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3, E4M7, E5M2
from support import low_bit_folder
from support.low_bit_folder import CONFIGS, FORMATS, MIXED

NAME = "model.layers.0.mlp.up_proj.weight"
SINGLE = [
    (layout, name) for layout in LAYOUTS for name in LAYOUTS[layout].formats if name != "mixed"
]
SQUARES = [(layout, name) for layout in LAYOUTS for name in LAYOUTS[layout].squares]


def round_trip(folder, layout, matrix, squares):
    """Write a matrix to a file, and load it."""
    layout, shape = LAYOUTS[layout], matrix.codes.shape
    content = layout.config({NAME: matrix.fmt}, squares)
    specs, tensors = (
        layout.describe(NAME, matrix.fmt, shape, squares),
        layout.store(NAME, matrix, squares),
    )
    safetensors_writer.write_stream(folder, specs, tensors.items())
    stored = safetensors_io.find_tensors(folder)
    found = layouts.find_matrix(layout, content, stored, NAME, shape, folder / "config.json")
    assert set(found.names) == stored.keys()
    return found.read()


@pytest.mark.parametrize(
    "block", [(32, 32), (32, 1), pytest.param((64, 16), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("layout, name", SINGLE)
def test_a_matrix_comes_back_bit_for_bit(tmp_path, layout, name, block):
    w = np.random.default_rng(0).normal(size=(96, 80)).astype(np.float32)
    w[:, 3] = 0
    w[:, 64:] *= 2.0**-125  # magnitudes below 2^-126 become 0
    matrix, values = low_bit_folder.encode(w, FORMATS[name], block)
    assert values.shape == (80, 96) and (values[64:] == 0).any() and values[64:].any()
    assert round_trip(tmp_path, layout, matrix, False).tobytes() == values.tobytes()


@pytest.mark.parametrize("block", [(32, 32), (64, 128)], ids=str)
@pytest.mark.parametrize("layout, name", SQUARES)
def test_scales_of_squares_are_stored_once(tmp_path, layout, name, block):
    w = np.random.default_rng(0).normal(size=(96, 160)).astype(np.float32)
    matrix, values = low_bit_folder.encode(w, FORMATS[name], block)
    assert round_trip(tmp_path, layout, matrix, True).tobytes() == values.tobytes()
    sizes = [x.size for x in LAYOUTS[layout].store(NAME, matrix, True).values()]
    assert sorted(sizes) == [3 * 5, 96 * 160]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_carrier_holds_all_values_and_is_a_format_of_the_layout(layout):
    stored = {FORMATS[name] for name in LAYOUTS[layout].formats if name != "mixed"}
    for fmt in (E2M1, E2M3, E3M2, E4M3):
        carrier = LAYOUTS[layout].carrier(fmt)
        if carrier is not None:
            one = low_bit.EncodedMatrix(
                fmt, np.arange(32)[None] % 16, np.ones((1, 1), int), (1, 32)
            )
            assert low_bit.recode(one, carrier).fmt in stored
    assert {LAYOUTS[layout].carrier(fmt) for fmt in (E5M2, E4M7, BF16)} == {None}


FOLDERS = [(layout, "llama", FORMATS[name], False) for layout, name in SINGLE]
FOLDERS += [(layout, "llama", FORMATS[name], True) for layout, name in SQUARES]
FOLDERS += [
    (name, c, MIXED, False) for name, x in LAYOUTS.items() if "mixed" in x.formats for c in CONFIGS
]


@pytest.mark.parametrize("layout, config, chosen, squares", FOLDERS)
def test_a_folder_is_read_bit_for_bit(tmp_path, layout, config, chosen, squares):
    layout = LAYOUTS[layout]
    values = low_bit_folder.write(tmp_path / "out", layout, CONFIGS[config], chosen, squares)
    found = low_bit_folder.stored_values(tmp_path / "out")
    assert found.keys() == values.keys()
    for name, x in found.items():
        assert x.tobytes() == values[name].tobytes(), name


@pytest.fixture(scope="module", params=LAYOUTS)
def written(request, tmp_path_factory):
    """(folder, the content of its config.json, {name: tensor}) of FP4."""
    folder = tmp_path_factory.mktemp("written") / "out"
    low_bit_folder.write(folder, LAYOUTS[request.param], CONFIGS["llama"], E2M1)
    tensors = safetensors_io.find_tensors(folder)
    tensors = {name: safetensors_io.read_tensor(tensor) for name, tensor in tensors.items()}
    return json.loads((folder / "config.json").read_text()), tensors


def rewrite(folder, content, tensors):
    low_bit_folder.write_tensors(folder, tensors)
    (folder / "config.json").write_text(json.dumps(content))


def refused(folder, *parts):
    with pytest.raises(InputError) as caught:
        huggingface.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def names_of(tensors):
    """The stored names (codes, scale) of a matrix."""
    scale = next(n for n in tensors if n.startswith(NAME.removesuffix("weight")) and "scale" in n)
    codes = next(n for n in tensors if n.startswith(NAME) and n != scale)
    return codes, scale


def test_damaged_values_are_refused_by_name(tmp_path, written):
    content, tensors = written
    codes, scale = names_of(tensors)
    nan = tensors[scale].copy()
    nan[1, 1] = 0xFF
    rewrite(tmp_path, content, tensors | {scale: nan})
    refused(tmp_path, f"safetensors: {scale}: a scale is not a number; put a whole copy there")
    large = np.full_like(nan, 0xFE)
    rewrite(tmp_path, content, tensors | {scale: large})
    refused(tmp_path, f"safetensors: {codes}: a weight is NaN, or too large for float32")


def test_damaged_headers_are_refused_before_values_are_read(tmp_path, written):
    content, tensors = written
    names = codes, scale = names_of(tensors)
    rewrite(tmp_path, content, tensors | {scale: tensors[scale][:-1]})
    refused(tmp_path, f"{scale} is U8 95×2; for 96×64 weights it must be U8 96×2")
    rewrite(tmp_path, content, tensors | {scale: tensors[scale].astype(np.float32)})
    refused(tmp_path, f"{scale} is F32 96×2; for 96×64 weights it must be U8 96×2")
    rewrite(tmp_path, content, tensors | {codes: tensors[codes][:, :-1]})
    refused(tmp_path, f"safetensors: {codes} is ", "; for 96×64 weights it must be ")
    rewrite(tmp_path, content, tensors | {codes: tensors[codes].reshape(-1)})
    refused(tmp_path, f"safetensors: {codes} is ", "; for 96×64 weights it must be ")
    for name in names:
        rewrite(tmp_path, content, {n: x for n, x in tensors.items() if n != name})
        refused(tmp_path, f"no tensor {name}; by config.json its matrix is stored in few bits")
    rewrite(tmp_path, content, {n: x for n, x in tensors.items() if n not in names})
    refused(tmp_path, "no tensor layers.0.mlp.up_proj.weight; config.json says it must have one")
    extra = {NAME.replace("weight", "weight_zero_point"): tensors[scale]}
    rewrite(tmp_path, content, tensors | extra)
    refused(tmp_path, "tensor layers.0.mlp.up_proj.weight_zero_point is no part of the model")


def test_shapes_of_config_json_are_checked_before_memory_is_taken(tmp_path, written):
    content, tensors = written
    rewrite(tmp_path, content | {"intermediate_size": 2**31 - 32}, tensors)
    refused(tmp_path, "; for 2147483616×64 weights it must be ")


def test_a_matrix_without_scales_may_be_stored_as_numbers(tmp_path, written):
    content, tensors = written
    codes, scale = names_of(tensors)
    tensors = {name: x for name, x in tensors.items() if name not in (codes, scale)}
    numbers = np.random.default_rng(0).normal(size=(96, 64)).astype(ml_dtypes.bfloat16)
    rewrite(tmp_path, content, tensors | {NAME: numbers})
    found = huggingface.load(tmp_path)[1]["h"]["mlp"]["up"]["kernel"][0]
    np.testing.assert_array_equal(found, numbers.T.astype(np.float32))


def test_other_quantizations_and_models_are_refused(tmp_path, written):
    content, tensors = written
    fields = {name: x for name, x in content.items() if not name.startswith("quantization")}
    rewrite(
        tmp_path, fields | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, tensors
    )
    refused(
        tmp_path, "config.json: quantization_config={'quant_method': 'gptq', 'bits': 4}; it must"
    )
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}
    rewrite(tmp_path, content | gpt2, tensors)
    refused(tmp_path, "weights of a gpt2 in the layout ", "give a copy that is not quantized")
