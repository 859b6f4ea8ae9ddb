# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What all layouts of few bits promise: the bits of our own rounding, and one line for the rest."""

import json

import ml_dtypes
import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface, low_bit, safetensors_io, safetensors_writer
from pqt_jax.interchange.layouts import LAYOUTS
from pqt_jax.interchange.safetensors_writer import TensorSpec
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
    layout = LAYOUTS[layout]
    specs = layout.describe(NAME, matrix.fmt, matrix.codes.shape, squares)
    content = layout.config({NAME: matrix.fmt}, squares)
    safetensors_writer.write_stream(folder, specs, layout.store(NAME, matrix, squares).items())
    stored = safetensors_io.find_tensors(folder)
    assert set(layout.stored_names(NAME, content)) >= stored.keys()
    return layout.load(NAME, content, lambda name: safetensors_io.read_tensor(stored[name]))


@pytest.mark.parametrize("block", [(32, 32), (32, 1), (64, 16)], ids=str)
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


def check_loaded(folder, config, values):
    """The folder's weights are the given ones, by the names of transformers."""
    found, params = huggingface.load(folder)
    assert found.num_kv_heads == config.num_kv_heads
    leaves = low_bit_folder.flat(params)
    checked = set()
    for entry, layer, short in huggingface._iterate_tensors(config):
        (path,) = entry.paths
        name = short if entry is huggingface.HEAD else f"model.{short}"
        one = leaves[path] if layer is None else leaves[path][layer]
        one = one.T if entry.transposed else one
        assert one.tobytes() == values[name].tobytes(), name
        checked.add(name)
    assert checked == values.keys()


FOLDERS = [(layout, "llama", FORMATS[name], False) for layout, name in SINGLE]
FOLDERS += [(layout, "llama", FORMATS[name], True) for layout, name in SQUARES]
FOLDERS += [
    (name, c, MIXED, False) for name, x in LAYOUTS.items() if "mixed" in x.formats for c in CONFIGS
]


@pytest.mark.parametrize("layout, config, chosen, squares", FOLDERS)
def test_a_folder_is_read_bit_for_bit(tmp_path, layout, config, chosen, squares):
    folder, config = tmp_path / "out", CONFIGS[config]
    values = low_bit_folder.write(folder, LAYOUTS[layout], config, chosen, squares=squares)
    check_loaded(folder, config, values)


@pytest.fixture(scope="module", params=LAYOUTS)
def written(request, tmp_path_factory):
    """(folder, the content of its config.json, {name: tensor}) of FP4."""
    folder = tmp_path_factory.mktemp("written") / "out"
    low_bit_folder.write(folder, LAYOUTS[request.param], CONFIGS["llama"], E2M1)
    tensors = safetensors_io.find_tensors(folder)
    tensors = {name: safetensors_io.read_tensor(tensor) for name, tensor in tensors.items()}
    return json.loads((folder / "config.json").read_text()), tensors


def rewrite(folder, content, tensors):
    folder.mkdir(exist_ok=True)
    specs = {
        name: TensorSpec(safetensors_io.DTYPE_NAMES[x.dtype], x.shape)
        for name, x in tensors.items()
    }
    safetensors_writer.write_stream(folder, specs, tensors.items())
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


def test_damaged_tensors_are_refused_by_name(tmp_path, written):
    content, tensors = written
    codes, scale = names_of(tensors)
    nan = tensors[scale].copy()
    nan[1, 1] = 0xFF
    rewrite(tmp_path, content, tensors | {scale: nan})
    refused(tmp_path, f"{scale}: a scale is not a number; put a whole copy there")
    large = np.full_like(nan, 0xFE)
    rewrite(tmp_path, content, tensors | {scale: large})
    refused(tmp_path, f"{codes}: a weight is NaN, or too large for float32")
    rewrite(tmp_path, content, tensors | {scale: nan[:-1]})
    refused(tmp_path, f"{scale} is 95×2; it must be 96×2")
    rewrite(tmp_path, content, tensors | {scale: nan.astype(np.float32)})
    refused(tmp_path, f"{scale} is F32 96×2; it must be a matrix of U8")
    less = {name: x for name, x in tensors.items() if name != scale}
    rewrite(tmp_path, content, less)
    refused(tmp_path, f"no tensor {scale}; by config.json its matrix is stored in few bits")
    rewrite(tmp_path, content, tensors | {codes: tensors[codes][:-1], scale: tensors[scale][:-1]})
    refused(tmp_path, f"{NAME} is 95×64; by config.json it is 96×64")
    rewrite(tmp_path, content, tensors | {codes: tensors[codes].reshape(-1)})
    refused(tmp_path, codes, "it must be a matrix of")
    less = {name: x for name, x in tensors.items() if name not in (scale, codes)}
    rewrite(tmp_path, content, less)
    refused(tmp_path, "no tensor layers.0.mlp.up_proj.weight; config.json says it must have one")
    extra = {NAME.replace("weight", "weight_zero_point"): nan}
    rewrite(tmp_path, content, tensors | extra)
    refused(tmp_path, "tensor layers.0.mlp.up_proj.weight_zero_point is no part of the model")


def test_shapes_of_config_json_are_checked_before_memory_is_taken(tmp_path, written):
    content, tensors = written
    rewrite(tmp_path, content | {"intermediate_size": 2**31 - 32}, tensors)
    refused(tmp_path, "by config.json it is 2147483616×64")


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
    field = next(name for name in ("quantization_config", "quantization") if name in content)
    rewrite(tmp_path, content | {field: {"quant_method": "gptq", "bits": 4}}, tensors)
    refused(
        tmp_path, "config.json: quantization_config={'quant_method': 'gptq', 'bits': 4}; it must"
    )
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}
    rewrite(tmp_path, content | gpt2, tensors)
    refused(tmp_path, "weights of a gpt2 in the layout ", "give a copy that is not quantized")
