# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Folders with weights in few bits, written from a small model that is rounded by our codes."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from pqt_jax import Spec
from pqt_jax.interchange import huggingface, low_bit, safetensors_writer
from pqt_jax.interchange.huggingface_config import to_json
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.numerics import bit_packing
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3
from pqt_jax.quantization import codes
from support import tiny
from support.exported import flat, make

FORMATS = {"fp4_e2m1": E2M1, "fp6_e2m3": E2M3, "fp6_e3m2": E3M2, "fp8_e4m3": E4M3}
# A format for each matrix, by a part of its path.
MIXED = {"/q/": E2M1, "/k/": E2M3, "/v/": E3M2, "/out/": E4M3, "/gate/": E2M1, "/up/": BF16}
MIXED |= {"/down/": E2M3}
LLAMA = dataclasses.replace(tiny.LLAMA2, d_model=64, d_ff=96, num_heads=4)
CONFIGS = {
    "llama": LLAMA,
    "few kv heads, tied": dataclasses.replace(LLAMA, num_kv_heads=2, tie_embeddings=True),
    "ragged": dataclasses.replace(LLAMA, d_ff=80),  # 80 rows of up and gate, 80 columns of down
}


def write(folder, layout, config, chosen, block=(32, 32), squares=False):
    """Write a model in a layout.

    Args:
      folder: a new folder.
      layout: the layout.
      config: of a Llama2.
      chosen: the format of all matrices, or `MIXED`.
      block: of our matrices, [in, out].
      squares: as in the layout.

    Returns:
      {name in transformers: the values that it must have, float32}.
    """
    config, params = parameters(config)
    fields = to_json(config, "float32")
    specs, tensors, formats, values = {}, {}, {}, {}
    for entry, layer, short in huggingface._iterate_tensors(config):
        name = short if entry is huggingface.HEAD else f"model.{short}"
        (path,) = entry.paths
        fmt = path.startswith("h/") and path.endswith("/kernel") and pick(chosen, path)
        one = params[path] if layer is None else params[path][layer]
        carrier = layout.carrier(fmt) if fmt and len(one) % low_bit.GROUP == 0 else None
        if fmt:
            formats[name] = carrier
        if carrier is None:
            one = one.T if entry.transposed else one
            values[name] = one.astype(ml_dtypes.bfloat16).astype(np.float32)
            specs[name] = TensorSpec("F32", one.shape)
            tensors[name] = values[name]
            continue
        matrix, values[name] = encode(one, fmt, block)
        matrix = low_bit.recode(matrix, carrier)
        specs |= layout.describe(name, carrier, matrix.codes.shape, squares)
        tensors |= layout.store(name, matrix, squares)
    folder.mkdir()
    safetensors_writer.write_stream(folder, specs, tensors.items())
    (folder / "config.json").write_text(json.dumps(fields | layout.config(formats, squares)))
    return values


@functools.cache
def parameters(config):
    """(the configuration, {path: weights}) of a model whose every parameter is random."""
    config, model = make(config)
    return config, flat(nnx.state(model))


def pick(chosen, path):
    """The format of a parameter."""
    if isinstance(chosen, dict):
        return next(fmt for part, fmt in chosen.items() if part in path)
    return chosen


def encode(w, fmt, block):
    """(a matrix [in, out] in few bits as [out, in], and the numbers that this rounds it to)."""
    assigned = FormatAssignment(Spec(noise="none", dtype=fmt, block=block))
    tensors = codes.encode_parameter(jnp.asarray(w), assigned)
    unpacked = bit_packing.unpack(tensors[fmt.name], fmt.bits, w.size).reshape(w.shape)
    scale = np.asarray(tensors["scale"])
    values = codes.decode_parameter(tensors, w.shape, assigned).astype(np.float32)
    matrix = EncodedMatrix(fmt, unpacked.T.astype(np.uint8), scale.T, block[::-1])
    return matrix, values.T
