# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Folders with weights in few bits, of small models that our own codes round."""

import dataclasses
import functools

import numpy as np
from flax import nnx

from pqt_jax import Spec
from pqt_jax.interchange import huggingface, layouts, low_bit, safetensors_io, safetensors_writer
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3
from pqt_jax.quantization import codes
from support import tiny
from support.exported import make, write_low_bit

FORMATS = {"fp4_e2m1": E2M1, "fp6_e2m3": E2M3, "fp6_e3m2": E3M2, "fp8_e4m3": E4M3}
# A format for each matrix, by a part of its name.
MIXED = {"q_proj": E2M1, "k_proj": E2M3, "v_proj": E3M2, "o_proj": E4M3}
MIXED |= {"gate_proj": E2M1, "up_proj": BF16, "down_proj": E2M3}
LLAMA = dataclasses.replace(tiny.LLAMA2, d_model=64, d_ff=96, num_heads=4)
CONFIGS = {
    "llama": LLAMA,
    "few kv heads, tied": dataclasses.replace(LLAMA, num_kv_heads=2, tie_embeddings=True),
    "qwen3": dataclasses.replace(tiny.OTHERS, d_model=64, d_ff=96, head_dim=32),
    "ragged": dataclasses.replace(LLAMA, d_ff=80),  # 80 rows of up and gate, 80 columns of down
    "qwen2": dataclasses.replace(LLAMA, attention_bias="qkv"),
}


@functools.cache
def model(config):
    """(the configuration, the state) of a model whose every parameter is random."""
    config, model = make(config)
    return config, nnx.state(model, nnx.Param)


def write(folder, layout, config, chosen, squares=False):
    """Write a model in a layout; matrices whose rows have no groups are numbers in bfloat16.

    Args:
      folder: a new folder.
      layout: the layout.
      config: of a Llama2.
      chosen: the format of all matrices of layers, or `MIXED`.
      squares: as in the layout.

    Returns:
      {name in transformers: the values that it must have, float32}.
    """
    huggingface.save(folder, *model(config))
    tensors = safetensors_io.find_tensors(folder)
    values = {
        name: safetensors_io.read_tensor(tensor).astype(np.float32)
        for name, tensor in tensors.items()
    }
    matrices = {}
    for name, w in values.items():
        if not name.endswith("_proj.weight"):
            continue
        fmt = chosen
        if isinstance(chosen, dict):
            fmt = next(one for part, one in chosen.items() if part in name)
        carrier = layout.carrier(fmt)
        if carrier is not None and w.shape[1] % low_bit.GROUP == 0:
            matrix, values[name] = encode(w.T, fmt, (32, 32))
            matrices[name] = low_bit.recode(matrix, carrier)
    write_low_bit(folder, layout, matrices, squares)
    return values


def encode(w, fmt, block):
    """(a matrix [in, out] in few bits as [out, in], and the numbers that this rounds it to)."""
    spec = Spec(noise="none", dtype=fmt, block=block)
    tensors = codes.encode_parameter(w, FormatAssignment(spec))
    values = codes.decode_parameter(tensors, w.shape, FormatAssignment(spec))
    return codes.encode_matrix(w, spec), values.astype(np.float32).T


def write_tensors(folder, tensors):
    """Write tensors to a file, each in its dtype."""
    specs = {
        n: TensorSpec(safetensors_io.DTYPE_NAMES[x.dtype], x.shape) for n, x in tensors.items()
    }
    safetensors_writer.write_stream(folder, specs, tensors.items())


def load(folder, layout, content, tensors, name, shape=(64, 64)):
    """Write the tensors of a matrix, and read it as a config.json says; None if it is no matrix."""
    write_tensors(folder, tensors)
    stored = safetensors_io.find_tensors(folder)
    found = layouts.find_matrix(layout, content, stored, name, shape, folder / "config.json")
    return found and found.read()


def stored_values(folder):
    """{name in transformers: the values that are read from a folder, float32}."""
    opened = huggingface.open_folder(folder)
    tensors = huggingface.list_tensors(opened.config)
    pairs = huggingface.stored_values(tensors, opened.read)
    return {tensor.name: huggingface.join(tensor, parts) for tensor, parts in pairs}
