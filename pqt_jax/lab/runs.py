# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train many runs of one arm side by side, in one program: seeds and learning rates under vmap.

    seed → weights, order of the data, noise        learning rate → factor of the updates

The step is the trainer's. Its optimizer uses the learning rate of the config, and each run
multiplies the updates of its weights by the ratio of its own rate to that one. AdamW and Adam-mini
are linear in the rate, weight decay included, so a run equals a training run at its rate up to
rounding. The learning rates of the warm-up and at the end scale with it. The learning rate of
bit-widths is not scaled.

The same runs in the same program give the same bits. With another number of runs in the program
(`at_once`), sums may be taken in another order.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pqt_jax.data import pipeline
from pqt_jax.data.source import Text
from pqt_jax.lab import outcomes, run_records
from pqt_jax.lab.simulate import simulate
from pqt_jax.lab.sweep_arms import Arm, RateAndSeed
from pqt_jax.lab.sweep_config import SweepOptions
from pqt_jax.training import methods
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.phases import Phase, list_phases, phase_index
from pqt_jax.training.run import metrics
from pqt_jax.training.state import TrainState
from pqt_jax.training.step import build_train_step
from pqt_jax.transform.tree_paths import BITS, map_paths

Train = Callable[[Sequence[RateAndSeed], Callable[[], None]], list[metrics.Record]]
_STEP_METRICS = ("loss", "in_a_row", "bits_mean")  # the metrics of a step that records need
_FETCH_EVERY = 50  # steps; fetching metrics waits for the device
_UNIGRAM_TOKENS = 10**7  # tokens from which frequencies are counted


class _ScaledState(NamedTuple):
    factor: jax.Array
    inner: Any


def scale_updates(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer whose updates of weights are multiplied by a factor in its state.

    The factor is 1 in the initial state. Updates of bit-widths are not multiplied.
    """

    def init(params):
        return _ScaledState(jnp.float32(1), optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, inner = optimizer.update(updates, state.inner, params)

        def scale(path, leaf):
            if BITS in path.split("/"):
                return leaf
            return (state.factor * leaf).astype(leaf.dtype)

        return map_paths(scale, updates), _ScaledState(state.factor, inner)

    return optax.GradientTransformation(init, update)


def make_graph(arm: Arm, config: RunConfig | None = None) -> nnx.GraphDef:
    """The structure of an arm's model, with reduced operands if the arm has any.

    Args:
      arm: the arm.
      config: the configuration of a phase; None for the arm's own.
    """
    model = nnx.eval_shape(lambda: methods.make_model(config or arm.config, nnx.Rngs(0)))
    return nnx.split(simulate(model, arm.rules) if arm.rules else model)[0]


def check(arm: Arm) -> None:
    """Trace a forward pass of an arm's model, so that errors of its products are raised early."""
    params = nnx.eval_shape(lambda: nnx.state(methods.make_model(arm.config, nnx.Rngs(0))))
    tokens = jax.ShapeDtypeStruct((1, arm.config.data.length), jnp.int32)
    jax.eval_shape(lambda p, x: nnx.merge(make_graph(arm), p)(x), params, tokens)


def make_train(arm: Arm, text: Text, options: SweepOptions) -> Train:
    """The training of runs of an arm.

    Args:
      arm: the way to train.
      text: the text that all runs train on.
      options: the sweep's options: what is measured, and the definitions of outcomes.

    Returns:
      A function `(rates_and_seeds, advance) -> records`. It calls `advance()` after each step.
      Calls with the same number of runs compile once. Each run has a record with the fields:

      - arm, learning_rate, seed, steps;
      - losses, of every `record_every`-th step; first_loss, final_loss, unigram_loss;
      - outcome, diverged_at, spikes, skipped;
      - held_out_losses, of the weights that `sweep.weights` names;
      - bits_mean, the mean bit-width at the end, or None if bit-widths are not learned;
      - sharpness and sharpness_of_weights, if they are measured: lists of [step, percent].
    """
    config, graph = arm.config, make_graph(arm)
    held_out = jnp.asarray(_held_out_batches(config, text), jnp.int32)
    begin, step_of = _begin_and_steps(arm)
    measure_sharpness = run_records.make_sharpness(graph, held_out[0], options)
    evaluate = run_records.make_held_out_losses(config, graph, held_out, options.weights)
    unigram_loss = outcomes.unigram_loss(text.train[:_UNIGRAM_TOKENS])

    def train(
        rates_and_seeds: Sequence[RateAndSeed], advance: Callable[[], None]
    ) -> list[metrics.Record]:
        rates = np.array([rate for rate, _ in rates_and_seeds])
        seeds = np.array([seed for _, seed in rates_and_seeds])
        state, keys = begin(rates, seeds)
        step_metrics, on_device, sharpness = [], [], {}
        for number, batch in enumerate(_train_batches(config, text, seeds)):
            step = step_of(number + 1)
            if options.sharpness_every and number % options.sharpness_every == 0:
                sharpness[number] = measure_sharpness(state.params)
            state, measured = step(state, batch, keys)
            on_device.append({name: measured[name] for name in _STEP_METRICS if name in measured})
            if len(on_device) == _FETCH_EVERY:
                step_metrics += jax.device_get(on_device)
                on_device = []
            advance()
        step_metrics += jax.device_get(on_device)
        results = {"skipped": state.skipped, "held_out_losses": evaluate(state.params)}
        results = jax.device_get({**results, "sharpness": sharpness})
        return [
            {
                "arm": arm.name,
                "steps": config.steps,
                "unigram_loss": unigram_loss,
                "learning_rate": rate,
                "seed": seed,
                **run_records.make_record(
                    _select_run(step_metrics, i),
                    _select_run(results, i),
                    unigram_loss,
                    config,
                    options,
                ),
            }
            for i, (rate, seed) in enumerate(zip(rates.tolist(), seeds.tolist(), strict=True))
        ]

    return train


def _select_run(tree: Any, i: int) -> Any:
    """Entry i of every array in a tree of arrays over runs."""
    return jax.tree.map(lambda x: x[i], tree)


def _begin_and_steps(arm: Arm) -> tuple[Callable[..., Any], Callable[[int], Any]]:
    """Two functions: `(rates, seeds) -> (states, keys)`, and the number of a step → the step."""
    config = arm.config
    optimizer, phases = scale_updates(make_optimizer(config)), list_phases(config)

    def make_step(phase: Phase) -> Any:
        graph = make_graph(arm, phase.config)
        step: Any = build_train_step(config, graph, optimizer, phase=phase)
        return jax.jit(jax.vmap(step.__wrapped__), donate_argnums=0)

    steps = [make_step(phase) for phase in phases]
    initialize = jax.jit(jax.vmap(_initializer(config, optimizer)))

    def begin(rates: np.ndarray, seeds: np.ndarray) -> tuple[TrainState, jax.Array]:
        factors = jnp.asarray(rates / config.optimizer.learning_rate, jnp.float32)
        return initialize(jnp.asarray(seeds), factors), jax.vmap(jax.random.key)(jnp.asarray(seeds))

    return begin, lambda number: steps[phase_index(phases, number)]


def _train_batches(config: RunConfig, text: Text, seeds: np.ndarray) -> Iterator[np.ndarray]:
    """For each step the tokens of all runs, [runs, B, T + 1]. Equal seeds have equal tokens."""
    distinct, run_to_seed = np.unique(seeds, return_inverse=True)
    options: dict[str, Any] = {"length": config.data.length, "batch": config.data.batch}
    streams = [
        pipeline.train_batches(text.train, seed=seed, **options) for seed in distinct.tolist()
    ]
    for _ in range(config.steps):
        yield np.stack([next(stream) for stream in streams])[run_to_seed]


def _held_out_batches(config: RunConfig, text: Text) -> Any:
    data, count = config.data, config.log.validation_batches
    return pipeline.validation_batches(
        text.validation, length=data.length, batch=data.batch, count=count
    )


def _initializer(
    config: RunConfig, optimizer: optax.GradientTransformation
) -> Callable[[Any, Any], TrainState]:
    """A function (seed, factor) → the state before the first step, as in a training run."""

    def init(seed, factor):
        params = nnx.state(methods.make_model(config, nnx.Rngs(jax.random.key(seed))))
        zero = jnp.zeros((), jnp.int32)
        opt_state: Any = optimizer.init(params)
        return TrainState(params, opt_state._replace(factor=factor), zero, zero, zero)

    return init
