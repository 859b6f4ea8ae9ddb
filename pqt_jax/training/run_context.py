# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The fixed inputs of a run, and the state from which it starts or resumes."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optax
from flax import nnx
from jax.sharding import Mesh

from pqt_jax.data import source
from pqt_jax.training import startup_summary, state
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.run import checkpoint, metrics, run_metadata
from pqt_jax.training.run.distributed import print_on_first_process
from pqt_jax.training.run.loss_monitor import LossMonitor


def _make_new_weights() -> None:
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """The fixed inputs of a run.

    Attributes:
      config: the checked configuration.
      workdir: the run's folder, which this process has claimed.
      text: training and validation tokens.
      meta: from `run_metadata.make_metadata`; saved with every checkpoint.
      mesh: the active device mesh, or None for one device.
      signals: from `signals.collect_signals`; read before compilation and at every step.
      take_start: called for a new run; returns the weights before the first step, or None for
        new ones.
      profile: whether to write a trace of a few steps to `workdir/profile`.
    """

    config: RunConfig
    workdir: Path
    text: source.Text
    meta: run_metadata.Meta
    mesh: Mesh | None = None
    signals: Sequence[int] = ()
    take_start: Callable[[], Any] = _make_new_weights
    profile: bool = False

    @property
    def step_tokens(self) -> int:
        """Tokens in a step."""
        return self.config.data.batch * self.config.data.length

    @property
    def end(self) -> int | None:
        """The token that ends a document; None if sequences run on over the ends."""
        return self.text.end if self.config.data.boundaries == "mask" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartPoint:
    """Where a run starts or resumes.

    Attributes:
      graph: the model's structure.
      optimizer: the optimizer of weights and bits together.
      step: number of steps already taken.
      like: shapes, dtypes and shardings of the state.
      take_state: returns the state after these steps; for a new run it waits for the program that
        makes it (`state.begin_state`). It can be called once, since the first step donates it.
      timer, monitor: continue the time and the losses of the steps already taken.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    step: int
    like: state.TrainState
    take_state: Callable[[], state.TrainState]
    timer: metrics.Timer
    monitor: LossMonitor


def restore_or_init(run: RunContext, manager: Any) -> StartPoint:
    """Restore the newest checkpoint, or make the state of a new run, and print which.

    Args:
      run: the run.
      manager: the manager of its checkpoints.

    Raises:
      InputError: if there are checkpoints and none can be read, or the newest is another run's.
    """
    config, optimizer = run.config, make_optimizer(run.config)
    timer, monitor = metrics.Timer(), LossMonitor(config.watch)
    if manager.latest_step() is None:
        step = 0
        graph, like, take_state = state.begin_state(config, optimizer, run.take_start())
    else:
        graph, like = state.abstract_state(config, optimizer)
        newest, train_state, saved = checkpoint.restore_newest(manager, like, run.meta)
        step, take_state = int(train_state.step), [train_state].pop
        timer = metrics.Timer(**saved["time"])
        monitor = LossMonitor(config.watch, saved["losses"])
        print_on_first_process(f"resumed from step {newest} of {config.steps}")
        if changed := run_metadata.changed_versions(saved, run.meta):
            print_on_first_process(
                f"resumed under {changed}, so results may differ in the last digits"
            )
    print_on_first_process(startup_summary.format_remaining(config, step, timer.rate()))
    return StartPoint(
        graph=graph,
        optimizer=optimizer,
        step=step,
        like=like,
        take_state=take_state,
        timer=timer,
        monitor=monitor,
    )
