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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pqt_jax import config as configs
from pqt_jax import learned_bits, metrics
from pqt_jax import step as steps
from pqt_jax.config import Config
from pqt_jax.data import pipeline
from pqt_jax.data.source import Text
from pqt_jax.lab import outcomes, sharpness
from pqt_jax.lab.grid import Arm
from pqt_jax.lab.simulate import simulate
from pqt_jax.loss import cross_entropy
from pqt_jax.rules import BITS, map_paths

Cell = tuple[float, int]  # learning rate, seed
_FETCH_EVERY = 50  # steps between waits for the device


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
    model = nnx.eval_shape(lambda: learned_bits.make_model(arm.config, nnx.Rngs(0)))
    return nnx.split(simulate(model, arm.rules) if arm.rules else model)[0]


def train(
    arm: Arm, cells: Sequence[Cell], text: Text, sweep: Config, advance: Callable[[], None]
) -> list[metrics.Record]:
    """Train the runs of some cells.

    Args:
      arm: the way to train.
      cells: learning rates and seeds.
      text: that they train on.
      sweep: the section of the config: what is measured, and the definitions of outcomes.
      advance: called after each step.

    Returns:
      A record for each cell: arm, learning_rate, seed, steps; losses, of every `record_every`-th
      step; first_loss, final_loss, validation_loss; diverged_at, spikes, skipped; sharpness and
      sharpness_of_weights, lists of [step, percent].
    """
    config, graph = arm.config, structure(arm)
    optimizer = scaled(steps.make_optimizer(config))
    outside = learned_bits.outside(config)
    options = {"penalty": learned_bits.make_penalty(config), "snap": learned_bits.snap_step(config)}
    one_step: Any = steps.make_train_step(
        graph,
        optimizer,
        configs.rules(config),
        parts=steps.parts_of(config),
        outside=outside,
        **options,
    )
    step = jax.jit(jax.vmap(one_step.__wrapped__), donate_argnums=0)
    rates, seeds = (np.array(some) for some in zip(*cells, strict=True))
    factors = jnp.asarray(rates / config.optimizer.learning_rate, jnp.float32)
    state = jax.jit(jax.vmap(_initializer(config, optimizer)))(jnp.asarray(seeds), factors)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))

    length, batch = config.data.length, config.data.batch
    distinct = list(dict.fromkeys(seeds.tolist()))
    orders = [
        pipeline.train_batches(text.train, length=length, batch=batch, seed=seed)
        for seed in distinct
    ]
    place = np.array([distinct.index(seed) for seed in seeds.tolist()])
    held_out = pipeline.validation_batches(
        text.validation, length=length, batch=batch, count=config.log.validation_batches
    )
    measure = _measurements(graph, jnp.asarray(held_out[0], jnp.int32), sweep)
    seen, waiting, measured = [], [], []
    for number in range(1, config.steps + 1):
        if sweep.sharpness_every and (number - 1) % sweep.sharpness_every == 0:
            measured.append((number - 1, measure(state.params)))
        rows = np.stack([next(order) for order in orders])[place]
        state, found = step(state, rows, keys)
        waiting.append((found["loss"], found["in_a_row"]))
        if number % _FETCH_EVERY == 0 or number == config.steps:
            seen += jax.device_get(waiting)
            waiting = []
        advance()
    validation = _validation(graph, jnp.asarray(held_out, jnp.int32))(state.params)
    losses, in_a_row = (np.stack(some, 1) for some in zip(*seen, strict=True))
    measured = [(at, jax.device_get(found)) for at, found in measured]
    return [
        {
            "arm": arm.name,
            "learning_rate": float(rates[i]),
            "seed": int(seeds[i]),
            "steps": config.steps,
            **_outcome(losses[i].astype(np.float64), in_a_row[i], config, sweep),
            "validation_loss": metrics.finite(float(validation[i])),
            "skipped": int(state.skipped[i]),
            **{
                name: [[at, metrics.finite(float(found[name][i]))] for at, found in measured]
                for name in (measured[0][1] if measured else {})
            },
        }
        for i in range(len(cells))
    ]


def _initializer(
    config: Config, optimizer: optax.GradientTransformation
) -> Callable[[Any, Any], steps.TrainState]:
    """(seed, factor) → the state before the first step, as the trainer has it for that seed."""

    def init(seed, factor):
        params = nnx.state(learned_bits.make_model(config, nnx.Rngs(jax.random.key(seed))))
        none = jnp.zeros((), jnp.int32)
        opt_state: Any = optimizer.init(params)
        return steps.TrainState(params, opt_state._replace(factor=factor), none, none, none)

    return init


def _outcome(
    losses: np.ndarray, in_a_row: np.ndarray, config: Config, sweep: Config
) -> metrics.Record:
    kept = losses[sweep.record_every - 1 :: sweep.record_every]
    limits = {"margin": sweep.margin, "window": sweep.window, "skips": config.watch.skips}
    at = outcomes.diverged_at(losses, in_a_row, **limits)
    count = outcomes.spikes(losses, threshold=sweep.spike_score, window=sweep.spike_window)
    return {
        "losses": [metrics.finite(round(float(loss), 5)) for loss in kept],
        "first_loss": metrics.finite(float(losses[0])),
        "final_loss": metrics.finite(outcomes.final(losses)),
        "diverged_at": at,
        "spikes": count,
    }


def _measurements(graph: nnx.GraphDef, tokens: jax.Array, sweep: Config) -> Callable[[Any], Any]:
    """Parameters of all runs → {name: float32[runs]}, of the bare weights on fixed windows."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def of_one(params):
        logits = nnx.merge(graph, params)(inputs)[:, -1]
        phi = sharpness.of_logits(logits, targets[:, -1], epsilon=sweep.epsilon)
        found = {"sharpness": phi.mean()}
        if sweep.rho:
            bits, weights = nnx.split_state(params, learned_bits.BitParam, ...)

            def loss(weights):
                model = nnx.merge(graph, nnx.merge_state(bits, weights))
                return cross_entropy(model(inputs), targets)

            found["sharpness_of_weights"] = sharpness.of_weights(loss, weights, rho=sweep.rho)
        return found

    return jax.jit(jax.vmap(of_one))


def _validation(graph: nnx.GraphDef, batches: jax.Array) -> Callable[[Any], jax.Array]:
    def of_one(params):
        model = nnx.merge(graph, params)
        each = [cross_entropy(model(batch[:, :-1]), batch[:, 1:]) for batch in batches]
        return jnp.stack(each).mean()

    return jax.jit(jax.vmap(of_one))
