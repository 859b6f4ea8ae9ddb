# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The cost of training: FLOPs of a token, by a formula, and exact bytes on each device.

    forward    2 · (weights of all kernels, the head's included)
               + 4 · T · num_heads · (width of a head) · num_layers
    training   3 · forward

The second term counts the two products of attention, of T queries and T keys each. They are not
halved for causality: that is the convention of PaLM's appendix B, so that model FLOPs utilization
(MFU) compares with other reports. Model FLOPs count matrix products alone, without norms, softmax,
sampling and the optimizer, and without what rematerialization computes again.

Source: Chowdhery et al., arXiv 2204.02311 (2022).
"""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from pqt_jax.models import ModelConfig, get_spec
from pqt_jax.transform import bit_state

# Peak FLOP/s of dense products in bfloat16 with sums in float32, by JAX's name of the device: data
# sheets of NVIDIA (half of what they say "with sparsity") and Google (per chip). A part of a GPU
# (MIG) has another name, and so no peak.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class StateBytes(NamedTuple):
    """Bytes of a training state on each device, and of the gradients during a step.

    Attributes:
      weights: the weights, without bit-widths.
      gradients: the gradients of weights and bit-widths.
      moments: the optimizer's moments of both, and its counters.
      bits: the bit-widths.
    """

    weights: int
    gradients: int
    moments: int
    bits: int


def forward_flops(model: ModelConfig, length: int) -> int:
    """Model FLOPs of one token, forward.

    Example:
      >>> from pqt_jax.models import GPT2Config
      >>> forward_flops(GPT2Config(256, 64, num_layers=2, num_heads=4, d_ff=256), length=128)
      294912

    Args:
      model: the model's configuration.
      length: T, the number of tokens in a sequence.

    Returns:
      FLOPs; a multiplication and an addition count as two.
    """
    d, heads = model.d_model, model.num_heads * model.head_width
    mlp = get_spec(model).mlp_kernels * d * model.d_ff
    attention = 2 * d * heads + 2 * d * model.head_width * model.kv_heads  # q and out; k and v
    head = d * model.vocab_size  # tied or not
    kernels = model.num_layers * (attention + mlp) + head
    return 2 * kernels + 4 * length * heads * model.num_layers


def training_flops(model: ModelConfig, length: int) -> int:
    """Model FLOPs of one token, forward and backward."""
    return 3 * forward_flops(model, length)


def peak_flops(device_kind: str) -> float | None:
    """The peak of a device in bfloat16, in FLOP/s; None for devices not in `PEAK_FLOPS`.

    Example:
      >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
      (197000000000000.0, None)
    """
    return PEAK_FLOPS.get(device_kind)


def speed(tokens_per_s: float, flops: int, devices: int, device_kind: str) -> dict[str, float]:
    """The speed of each device, as tokens per second and as a share of its peak FLOP/s.

    Example:
      >>> speed(8e5, 10**9, devices=8, device_kind="NVIDIA A100-SXM4-80GB")
      {'tokens_per_s_per_device': 100000.0, 'mfu': 0.3205}

    Args:
      tokens_per_s: tokens per second of all devices together.
      flops: model FLOPs of one token, from `training_flops`.
      devices: number of devices.
      device_kind: the name of the devices in JAX.

    Returns:
      Fields of a record of metrics; mfu, from 0 to 1, where the peak is known.
    """
    rate = tokens_per_s / devices
    peak = peak_flops(device_kind)
    known = {} if peak is None else {"mfu": round(rate * flops / peak, 4)}
    return {"tokens_per_s_per_device": round(rate, 1), **known}


def device_bytes(tree: Any) -> int:
    """The bytes that the arrays of a tree take on each device.

    Args:
      tree: pytree of arrays or `ShapeDtypeStruct`s. An array without a sharding is counted whole.
    """
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def state_bytes(state: Any) -> StateBytes:
    """The bytes that a training state takes on each device.

    Args:
      state: from `state.abstract_state` or `state.init_state`.
    """
    weights = device_bytes(bit_state.weights(state.params))
    params = device_bytes(state.params)
    moments = device_bytes((state.opt_state, state.step))
    return StateBytes(weights=weights, gradients=params, moments=moments, bits=params - weights)


def device_memory(device: Any) -> int:
    """Bytes of memory of a device; for a CPU, of the machine."""
    stats = device.memory_stats() or {}  # None on a CPU
    return stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
