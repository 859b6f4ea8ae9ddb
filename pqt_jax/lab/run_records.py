# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What is measured of the runs of a sweep, and the record that becomes a row of its table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.interchange import files
from pqt_jax.lab import outcomes, rounded_weights
from pqt_jax.lab.sweep_config import SweepOptions
from pqt_jax.training import sharpness
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.loss import cross_entropy
from pqt_jax.training.run import metrics
from pqt_jax.transform import bit_state


def make_sharpness(
    graph: nnx.GraphDef, tokens: jax.Array, options: SweepOptions
) -> Callable[[Any], dict[str, jax.Array]]:
    """The measurement of sharpness, for many runs at once. Weights are not sampled.

    Args:
      graph: the structure of the model.
      tokens: int32[B, T + 1], fixed windows of held-out text.
      options: the sweep's options.

    Returns:
      Parameters of all runs → {"sharpness": float32[runs]}, in percent; with
      "sharpness_of_weights" if `options.rho` is positive.
    """
    search = {name: getattr(options, name) for name in ("epsilon", "maximizer", "iterations")}

    def measure_run(params):
        results = {"sharpness": sharpness.model_sharpness(graph, params, tokens, **search)}
        if options.rho:
            bits, weights = nnx.split_state(params, bit_state.BitParam, ...)

            def loss(weights):
                model = nnx.merge(graph, nnx.merge_state(bits, weights))
                return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])

            rise = sharpness.weight_sharpness(loss, weights, rho=options.rho)
            results["sharpness_of_weights"] = rise
        return results

    return jax.jit(jax.vmap(measure_run))


def make_held_out_losses(
    config: RunConfig, graph: nnx.GraphDef, batches: jax.Array, names: Sequence[str]
) -> Callable[[Any], dict[str, jax.Array]]:
    """The evaluation of weights as they are and rounded, for many runs at once.

    Args:
      config: the arm's configuration.
      graph: the structure of the model.
      batches: int32[batches, B, T + 1], held-out text.
      names: of the weights, `rounded_weights`.

    Returns:
      Parameters of all runs → {name: float32[runs]}, in nats per token. There is no "mixed" where
      the method learns no bits.
    """
    rounding = {name: rounded_weights.make_rounding(config, name) for name in names}

    def evaluate_run(params):
        rounded = {name: function(params) for name, function in rounding.items() if function}

        def evaluate_batch(batch):
            def loss(weights):
                model = nnx.merge(graph, nnx.merge_state(params, weights))
                return cross_entropy(model(batch[:, :-1]), batch[:, 1:])

            return {name: loss(weights) for name, weights in rounded.items()}

        return jax.tree.map(jnp.mean, jax.lax.map(evaluate_batch, batches))

    return jax.jit(jax.vmap(evaluate_run))


def make_record(
    steps: Mapping[str, np.ndarray],
    results: dict[str, Any],
    stored_bits: Mapping[str, float | None],
    unigram_loss: float,
    config: RunConfig,
    options: SweepOptions,
) -> metrics.Record:
    """The record of one run, without the fields that name the run.

    Args:
      steps: metrics of every step, {name: [steps]}: loss, in_a_row, and bits_mean if bit-widths are
        learned.
      results: "skipped", the number of skipped steps; "held_out_losses", as
        `make_held_out_losses` returns them; "sharpness", step → what `make_sharpness` returns.
      stored_bits: {name of weights by the learned bits: `rounded_weights.stored_bits`}.
      unigram_loss: from `outcomes.unigram_loss`.
      config: the arm's configuration.
      options: the sweep's options.
    """
    losses = steps["loss"].astype(np.float64)
    diverged_at = outcomes.find_divergence(
        losses,
        steps["in_a_row"].tolist(),
        margin=options.margin,
        window=options.window,
        skips=config.watch.skips,
    )
    spikes = outcomes.count_spikes(
        losses, threshold=options.spike_score, window=options.spike_window
    )
    final_loss = outcomes.final_loss(losses)
    recorded = losses[options.record_every - 1 :: options.record_every]
    bits_mean = steps["bits_mean"][-1] if "bits_mean" in steps else None
    return {
        "losses": [files.replace_nonfinite(round(float(loss), 5)) for loss in recorded],
        "first_loss": _as_json(losses[0]),
        "final_loss": _as_json(final_loss),
        "outcome": outcomes.classify_run(diverged_at, final_loss, unigram_loss),
        "diverged_at": diverged_at,
        "spikes": spikes,
        "skipped": int(results["skipped"]),
        "bits_mean": None if bits_mean is None else _as_json(bits_mean),
        "stored_bits": dict(stored_bits),
        "held_out_losses": {name: _as_json(x) for name, x in results["held_out_losses"].items()},
        **_sharpness_series(results["sharpness"]),
    }


def _sharpness_series(by_step: dict[int, dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """{step: {name: value}} → {name: [[step, value], …]}."""
    names = next(iter(by_step.values()), {})
    return {
        name: [[step, _as_json(values[name])] for step, values in by_step.items()] for name in names
    }


def _as_json(value: Any) -> float | None:
    return files.replace_nonfinite(float(value))
