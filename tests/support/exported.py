# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models that tests export: of each kind, every parameter random; and folders of few bits."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.data import tokenizer_files
from pqt_jax.interchange import huggingface, low_bit, safetensors_io, safetensors_writer
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.models import build_model
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny

CONFIGS = {
    "gpt2": dataclasses.replace(tiny.GPT2, bias=True),
    "gpt2 without biases": tiny.GPT2,
    "gpt2 untied": dataclasses.replace(tiny.GPT2, bias=True, tie_embeddings=False, norm_eps=1e-3),
    "llama": tiny.LLAMA2,
    "llama of few kv heads": dataclasses.replace(
        tiny.LLAMA2, num_heads=4, num_kv_heads=2, norm_eps=1e-3, rope_theta=500.0
    ),
    "llama tied": dataclasses.replace(tiny.LLAMA2, tie_embeddings=True),
}
OTHERS = {  # what differs from Llama 2
    "llama 3": dataclasses.replace(tiny.OTHERS, attention_bias="none", qk_norm=False, head_dim=0),
    "llama with biases": dataclasses.replace(
        tiny.LLAMA2, attention_bias="all", head_dim=24, rope_scaling="linear", rope_factor=4.0
    ),
    "mistral": dataclasses.replace(tiny.LLAMA2, num_heads=3, head_dim=8),
    "qwen2": dataclasses.replace(tiny.LLAMA2, attention_bias="qkv", num_heads=4, num_kv_heads=2),
    "qwen3": dataclasses.replace(tiny.LLAMA2, qk_norm=True, head_dim=24),
    "qwen3 with biases": tiny.OTHERS,
}
ALL = CONFIGS | OTHERS
each = pytest.mark.parametrize("name", CONFIGS)
each_of_all = pytest.mark.parametrize("name", ALL)


def make(config, rules=(), max_length=64):
    """A model whose every parameter is random, biases and scales included."""
    config = dataclasses.replace(config, max_length=max_length)
    model = build_model(config, rules, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)

    def add_noise(x):
        return jnp.asarray(np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(x.dtype))

    nnx.update(model, jax.tree.map(add_noise, nnx.state(model, nnx.Param)))
    return config, model


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in paths_and_leaves(params).items()}


def write_folder(folder, config, model, tokenizer):
    """A folder of float32 numbers with a tokenizer, from `tokenizer_files`."""
    huggingface.save(folder, config, nnx.state(model, nnx.Param), dtype="float32")
    tokenizer_files.write(folder, tokenizer)
    change_config(folder, tokenizer.ids)


def change_config(folder, fields):
    path = folder / huggingface.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def random_matrices(folder, formats):
    """Name → `EncodedMatrix` for each matrix of the layers of a folder; formats take turns.

    None leaves a matrix as it is.
    """
    rng, matrices = np.random.default_rng(2), {}
    tensors = safetensors_io.find_tensors(folder)
    names = sorted(name for name in tensors if name.endswith("_proj.weight"))
    names = [name for name in names if tensors[name].shape[1] % low_bit.GROUP == 0]
    for name, fmt in zip(names, itertools.cycle(formats), strict=False):
        if fmt is None:
            continue
        rows, columns = tensors[name].shape
        codes = rng.integers(0, 1 << fmt.bits, (rows, columns)).astype(np.uint8)
        codes[np.isnan(fmt.decode(codes))] = 0
        codes[fmt.decode(codes) == 0] = 1
        grid = (-(-rows // 32), -(-columns // 32))
        unit = 127 - round(math.log2(fmt.max * columns**0.5 / 2))  # products of about 1
        scale = (unit + rng.integers(-1, 2, grid)).astype(np.uint8)
        matrices[name] = EncodedMatrix(fmt, codes, scale, (32, 32))
    return matrices


def write_low_bit(folder, layout, matrices, squares=False):
    """Store matrices of a folder of numbers in few bits, by a layout."""
    tensors = safetensors_io.find_tensors(folder)
    values = {name: safetensors_io.read_tensor(tensor) for name, tensor in tensors.items()}
    specs = {name: safetensors_writer.TensorSpec(t.dtype, t.shape) for name, t in tensors.items()}
    for name, matrix in matrices.items():
        del specs[name], values[name]
        specs |= layout.describe(name, matrix.fmt, matrix.codes.shape, squares)
        values |= layout.store(name, matrix, squares)
    safetensors_writer.write_stream(folder, specs, values.items())
    names = [name for name in tensors if name.endswith("_proj.weight")]
    formats = {name: matrices[name].fmt if name in matrices else None for name in names}
    change_config(folder, layout.config(formats, squares))


def put_matrices(model, matrices):
    """Put the values of `random_matrices` into a Llama of ours."""
    names = {entry.name: entry.paths[0] for entry in huggingface.tensor_entries(model.config)}
    leaves = flat(nnx.state(model, nnx.Param))
    for name, matrix in matrices.items():
        prefix, layer, rest = name.removeprefix("model.").split(".", 2)
        path = names[f"{prefix}.{{}}.{rest}"]
        leaves[path] = leaves[path].copy()
        leaves[path][int(layer)] = low_bit.decode(matrix).T
    nnx.update(model, huggingface.nest_by_path({p: jnp.asarray(x) for p, x in leaves.items()}))
