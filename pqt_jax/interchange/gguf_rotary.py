# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rotary positions that are scaled as in Llama 3, in GGUF files.

A tensor has what llama.cpp divides the frequency of each pair of components by, and nothing of
factors and lengths from which it was computed. Files of ours have those in the metadata, others are
compared with the numbers of Llama 3.1 and its successors.
"""

import dataclasses

import numpy as np

from pqt_jax.errors import InputError
from pqt_jax.interchange import gguf_config, gguf_reader, gguf_tensors
from pqt_jax.interchange.gguf_reader import GGUF
from pqt_jax.interchange.gguf_tensors import TensorType
from pqt_jax.models import Llama2Config, ModelConfig
from pqt_jax.models.rotary import Rotary, frequencies

TENSOR = "rope_freqs.weight"
_TOLERANCE = 1e-4  # relative; others may compute them in another way


def divisors(config: ModelConfig) -> np.ndarray | None:
    """float32[half the width of a head], or None if positions are not scaled as in Llama 3."""
    if not isinstance(config, Llama2Config) or config.rope_scaling != "llama3":
        return None
    half = config.head_width // 2
    plain = frequencies(Rotary(config.rope_theta), half)
    return np.asarray(plain / frequencies(config.rotary, half), np.float32)


def read_scaling(file: GGUF, config: ModelConfig) -> ModelConfig:
    """The configuration of a file with the scaling that its tensor says.

    Args:
      file: from `gguf_reader.read`.
      config: from `gguf_config.from_metadata`.

    Raises:
      InputError: if the tensor is not one of Llama 3.
    """
    if TENSOR not in file.tensors or not isinstance(config, Llama2Config):
        return config
    code, shape, _ = file.tensors[TENSOR]
    size = gguf_tensors.size(TensorType.F32, shape)
    if code == TensorType.F32 and shape == (config.head_width // 2,) and config.rope_factor == 1:
        data = gguf_reader.read_data(file, TENSOR, size)
        found = gguf_tensors.decode(TensorType.F32, data, shape)
        fields = {"rope_factor": float(found.max())} | gguf_config.find_own(file)
        length = int(fields.pop("rope_original_length", Rotary.original_length))
        scaled = dataclasses.replace(
            config, rope_scaling="llama3", rope_original_length=length, **fields
        )
        expected = divisors(scaled)
        if expected is not None and np.allclose(found, expected, rtol=_TOLERANCE, atol=0):
            return scaled
    raise InputError(
        f"{file.path}: {TENSOR} does not scale positions as Llama 3; give the file of a model that "
        "does, or has no such tensor"
    )
