# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The programs that train runs of one arm side by side: seeds and learning rates under vmap.

    seed → weights, order of the data, noise        learning rate → factor of the updates

The step is the trainer's. Its optimizer uses the learning rate of the config, and each run
multiplies the updates of its weights by the ratio of its own rate to that one. AdamW and Adam-mini
are linear in the rate, weight decay included, so a run equals a training run at its rate up to
rounding. The learning rates of the warm-up and at the end scale with it. The learning rate of
bit-widths is not scaled.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxlib.version import __version__ as jaxlib_version

from pqt_jax.lab.simulate import simulate
from pqt_jax.lab.sweep_arms import Arm, RateAndSeed
from pqt_jax.training import methods
from pqt_jax.training.config.fields import flatten
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.phases import Phase, list_phases, phase_index
from pqt_jax.training.state import TrainState
from pqt_jax.training.step import build_train_step
from pqt_jax.transform.tree_paths import BITS, map_paths

Fingerprints = list[tuple[int, str]]  # (last step, fingerprint) of each phase


class Programs(NamedTuple):
    """What trains the runs of an arm.

    Attributes:
      begin: rates and seeds → (states, keys) of the runs, before the first step.
      step_of: the number of a step, counted from 1 → (states, batches, keys) → (states, metrics).
      fingerprints: rates and seeds, dtype of the tokens → the fingerprint of each phase. It stands
        for all that the states in the phase depend on, given the text: the program of the initial
        states, rates, seeds and data section; the programs of this phase and of earlier ones, and
        how many steps those took; the versions of JAX and the device. Equal fingerprints and equal
        numbers of steps mean states of equal bits.
    """

    begin: Callable[[Sequence[RateAndSeed]], tuple[TrainState, jax.Array]]
    step_of: Callable[[int], Any]
    fingerprints: Callable[[Sequence[RateAndSeed], Any], Fingerprints]


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


def make_programs(arm: Arm) -> Programs:
    """The programs of an arm. Each is compiled when it is first called."""
    config = arm.config
    optimizer, phases = scale_updates(make_optimizer(config)), list_phases(config)

    def make_step(phase: Phase) -> Any:
        graph = make_graph(arm, phase.config)
        step: Any = build_train_step(config, graph, optimizer, phase=phase)
        return jax.jit(jax.vmap(step.__wrapped__), donate_argnums=0)

    steps = [make_step(phase) for phase in phases]
    initialize = jax.jit(jax.vmap(_initializer(config, optimizer)))
    make_keys = jax.vmap(jax.random.key)

    def inputs(rates_and_seeds: Sequence[RateAndSeed]) -> tuple[jax.Array, jax.Array]:
        rates, seeds = (np.array(values) for values in zip(*rates_and_seeds, strict=True))
        factors = rates / config.optimizer.learning_rate
        return jnp.asarray(seeds), jnp.asarray(factors, jnp.float32)

    def begin(rates_and_seeds: Sequence[RateAndSeed]) -> tuple[TrainState, jax.Array]:
        seeds, factors = inputs(rates_and_seeds)
        return initialize(seeds, factors), make_keys(seeds)

    @functools.cache
    def program_texts(runs: int, dtype: Any) -> list[str]:
        """The initial program and that of each phase, as StableHLO."""
        arguments = inputs([(1.0, 0)] * runs)
        states = jax.eval_shape(initialize, *arguments)
        keys = jax.eval_shape(make_keys, arguments[0])
        shape = (runs, config.data.batch, config.data.length + 1)
        lowered = [step.lower(states, jax.ShapeDtypeStruct(shape, dtype), keys) for step in steps]
        return [program.as_text() for program in (initialize.lower(*arguments), *lowered)]

    def fingerprints(rates_and_seeds: Sequence[RateAndSeed], dtype: Any) -> Fingerprints:
        first, *texts = program_texts(len(rates_and_seeds), np.dtype(dtype))
        device = jax.devices()[0].device_kind
        data = {name: value for name, value in flatten(config) if name.startswith("data.")}
        known: list[Any] = [jax.__version__, jaxlib_version, device, data, rates_and_seeds]
        chain, ends = _digest(json.dumps([*known, first], default=str)), []
        for text, last in zip(texts, [*(p.first for p in phases[1:]), config.steps], strict=True):
            fingerprint = _digest(chain + text)
            ends.append((last, fingerprint))
            chain = f"{fingerprint} {last}"
        return ends

    return Programs(begin, lambda number: steps[phase_index(phases, number)], fingerprints)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
