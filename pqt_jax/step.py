# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""One training step: state, batch, key → state, metrics. Pure, and jitted as one function.

    key(step) → model(tokens; ŵ) → loss → gradients to weights and bits → optimizer

Nothing about randomness is in the state: the noise of step t comes from `step_key(key, t)`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pqt_jax import bitwidth, keys, learned_bits
from pqt_jax.config import MODELS, Config, model_config, quantization_rules
from pqt_jax.config import rules as method_rules
from pqt_jax.errors import InputError
from pqt_jax.loss import cross_entropy
from pqt_jax.models.layers import check_rules
from pqt_jax.optim import adamw
from pqt_jax.rules import Rule, paths_and_leaves

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      params: weights and `BitParam`s of the model.
      opt_state: of the optimizer.
      step: int32 scalar, the number of steps taken.
    """

    params: nnx.State
    opt_state: Any
    step: jax.Array


def init_state(
    config: Config, optimizer: optax.GradientTransformation, start: Any = None
) -> tuple[nnx.GraphDef, TrainState]:
    """The model's structure and the state before the first step.

    Args:
      config: a checked configuration.
      optimizer: what `make_optimizer` returned.
      start: weights to start from, nested by their paths; None for new ones.

    Returns:
      (structure, state); new weights are a function of `config.seed`. Bit-widths are always new.
    """
    _, cls = MODELS[config.model.name]

    def build():
        return cls(model_config(config), method_rules(config), rngs=nnx.Rngs(config.seed))

    def init(start):
        params = nnx.state(build())
        if start is not None:
            params = _replaced(params, start)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    graph = nnx.split(nnx.eval_shape(build))[0]
    return graph, jax.jit(init)(start)


def _replaced(params: nnx.State, start: Any) -> nnx.State:
    """The parameters with other weights, in their own dtypes, and their bit-widths as they were."""
    new, old = paths_and_leaves(start), paths_and_leaves(params)
    same = [new.pop(path).astype(leaf.dtype) for path, leaf in old.items()]
    assert not new, min(new)
    tree = jax.tree.structure(learned_bits.weights(params))
    return nnx.merge_state(params, jax.tree.unflatten(tree, same))


def count_parameters(config: Config) -> int:
    """Number of weights, found without computing any; the rules are checked against their paths.

    Raises:
      InputError: if a rule does not fit the model.
    """
    _, cls = MODELS[config.model.name]
    shapes = nnx.eval_shape(lambda: cls(model_config(config), rngs=nnx.Rngs(0)))
    try:
        check_rules(shapes, quantization_rules(config))
    except ValueError as error:
        raise InputError(f"config.pqt.pattern={config.pqt.pattern!r}: {error}") from None
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))


def check_memory(config: Config, parameters: int) -> None:
    """Raise InputError if weights, gradients and the optimizer's two moments cannot fit."""
    needed = 4 * parameters * jnp.dtype(config.model.param_dtype).itemsize
    stats = jax.devices()[0].memory_stats() or {}  # None on CPU, which has the machine's memory
    there = stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if needed > there:
        raise InputError(
            f"config.model: {parameters:,} parameters, with gradients and moments, take "
            f"{needed / 1e9:,.0f} GB, and there are {there / 1e9:,.0f} GB; give a smaller model"
        )


def make_schedule(config: Config) -> Callable[[Any], Any]:
    """Step → learning rate: linear warm-up, then a cosine to the final rate."""
    opt = config.optimizer
    return optax.warmup_cosine_decay_schedule(
        opt.learning_rate / (opt.warmup_steps + 1),  # not 0: the first step should count
        opt.learning_rate,
        opt.warmup_steps,
        config.steps,
        opt.final_learning_rate,
    )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with the bit-widths in a group of their own; their rate follows the same schedule.

    Once they have snapped it is 0, and they stay.
    """
    opt, schedule = config.optimizer, make_schedule(config)
    ratio, snap = config.pqt.learning_rate / opt.learning_rate, learned_bits.snap_step(config)

    def bits_rate(step):
        rate = ratio * schedule(step)
        return rate if snap is None else jnp.where(step >= snap, 0.0, rate)

    return adamw(
        schedule,
        b1=opt.b1,
        b2=opt.b2,
        weight_decay=opt.weight_decay,
        clip_norm=opt.clip_norm,
        bits_learning_rate=bits_rate,
        bits_weight_decay=config.pqt.weight_decay,
    )


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    rules: Sequence[Rule],
    *,
    penalty: learned_bits.Penalty | None = None,
    snap: int | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """The jitted training step.

    Args:
      graph: the model's structure.
      optimizer: on weights and bits together.
      rules: those the model was made with.
      penalty: from `learned_bits.make_penalty`.
      snap: from `learned_bits.snap_step`.

    Returns:
      `(state, batch, key) -> (state, metrics)`. The state is donated. batch is uint8 or int
      [B, T + 1]; key is the run's, and not consumed. Metrics are float32 scalars: loss (nats per
      token, under the sampled weights, without the penalty), grad_norm (of the weights, before
      clipping), bits_mean, bits_min, bits_max (of the bit-widths that were used; absent where there
      are none) and penalty (likewise).
    """

    def train_step(state, batch, key):
        tokens = batch.astype(jnp.int32)
        step_key, params = keys.step_key(key, state.step), state.params
        if snap is not None:
            params = _snap_at(snap, state.step, params, rules)

        def loss_of(params):
            logits = nnx.merge(graph, params)(tokens[:, :-1], pqt_key=step_key)
            loss = cross_entropy(logits, tokens[:, 1:])
            extra = penalty(params) if penalty else None
            return loss if extra is None else loss + extra, (loss, extra)

        (_, (loss, extra)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(learned_bits.weights(grads))}
        if b_t := learned_bits.bit_widths(params, rules):
            stats = bitwidth.statistics(b_t)
            metrics |= {f"bits_{name}": value for name, value in stats.items()}
        if extra is not None:
            metrics["penalty"] = extra
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)


def _snap_at(snap: int, step: jax.Array, params: nnx.State, rules: Sequence[Rule]) -> nnx.State:
    return jax.lax.cond(step == snap, lambda p: learned_bits.snapped(p, rules), lambda p: p, params)
