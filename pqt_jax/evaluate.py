# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Validation: the loss of the master weights, and of the same weights in few bits.

Every evaluation is deterministic: no noise, the same batches. Casts are block-scaled.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from pqt_jax import bitwidth
from pqt_jax import config as configs
from pqt_jax.config import Config
from pqt_jax.formats import BF16, E2M1, E3M2, E4M3
from pqt_jax.loss import cross_entropy
from pqt_jax.quantize import quantize
from pqt_jax.step import bit_widths, collect_bits, weights
from pqt_jax.transform import param_transform

FORMATS = {"bf16": BF16, "fp8_e4m3": E4M3, "fp6_e3m2": E3M2, "fp4_e2m1": E2M1}
LABELS = {
    "master": "master weights",
    "bf16": "BF16",
    "fp8_e4m3": "FP8 E4M3",
    "fp6_e3m2": "FP6 E3M2",
    "fp4_e2m1": "FP4 E2M1",
    "mixed": "learned mixed bits",
}

Loss = Callable[[nnx.State], float]


def make_loss(graph: nnx.GraphDef, batches: np.ndarray) -> Loss:
    """The validation loss as a function of the parameters.

    Args:
      graph: the model's structure.
      batches: uint8[N, B, T + 1], fixed.

    Returns:
      `params -> nats per token` of the bare model; compiled once, at the first call.
    """

    @jax.jit
    def mean_loss(params, batches):
        model = nnx.merge(graph, params)

        def add(total, batch):
            tokens = batch.astype(jnp.int32)
            return total + cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]), None

        total, _ = lax.scan(add, jnp.float32(0), batches)
        return total / batches.shape[0]

    return lambda params: float(mean_loss(params, batches))


def table(config: Config, loss: Loss, params: nnx.State) -> dict[str, float | None]:
    """The validation loss of the weights in each format.

    Args:
      config: its rules say which parameters are quantized, whatever the method of training.
      loss: from `make_loss`.
      params: the trained parameters.

    Returns:
      Nats per token under the keys of `LABELS`, and "mean_bits", the mean b_t. "mixed" and
      "mean_bits" are None where no bits were learned.
    """
    rules = configs.quantization_rules(config)

    def loss_of(function: Callable[[Any], Any]) -> float:
        rounded = jax.jit(function)(weights(params))
        # Back to the parameters' dtype, which holds every format: one compiled loss serves all.
        same = jax.tree.map(lambda q, w: q.astype(w.dtype), rounded, weights(params))
        return loss(nnx.merge_state(params, same))

    losses: dict[str, float | None] = {"master": loss(params)}
    for name, fmt in FORMATS.items():
        losses[name] = loss_of(lambda w, fmt=fmt: quantize(w, rules, fmt))
    losses |= {"mixed": None, "mean_bits": None}
    if configs.rules(config):
        transform, bits = param_transform(configs.rules(config)), collect_bits(params)
        losses["mixed"] = loss_of(lambda w: transform.quantize(w, bits))
        mean = bitwidth.statistics(bit_widths(params, configs.rules(config)))["mean"]
        losses["mean_bits"] = float(mean)
    return losses


def format_table(losses: Mapping[str, Any]) -> str:
    """The table as text, one line for each format with its distance from the master weights."""
    lines = ["weights                nats/token   vs master"]
    for name, label in LABELS.items():
        if losses[name] is None:
            continue
        if name == "mixed":
            label += f" ({losses['mean_bits']:.2f})"
        lines.append(f"{label:<25}{losses[name]:8.4f}    {losses[name] - losses['master']:+8.4f}")
    return "\n".join(lines)
