# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Many runs of one arm, side by side in one program: seeds and learning rates under vmap.

    seed → weights, order of the data, noise        learning rate → factor of the updates

The step is the trainer's (`step.make_train_step`). Its optimizer has the config's learning rate,
and each run scales what it would do to the weights by its own rate over that one: AdamW and
Adam-mini are linear in the rate, decay included, so this is the trainer at that rate up to
rounding, with warm-up and final rate in proportion. Bit-widths have a rate of their own.

The same cells in the same program give the same bits. With others beside them (`at_once`) sums may
be taken in another order.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pqt_jax.analysis import load
from pqt_jax.data import pipeline
from pqt_jax.data.source import Text
from pqt_jax.interchange import files
from pqt_jax.lab import outcomes
from pqt_jax.lab.simulate import simulate
from pqt_jax.lab.sweep_config import Arm, RateAndSeed, SweepOptions
from pqt_jax.training import sharpness
from pqt_jax.training import state as states
from pqt_jax.training import step as steps
from pqt_jax.training.config import schema
from pqt_jax.training.config.schema import Config
from pqt_jax.training.loss import cross_entropy
from pqt_jax.training.run import metrics
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import BITS, map_paths

FORMATS = ("master", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1")  # of weights on held-out text
Train = Callable[[Sequence[RateAndSeed], Callable[[], None]], list[metrics.Record]]
_OF_STEP = ("loss", "in_a_row", "bits_mean")  # of what a step measures
_FETCH_EVERY = 50  # steps between waits for the device
_COUNTED = 10**7  # tokens whose frequencies are taken


class _Scaled(NamedTuple):
    factor: jax.Array
    inner: Any


def scaled(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with a factor in its state, by which updates of weights are multiplied."""

    def init(params):
        return _Scaled(jnp.float32(1), optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, inner = optimizer.update(updates, state.inner, params)
        of_weight = lambda path: BITS not in path.split("/")  # noqa: E731
        scale = lambda path, u: (state.factor * u).astype(u.dtype) if of_weight(path) else u  # noqa: E731
        return map_paths(scale, updates), _Scaled(state.factor, inner)

    return optax.GradientTransformation(init, update)


def structure(arm: Arm) -> nnx.GraphDef:
    """The model of an arm, its products reduced as the arm says, without its parameters."""
    model = nnx.eval_shape(lambda: bit_state.make_model(arm.config, nnx.Rngs(0)))
    return nnx.split(simulate(model, arm.rules) if arm.rules else model)[0]


def check(arm: Arm) -> None:
    """Raise what the arm's products and model would, by tracing a forward pass of them."""
    params = nnx.eval_shape(lambda: nnx.state(bit_state.make_model(arm.config, nnx.Rngs(0))))
    tokens = jax.ShapeDtypeStruct((1, arm.config.data.length), jnp.int32)
    jax.eval_shape(lambda p, x: nnx.merge(structure(arm), p)(x), params, tokens)


def make_train(arm: Arm, text: Text, sweep: SweepOptions) -> Train:
    """The training of any cells of an arm; what is compiled for so many is compiled once.

    Args:
      arm: the way to train.
      text: that runs train on.
      sweep: the section of the config: what is measured, and the definitions of outcomes.

    Returns:
      `(cells, advance) -> records`; `advance()` is called after each step. A record for each cell:
      arm, learning_rate, seed, steps; losses, of every `record_every`-th step; first_loss,
      final_loss, unigram_loss; outcome, diverged_at, spikes, skipped; held_out_losses, of the
      weights as they are ("master") and rounded to `FORMATS`; bits_mean, at the end, None without;
      sharpness and sharpness_of_weights, lists of [step, percent].
    """
    config, graph = arm.config, structure(arm)
    held_out = jnp.asarray(_held_out(config, text), jnp.int32)
    begin, step = _begin_and_step(config, graph)
    measure = _measurements(graph, held_out[0], sweep)
    evaluate = _held_out_losses(config, graph, held_out)
    unigram_loss = outcomes.unigram_loss(text.train[:_COUNTED])
    known = {"arm": arm.name, "steps": config.steps, "unigram_loss": unigram_loss}

    def train(cells: Sequence[RateAndSeed], advance: Callable[[], None]) -> list[metrics.Record]:
        rates, seeds = (np.array(some) for some in zip(*cells, strict=True))
        state, keys = begin(rates, seeds)
        seen, waiting, measured = [], [], {}
        for number, batch in enumerate(_batches(config, text, seeds)):
            if sweep.sharpness_every and number % sweep.sharpness_every == 0:
                measured[number] = measure(state.params)
            state, found = step(state, batch, keys)
            waiting.append({name: found[name] for name in _OF_STEP if name in found})
            if len(waiting) == _FETCH_EVERY:
                seen, waiting = seen + jax.device_get(waiting), []
            advance()
        seen += jax.device_get(waiting)
        ends = {"skipped": state.skipped, "held_out_losses": evaluate(state.params)}
        ends = jax.device_get(ends | {"measured": measured})
        of_run = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
        return [
            known
            | {"learning_rate": float(rate), "seed": int(seed)}
            | _record(of_run(seen, i), of_run(ends, i), unigram_loss, config, sweep)
            for i, (rate, seed) in enumerate(zip(rates, seeds, strict=True))
        ]

    return train


def _begin_and_step(
    config: Config, graph: nnx.GraphDef
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(rates, seeds) -> (states, keys)`, and the step of all runs."""
    optimizer = scaled(steps.make_optimizer(config))
    options = {"penalty": bit_state.make_penalty(config), "snap": bit_state.snap_step(config)}
    options |= {"parts": steps.parts_of(config), "outside": bit_state.outside(config)}
    step: Any = steps.make_train_step(graph, optimizer, schema.rules(config), **options)
    initialize = jax.jit(jax.vmap(_initializer(config, optimizer)))

    def begin(rates: np.ndarray, seeds: np.ndarray) -> tuple[states.TrainState, jax.Array]:
        factors = jnp.asarray(rates / config.optimizer.learning_rate, jnp.float32)
        return initialize(jnp.asarray(seeds), factors), jax.vmap(jax.random.key)(jnp.asarray(seeds))

    return begin, jax.jit(jax.vmap(step.__wrapped__), donate_argnums=0)


def _batches(config: Config, text: Text, seeds: np.ndarray) -> Iterator[np.ndarray]:
    """Tokens [runs, B, T + 1] of each step; of one seed the same."""
    distinct, place = np.unique(seeds, return_inverse=True)
    options: dict[str, Any] = {"length": config.data.length, "batch": config.data.batch}
    orders = [
        pipeline.train_batches(text.train, seed=seed, **options) for seed in distinct.tolist()
    ]
    for _ in range(config.steps):
        yield np.stack([next(order) for order in orders])[place]


def _held_out(config: Config, text: Text) -> Any:
    data, count = config.data, config.log.validation_batches
    return pipeline.validation_batches(
        text.validation, length=data.length, batch=data.batch, count=count
    )


def _initializer(
    config: Config, optimizer: optax.GradientTransformation
) -> Callable[[Any, Any], states.TrainState]:
    """(seed, factor) → the state before the first step, as the trainer has it for that seed."""

    def init(seed, factor):
        params = nnx.state(bit_state.make_model(config, nnx.Rngs(jax.random.key(seed))))
        none = jnp.zeros((), jnp.int32)
        opt_state: Any = optimizer.init(params)
        return states.TrainState(params, opt_state._replace(factor=factor), none, none, none)

    return init


def _record(
    seen: Sequence[dict[str, Any]],
    ends: dict[str, Any],
    unigram_loss: float,
    config: Config,
    sweep: SweepOptions,
) -> metrics.Record:
    """What a run's row says of it, from what each step measured and what was at the end."""
    losses = np.array([found["loss"] for found in seen], np.float64)
    in_a_row = [found["in_a_row"] for found in seen]
    limits = {"margin": sweep.margin, "window": sweep.window, "skips": config.watch.skips}
    spike_limits = {"threshold": sweep.spike_score, "window": sweep.spike_window}
    at, final = outcomes.find_divergence(losses, in_a_row, **limits), outcomes.final_loss(losses)
    measured, kept = ends["measured"], losses[sweep.record_every - 1 :: sweep.record_every]
    return {
        "losses": [files.replace_nonfinite(round(float(loss), 5)) for loss in kept],
        "first_loss": _number(losses[0]),
        "final_loss": _number(final),
        "outcome": outcomes.classify_run(at, final, unigram_loss),
        "diverged_at": at,
        "spikes": outcomes.count_spikes(losses, **spike_limits),
        "skipped": int(ends["skipped"]),
        "bits_mean": _number(seen[-1]["bits_mean"]) if "bits_mean" in seen[-1] else None,
        "held_out_losses": {name: _number(x) for name, x in ends["held_out_losses"].items()},
        **{
            name: [[step, _number(found[name])] for step, found in measured.items()]
            for name in next(iter(measured.values()), {})
        },
    }


def _number(value: Any) -> float | None:
    return files.replace_nonfinite(float(value))


def _measurements(
    graph: nnx.GraphDef, tokens: jax.Array, sweep: SweepOptions
) -> Callable[[Any], Any]:
    """Parameters of all runs → {name: float32[runs]}, of the bare weights on fixed windows."""

    def of_one(params):
        options = {name: getattr(sweep, name) for name in ("epsilon", "maximizer", "iterations")}
        found = {"sharpness": sharpness.model_sharpness(graph, params, tokens, **options)}
        if sweep.rho:
            bits, weights = nnx.split_state(params, bit_state.BitParam, ...)

            def loss(weights):
                model = nnx.merge(graph, nnx.merge_state(bits, weights))
                return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])

            found["sharpness_of_weights"] = sharpness.weight_sharpness(loss, weights, rho=sweep.rho)
        return found

    return jax.jit(jax.vmap(of_one))


def _held_out_losses(
    config: Config, graph: nnx.GraphDef, batches: jax.Array
) -> Callable[[Any], dict[str, jax.Array]]:
    """Parameters of all runs → {name of `FORMATS`: float32[runs]}, in nats per token."""
    rules = schema.quantization_rules(config)

    def of_one(params):
        rounded = {name: load.weights_in(config, params, rules, name) for name in FORMATS}

        def of_batch(batch):
            def loss(weights):
                model = nnx.merge(graph, nnx.merge_state(params, weights))
                return cross_entropy(model(batch[:, :-1]), batch[:, 1:])

            return {name: loss(weights) for name, weights in rounded.items()}

        return jax.tree.map(jnp.mean, jax.lax.map(of_batch, batches))

    return jax.jit(jax.vmap(of_one))
