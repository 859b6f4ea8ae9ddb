# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The optimizer and its schedule, from the run config."""

import functools

import optax

from pqt_jax.models.registry import model_config
from pqt_jax.training.config import schema
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods import get_method, snap_step
from pqt_jax.training.methods.method import Schedule
from pqt_jax.training.phases import list_phases
from pqt_jax.transform import optim
from pqt_jax.transform.adam_mini import model_blocks


def make_schedule(config: RunConfig) -> Schedule:
    """Steps taken → learning rate of the next step: a linear warm-up, then `optimizer.schedule`.

        cosine, linear    falls from the end of the warm-up on
        wsd               constant, then a line in the last `optimizer.decay_share` of the steps
        constant          constant

    The final rate belongs to `config.steps` steps taken: the last step has the rate before it.
    """
    opt = config.optimizer
    first = opt.learning_rate / (opt.warmup_steps + 1)  # not 0, so that the first step counts
    if opt.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            first, opt.learning_rate, opt.warmup_steps, config.steps, opt.final_learning_rate
        )
    begin = _decay_start(config)
    decay_steps = config.steps - begin
    phases = {0: optax.linear_schedule(first, opt.learning_rate, opt.warmup_steps)}
    phases[opt.warmup_steps] = optax.constant_schedule(opt.learning_rate)
    phases[begin] = optax.linear_schedule(opt.learning_rate, opt.final_learning_rate, decay_steps)
    return optax.join_schedules(list(phases.values()), list(phases)[1:])


def count_fixed_steps(config: RunConfig) -> int:
    """The number of first steps that any other `config.steps` leaves as they are.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> from pqt_jax.training.config.schema import OptimizerConfig, RunConfig
      >>> model = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128)
      >>> config = RunConfig(model=model, optimizer=OptimizerConfig(schedule="wsd"))
      >>> config.steps, config.optimizer.decay_share, count_fixed_steps(config)
      (1000, 0.2, 800)

    Args:
      config: the run's configuration.

    Returns:
      The steps before the learning rate falls, the bit-widths snap and the method changes; 0 with
      the schedules cosine and linear, which fall all the time.
    """
    if config.optimizer.schedule not in schema.EXTENSIBLE:
        return 0
    snap = snap_step(config)
    changes = [phase.first for phase in list_phases(config)[1:]]
    return min(_decay_start(config), config.steps if snap is None else snap, *changes)


def _decay_start(config: RunConfig) -> int:
    """The number of steps before the learning rate falls."""
    opt = config.optimizer
    if opt.schedule == "wsd":
        return config.steps - max(1, round(opt.decay_share * config.steps))
    return config.steps if opt.schedule == "constant" else opt.warmup_steps


def make_optimizer(config: RunConfig) -> optax.GradientTransformation:
    """The optimizer of weights and bit-widths, two groups with separate learning rates.

    `Method.make_bits_optimizer` decides the rate and decay of the bit-widths.
    """
    opt, schedule = config.optimizer, make_schedule(config)
    bits = get_method(config).make_bits_optimizer(config, schedule, snap_step(config))
    make = optim.adamw
    if opt.name == "adam_mini":
        blocks = model_blocks(model_config(config).head_width)
        make = functools.partial(optim.adam_mini, blocks=blocks)
    return make(
        schedule,
        b1=opt.b1,
        b2=opt.b2,
        eps=opt.eps,
        weight_decay=opt.weight_decay,
        clip_norm=opt.clip_norm,
        bits_learning_rate=bits.learning_rate,
        bits_weight_decay=bits.weight_decay,
        bits_granularity=config.pqt.granularity,
        require_bits=False,  # method bf16 has the same state as the others
    )
