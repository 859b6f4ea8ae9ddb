# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train the runs of a work unit side by side, measure them, and make their records.

    saved state → steps of the arm's programs, a state saved now and then → records

The same runs in the same program give the same bits, whether they went on from a saved state or
not. With another number of runs in the program (`at_once`), sums may be taken in another order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.data import pipeline
from pqt_jax.data.source import Text
from pqt_jax.lab import outcomes, rounded_weights, run_records
from pqt_jax.lab.programs import Programs, make_graph
from pqt_jax.lab.saved_states import Content, SavedStates
from pqt_jax.lab.sweep_arms import Arm, RateAndSeed
from pqt_jax.lab.sweep_config import SweepOptions
from pqt_jax.training import methods
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import metrics
from pqt_jax.training.state import TrainState

Train = Callable[[Sequence[RateAndSeed], SavedStates, Callable[[int], None]], list[metrics.Record]]
_SAVE_SECONDS = 60.0  # of work that is lost at most when the process is killed
_STEP_METRICS = ("loss", "in_a_row", "bits_mean")  # the metrics of a step that records need
_FETCH_EVERY = 50  # steps; fetching metrics waits for the device
_UNIGRAM_TOKENS = 10**7  # tokens from which frequencies are counted


def check(arm: Arm) -> None:
    """Trace a forward pass of an arm's model, so that errors of its products are raised early."""
    params = nnx.eval_shape(lambda: nnx.state(methods.make_model(arm.config, nnx.Rngs(0))))
    tokens = jax.ShapeDtypeStruct((1, arm.config.data.length), jnp.int32)
    jax.eval_shape(lambda p, x: nnx.merge(make_graph(arm), p)(x), params, tokens)


@dataclass
class _Progress:
    """How far the runs of a unit are.

    Attributes:
      state: the states of the runs.
      steps: the number of steps taken.
      fetched: metrics of the steps, {name: [some steps, runs]}, which follow one another.
      on_device: metrics of the last steps, {name: [runs]} of each.
      sharpness: number of steps → {name: [runs]}.
    """

    state: TrainState
    steps: int = 0
    fetched: list[dict[str, np.ndarray]] = field(default_factory=list)
    on_device: list[dict[str, jax.Array]] = field(default_factory=list)
    sharpness: dict[int, Any] = field(default_factory=dict)

    def take(self, step: Any, batch: np.ndarray, keys: jax.Array) -> None:
        """Take a step."""
        self.state, measured = step(self.state, batch, keys)
        self.steps += 1
        self.on_device.append({name: measured[name] for name in _STEP_METRICS if name in measured})
        if len(self.on_device) == _FETCH_EVERY:
            self._fetch()

    def step_metrics(self) -> dict[str, np.ndarray]:
        """Metrics of all steps, {name: [steps, runs]}."""
        self._fetch()
        names = self.fetched[0]
        return {name: np.concatenate([some[name] for some in self.fetched]) for name in names}

    def pack(self) -> Content:
        """All of it as NumPy arrays, for `unpack`."""
        leaves = jax.tree.leaves(jax.device_get(self.state))
        return {
            "state": {str(i): leaf for i, leaf in enumerate(leaves)},
            "step_metrics": self.step_metrics(),
            "sharpness": {str(n): jax.device_get(of) for n, of in self.sharpness.items()},
        }

    def unpack(self, steps: int, content: Content) -> None:
        """Go on from what `pack` returned after a number of steps."""
        leaves = [jnp.asarray(content["state"][str(i)]) for i in range(len(content["state"]))]
        self.state = jax.tree.unflatten(jax.tree.structure(self.state), leaves)
        self.steps, self.fetched = steps, [content["step_metrics"]]
        self.sharpness = {int(n): of for n, of in content["sharpness"].items()}

    def _fetch(self) -> None:
        if self.on_device:
            steps, self.on_device = jax.device_get(self.on_device), []
            self.fetched.append({name: np.stack([s[name] for s in steps]) for name in steps[0]})


def make_train(arm: Arm, programs: Programs, text: Text, options: SweepOptions) -> Train:
    """The training of runs of an arm.

    Args:
      arm: the way to train.
      programs: those of the arm.
      text: the text that all runs train on.
      options: the sweep's options: what is measured, and the definitions of outcomes.

    Returns:
      A function `(rates_and_seeds, saved, advance) -> records`. It goes on from the last saved
      state and calls `advance(number)` after steps, saved ones among them. Calls with the same
      number of runs compile once. Each run has a record with the fields:

      - arm, learning_rate, seed, steps;
      - losses, of every `record_every`-th step; first_loss, final_loss, unigram_loss;
      - outcome, diverged_at, spikes, skipped;
      - held_out_losses, of the weights that `sweep.weights` names;
      - bits_mean, the mean bit-width at the end, or None if bit-widths are not learned;
      - stored_bits, of the weights that `sweep.weights` names with mixed: bits of a stored weight,
        or None where no bits are learned;
      - sharpness and sharpness_of_weights, if they are measured: lists of [step, percent].
    """
    config, graph = arm.config, make_graph(arm)
    held_out = jnp.asarray(_held_out_batches(config, text), jnp.int32)
    measure_sharpness = run_records.make_sharpness(graph, held_out[0], options)
    evaluate = run_records.make_held_out_losses(config, graph, held_out, options.weights)
    unigram_loss = outcomes.unigram_loss(text.train[:_UNIGRAM_TOKENS])

    def train(
        rates_and_seeds: Sequence[RateAndSeed], saved: SavedStates, advance: Callable[[int], None]
    ) -> list[metrics.Record]:
        steps, content = saved.read_last()
        state, keys = programs.begin(rates_and_seeds)
        progress = _Progress(state)
        if steps:
            progress.unpack(steps, content)
            advance(steps)
        seeds, saved_at = np.array([seed for _, seed in rates_and_seeds]), time.monotonic()
        for batch in _train_batches(config, text, seeds, first=steps):
            if options.sharpness_every and progress.steps % options.sharpness_every == 0:
                progress.sharpness[progress.steps] = measure_sharpness(progress.state.params)
            progress.take(programs.step_of(progress.steps + 1), batch, keys)
            advance(1)
            is_due = progress.steps in saved.shared or time.monotonic() > saved_at + _SAVE_SECONDS
            if is_due and progress.steps < config.steps:
                saved.write(progress.steps, progress.pack())
                saved_at = time.monotonic()
        results = {
            "skipped": progress.state.skipped,
            "held_out_losses": evaluate(progress.state.params),
            "sharpness": progress.sharpness,
        }
        results, step_metrics = jax.device_get(results), progress.step_metrics()

        def record(i: int, rate: float, seed: int) -> metrics.Record:
            """The record of run i."""
            params = jax.tree.map(lambda x: x[i], progress.state.params)
            mixed = filter(rounded_weights.is_mixed, options.weights)
            measured = run_records.make_record(
                {name: values[:, i] for name, values in step_metrics.items()},
                jax.tree.map(lambda x: x[i], results),
                {name: rounded_weights.stored_bits(config, params, name) for name in mixed},
                unigram_loss,
                config,
                options,
            )
            of_run = {"arm": arm.name, "steps": config.steps, "unigram_loss": unigram_loss}
            return of_run | {"learning_rate": rate, "seed": seed} | measured

        return [record(i, rate, seed) for i, (rate, seed) in enumerate(rates_and_seeds)]

    return train


def _train_batches(
    config: RunConfig, text: Text, seeds: np.ndarray, first: int
) -> Iterator[np.ndarray]:
    """For each step after the first ones the tokens of all runs, [runs, B, T + 1].

    Equal seeds have equal tokens.
    """
    distinct, run_to_seed = np.unique(seeds, return_inverse=True)
    options: dict[str, Any] = {"length": config.data.length, "batch": config.data.batch}
    streams = [
        pipeline.train_batches(text.train, seed=seed, first=first, **options)
        for seed in distinct.tolist()
    ]
    for _ in range(first, config.steps):
        yield np.stack([next(stream) for stream in streams])[run_to_seed]


def _held_out_batches(config: RunConfig, text: Text) -> Any:
    data, count = config.data, config.log.validation_batches
    return pipeline.validation_batches(
        text.validation, length=data.length, batch=data.batch, count=count
    )
