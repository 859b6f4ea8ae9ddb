# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The table at the end of a run: the validation loss of the weights in each format.

Every evaluation is deterministic: the same batches, and no noise. Casts are block-scaled.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from pqt_jax.console import format_row
from pqt_jax.models import document_mask, partitioning
from pqt_jax.numerics import bit_width
from pqt_jax.numerics.formats import FORMATS, as_format
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.quantization import sizes
from pqt_jax.quantization.quantize import Plan, plan_uniform
from pqt_jax.training import named_formats
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.loss import model_loss, split_batch
from pqt_jax.training.methods import METHODS, get_method
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.training.phases import list_phases
from pqt_jax.training.step import StepSplit
from pqt_jax.transform.bit_state import has_bits, weights
from pqt_jax.transform.tree_paths import paths_and_leaves

ROWS = ("master", "bf16", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1", "mixed")
LABELS = {name: named_formats.LABELS[name] for name in ROWS}

Loss = Callable[[nnx.State], float]


def mean_loss(
    graph: nnx.GraphDef, end: int | None = None, split: StepSplit = StepSplit()
) -> Callable[[nnx.State, Any], jax.Array]:
    """The loss of the bare model on fixed batches, in no more memory than a training step takes.

    Args:
      graph: the model's structure.
      end: as for `step.build_train_step`.
      split: how training steps are split; the batches are split in the same way.

    Returns:
      A jitted function, `(params, int[N, B, T + 1]) -> nats per token`, the mean over all targets
      that count in any of the batches.
    """

    @jax.jit
    def mean_loss(params, batches):
        count = math.gcd(split.microbatches, batches.shape[1])  # a short text has fewer windows
        microbatches = jax.vmap(lambda batch: split_batch(batch, count))(batches)
        microbatches = microbatches.reshape(-1, *microbatches.shape[2:])
        targets = document_mask.count_targets(batches, end, len(microbatches))
        options = {"chunk": split.loss_chunk, "end": end, "targets_per_part": targets}

        def add(total, tokens):
            return total + model_loss(graph, params, tokens.astype(jnp.int32), **options), None

        total, _ = lax.scan(add, jnp.float32(0), microbatches)
        return total / len(microbatches)

    return mean_loss


def make_loss(
    graph: nnx.GraphDef, batches: Any, end: int | None = None, split: StepSplit = StepSplit()
) -> Loss:
    """`mean_loss` on fixed batches as a function of the parameters; the first call compiles it."""
    mean = mean_loss(graph, end, split)

    def loss(params: nnx.State) -> float:
        return float(mean(params, batches))

    return loss


def evaluate_formats(
    config: RunConfig, loss: Loss, params: nnx.State, mesh: Mesh | None = None
) -> dict[str, Any]:
    """The validation loss of the weights in each format.

    Args:
      config: its rules say which parameters are quantized, whatever the method of training.
      loss: from `make_loss`.
      params: the trained parameters.
      mesh: the mesh of the parameters; None for one device.

    Returns:
      Nats per token under the names in `LABELS`, and

      method: its name.
      mean_bits: the mean b_t; None where no bits were learned, or one is not finite.
      formats: from `format_shares`; None as mean_bits is, and where the method rounds by itself.
      size_mb: only where the method rounds by itself: megabytes of the rounded weights, or None.
      trained_format: the name of the format that the last phase rounds to; None if it does not.

      The trained format has a loss, also if it is none of `LABELS`. "mixed" is None where no bits
      were learned.
    """
    rules, method, trained = quantization_rules(config), get_method(config), _trained_format(config)

    def loss_of(name: str) -> float:
        if name == trained:
            plan = plan_uniform(weights(params), rules, name)
            rounded = named_formats.round_by_plan(params, plan)
        else:
            rounded = named_formats.round_to_format(config, params, rules, name)
        return loss(nnx.merge_state(params, rounded))

    learned = has_bits(params)
    result: dict[str, Any] = {"method": config.method}
    result |= {name: loss_of(name) if name != "mixed" or learned else None for name in ROWS}
    result |= {"mean_bits": None, "formats": None, "trained_format": trained}
    if trained is not None and trained not in ROWS:
        result[trained] = loss_of(trained)
    if method.size_mb is not None:
        result["size_mb"] = None
    if not learned:
        return result
    mean = float(bit_width.statistics(method.bit_widths(config, params))["mean"])
    if not math.isfinite(mean):  # a bit-width that is NaN has no format
        return result
    result["mean_bits"] = mean
    if method.size_mb is not None:
        result["size_mb"] = method.size_mb(config, params, mesh)
    else:
        plan = named_formats.make_plan(params, rules, "mixed")
        index = partitioning.fetch_whole({path: a.index for path, a in plan.items()}, mesh)
        on_host = {path: a._replace(index=index[path]) for path, a in plan.items()}
        result["formats"] = format_shares(on_host, params)
    return result


def rows_of(losses: Mapping[str, Any]) -> list[str]:
    """The names of the rows of a table, in order: `ROWS`, and the trained format before the last.

    Args:
      losses: from `evaluate_formats`, or from `summary.json`.
    """
    trained = losses.get("trained_format")
    extra = [trained] if trained is not None and trained not in ROWS else []
    return [*ROWS[:-1], *extra, ROWS[-1]]


def _trained_format(config: RunConfig) -> str | None:
    """The name of the format that the last phase rounds to, as commands take it; None for none."""
    last = list_phases(config)[-1].config
    if last.method != "ste":
        return None
    fmt = as_format(last.pqt.dtype)
    return next((name for name, named in FORMATS.items() if named == fmt), fmt.name)


def format_shares(plan: Plan, params: nnx.State) -> dict[str, float]:
    """The share of the quantized weights that each format carries.

    Args:
      plan: the plan of the learned formats.
      params: the trained parameters.

    Returns:
      Name of the format → share, from the narrowest format on, without formats that no block has.
    """
    shapes = paths_and_leaves(weights(params))
    counts = [
        sizes.count_by_format(shapes[path].shape, assigned) for path, assigned in plan.items()
    ]
    totals = {fmt.name: sum(count.get(fmt.name, 0) for count in counts) for fmt in MIXED_FORMATS}
    return {name: n / sum(totals.values()) for name, n in totals.items() if n}


def format_table(losses: Mapping[str, Any]) -> str:
    """The table as text, one line for each format with its distance from the master weights.

    Args:
      losses: from `evaluate_formats`, or from `summary.json`, in which null stands for NaN.
    """

    def number(name: str) -> float:
        return math.nan if losses[name] is None else losses[name]

    labels = {name: named_formats.format_label(losses["method"], name) for name in rows_of(losses)}
    if not METHODS[losses["method"]].learns_bits:
        del labels["mixed"]
    elif losses.get("size_mb") is not None:
        labels["mixed"] += f" ({number('mean_bits'):.2f}: {losses['size_mb']:.4g} MB)"
    elif losses["formats"] is not None:
        shares = [
            f"{fmt.label} {100 * losses['formats'][fmt.name]:.0f} %"
            for fmt in MIXED_FORMATS
            if fmt.name in losses["formats"]
        ]
        labels["mixed"] += f" ({number('mean_bits'):.2f}: {', '.join(shares)})"
    widths = (max(23, *map(len, labels.values())), -10, -12)
    lines = [format_row(["weights", "nats/token", "vs master"], widths)]
    for name, label in labels.items():
        distance = round(number(name) - number("master"), 4) + 0.0  # no -0.0000
        lines.append(format_row([label, f"{number(name):.4f}", f"{distance:+.4f}"], widths))
    return "\n".join(lines)
