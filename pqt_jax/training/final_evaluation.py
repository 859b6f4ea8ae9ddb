# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The table at the end of a training: the loss of the master weights, and of fewer bits.

Every evaluation is deterministic: no noise, the same batches. Casts are block-scaled.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from pqt_jax.analysis import load
from pqt_jax.console import format_row
from pqt_jax.models import document_mask, partitioning
from pqt_jax.numerics import bit_width
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.quantization import sizes
from pqt_jax.quantization.quantize import Plan
from pqt_jax.training import loss as losses
from pqt_jax.training.config import schema
from pqt_jax.training.config.schema import Config
from pqt_jax.training.step import Parts
from pqt_jax.transform import diffq
from pqt_jax.transform.bit_state import (
    are_learned,
    diffq_options,
    logits_of,
    method_widths,
    weights,
)
from pqt_jax.transform.tree_paths import paths_and_leaves

ROWS = ("master", "bf16", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1", "mixed")
LABELS = {name: load.LABELS[name] for name in ROWS}

Loss = Callable[[nnx.State], float]


def mean_loss(
    graph: nnx.GraphDef, end: int | None = None, parts: Parts = Parts()
) -> Callable[[nnx.State, Any], jax.Array]:
    """The loss of the bare model on fixed batches, with no more in memory than a training step has.

    Args:
      graph: the model's structure.
      end: as for `step.make_train_step`.
      parts: how its steps are cut, and so are the batches here.

    Returns:
      A jitted function, `(params, int[N, B, T + 1]) -> nats per token`, the mean over all targets
      that count in any of the batches.
    """

    @jax.jit
    def mean_loss(params, batches):
        count = math.gcd(parts.microbatches, batches.shape[1])  # of a short text, it has fewer
        cut = jax.vmap(lambda batch: losses.parts_of(batch, count))(batches)
        cut = cut.reshape(-1, *cut.shape[2:])
        options = {"chunk": parts.loss_chunk, "end": end}
        options["each"] = document_mask.count(batches, end, len(cut))

        def add(total, tokens):
            own = losses.of_model(graph, params, tokens.astype(jnp.int32), **options)
            return total + own, None

        total, _ = lax.scan(add, jnp.float32(0), cut)
        return total / len(cut)

    return mean_loss


def make_loss(
    graph: nnx.GraphDef, batches: Any, end: int | None = None, parts: Parts = Parts()
) -> Loss:
    """`mean_loss` on some batches as a function of the parameters; compiled once, when called."""
    mean = mean_loss(graph, end, parts)
    return lambda params: float(mean(params, batches))


def table(
    config: Config, loss: Loss, params: nnx.State, mesh: Mesh | None = None
) -> dict[str, Any]:
    """The validation loss of the weights in each format.

    Args:
      config: its rules say which parameters are quantized, whatever the method of training.
      loss: from `make_loss`.
      params: the trained parameters.
      mesh: where they are.

    Returns:
      Nats per token under the keys of `LABELS`; "mean_bits", the mean b_t; "formats", from
      `format_shares`; and "method". "mixed", "mean_bits" and "formats" are None where no bits were
      learned, the latter two also where a bit-width is not finite. For DiffQ "mixed" is its own
      quantization, and "size_mb", what that takes (`diffq.sizes_of`), stands for "formats".
    """
    rules = schema.quantization_rules(config)

    def loss_of(name: str) -> float:
        rounded = load.weights_in(config, params, rules, name)
        return loss(nnx.merge_state(params, rounded))

    learned = are_learned(params)
    found: dict[str, Any] = {"method": config.method}
    found |= {name: loss_of(name) if name != "mixed" or learned else None for name in ROWS}
    found |= {"mean_bits": None, "formats": None}
    if config.method == "diffq":
        found["size_mb"] = None
    if learned:
        mean = float(bit_width.statistics(method_widths(config, params))["mean"])
        if math.isfinite(mean):  # a bit-width that is NaN has no format
            found["mean_bits"] = mean
            if config.method == "diffq":
                logits = partitioning.whole(logits_of(params), mesh)
                held = diffq.sizes_of(weights(params), logits, diffq_options(config))
                found["size_mb"] = sizes.total_size(held.values()).bits / diffq.MB
            else:
                plan = load.plan_for(params, rules, "mixed")
                index = partitioning.whole(
                    {path: given.index for path, given in plan.items()}, mesh
                )
                here = {path: given._replace(index=index[path]) for path, given in plan.items()}
                found["formats"] = format_shares(here, params)
    return found


def format_shares(plan: Plan, params: nnx.State) -> dict[str, float]:
    """The share of the quantized weights that each format carries.

    Args:
      plan: for the learned mixture.
      params: the trained parameters.

    Returns:
      Name of the format → share, from the narrowest on; formats that carry nothing are left out.
    """
    shapes = paths_and_leaves(weights(params))
    counts = [
        sizes.count_by_format(shapes[path].shape, assigned) for path, assigned in plan.items()
    ]
    held = {fmt.name: sum(count.get(fmt.name, 0) for count in counts) for fmt in MIXED_FORMATS}
    return {name: n / sum(held.values()) for name, n in held.items() if n}


def format_table(losses: Mapping[str, Any]) -> str:
    """The table as text, one line for each format with its distance from the master weights.

    Args:
      losses: from `table`, or from `summary.json`, where null stands for what is not a number.
    """
    number = lambda name: math.nan if losses[name] is None else losses[name]  # noqa: E731
    labels = {name: load.label(losses["method"], name) for name in ROWS}
    if schema.METHODS[losses["method"]] == "none":
        del labels["mixed"]
    elif losses.get("size_mb") is not None:
        labels["mixed"] += f" ({number('mean_bits'):.2f}: {losses['size_mb']:.4g} MB)"
    elif losses["formats"] is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in losses["formats"].items())
        labels["mixed"] += f" ({number('mean_bits'):.2f}: {shares.replace('%', ' %')})"
    widths = (max(23, *map(len, labels.values())), -10, -12)
    lines = [format_row(["weights", "nats/token", "vs master"], widths)]
    for name, label in labels.items():
        distance = round(number(name) - number("master"), 4) + 0.0  # no -0.0000
        lines.append(format_row([label, f"{number(name):.4f}", f"{distance:+.4f}"], widths))
    return "\n".join(lines)
