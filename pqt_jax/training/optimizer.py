# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The optimizer and its schedule, from the run config."""

import functools

import optax

from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods import get_method, snap_step
from pqt_jax.training.methods.method import Schedule
from pqt_jax.transform import optim
from pqt_jax.transform.adam_mini import model_blocks


def make_schedule(config: RunConfig) -> Schedule:
    """Step → learning rate: a linear warm-up, then a cosine or a line to the final rate."""
    opt = config.optimizer
    first = opt.learning_rate / (opt.warmup_steps + 1)  # not 0, so that the first step counts
    if opt.schedule == "linear":
        decay_steps = config.steps - opt.warmup_steps
        phases = [
            optax.linear_schedule(first, opt.learning_rate, opt.warmup_steps),
            optax.linear_schedule(opt.learning_rate, opt.final_learning_rate, decay_steps),
        ]
        return optax.join_schedules(phases, [opt.warmup_steps])
    return optax.warmup_cosine_decay_schedule(
        first, opt.learning_rate, opt.warmup_steps, config.steps, opt.final_learning_rate
    )


def make_optimizer(config: RunConfig) -> optax.GradientTransformation:
    """The optimizer of weights and bit-widths, two groups with separate learning rates.

    `Method.make_bits_optimizer` decides the rate and decay of the bit-widths.
    """
    opt, schedule = config.optimizer, make_schedule(config)
    bits = get_method(config).make_bits_optimizer(config, schedule, snap_step(config))
    make = optim.adamw
    if opt.name == "adam_mini":
        blocks = model_blocks(config.model.d_model // config.model.num_heads)
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
        require_bits=False,  # method bf16 has the same state as the others
    )
