# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models that tests store as GGUF, with matrices in few bits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.interchange import gguf_model, low_bit
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.models import GPT2, Llama2
from pqt_jax.numerics import bit_packing
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2
from pqt_jax.numerics.spec import Spec
from pqt_jax.quantization import codes
from support import exported, random_model, tiny
from support.exported import flat

CONFIGS = {name: config for name, config in exported.ALL.items() if name != "qwen3 with biases"}
CONFIGS["qwen3 with biases of q, k and v"] = dataclasses.replace(
    tiny.OTHERS, attention_bias="qkv", rope_scaling="linear", rope_original_length=8192
)
each = pytest.mark.parametrize("name", CONFIGS)


def make(name, **changes):
    """A configuration and the parameters of a model by path, all random."""
    config = dataclasses.replace(CONFIGS[name], **{"max_length": 64} | changes)
    model = random_model.make_random({"gpt2": GPT2, "llama2": Llama2}[config.name], config)
    return config, flat(nnx.state(model))


def encode(matrix, fmt, block=(32, 32)):
    """A matrix [in, out], rounded in blocks, as EncodedMatrix."""
    assignment = FormatAssignment(Spec(noise="none", dtype=fmt, block=block))
    tensors = codes.encode_parameter(jnp.asarray(matrix), assignment)
    packed = bit_packing.unpack(tensors[fmt.name], fmt.bits, matrix.size)
    transposed = packed.reshape(matrix.shape).T.astype(np.uint8)
    return EncodedMatrix(fmt, transposed, tensors["scale"].T, block[::-1])


def encode_model(config, params, formats):
    """What `gguf_model.write` takes of a model, and the parameters that it then stands for.

    Args:
      config: the model's configuration.
      params: arrays by path.
      formats: (path, layer) → the format of a kernel, or None for numbers.
    """
    values, rounded = [], {path: np.array(array) for path, array in params.items()}
    for place in gguf_model.places(config):
        entry, layer = place
        if not all(path in params for path in entry.paths):
            continue
        parts = []
        for path in entry.paths:
            array = rounded[path] if layer is None else rounded[path][layer]
            has_groups = path.endswith("kernel") and len(array) % low_bit.GROUP == 0
            fmt = formats(path, layer) if has_groups else None
            if fmt is None:
                if array.ndim == 2:  # what bfloat16 has
                    array[...] = np.asarray(jnp.asarray(array, jnp.bfloat16), np.float32)
                parts.append(array.T if path.endswith("kernel") else array)
            else:
                parts.append(encode(array, fmt))
                array[...] = low_bit.decode(parts[-1]).T
        values.append((place, parts))
    return values, rounded


def mixed(path, layer):
    """Formats of kernels that differ by layer and within q, k and v of GPT-2."""
    if path == "head/kernel":
        return None
    by_name = {"attn/k": E2M3 if layer else E2M1, "attn/out": E2M3, "mlp/up": E3M2}
    return by_name.get(path.removeprefix("h/").removesuffix("/kernel"), E2M1)
