# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""One training step: state, batch, key → state, metrics. Pure, and jitted as one function.

    key(step) → model(tokens; ŵ) → loss → gradients to weights and bits → optimizer

Nothing about randomness is in the state: the noise of step t comes from `step_key(key, t)`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pqt_jax.models import document_mask, partitioning
from pqt_jax.numerics import bit_width, keys
from pqt_jax.training import loss as losses
from pqt_jax.training.config.schema import Config
from pqt_jax.training.state import TrainState
from pqt_jax.transform import bit_state, optim
from pqt_jax.transform.adam_mini import model_blocks
from pqt_jax.transform.rules import Rule

Metrics = dict[str, jax.Array]

# XLA's CPU compiler else starts whatever can start, breadth first, and holds it until it is wanted:
# in the backward pass a layer's attention, while the MLP waits for its ŵ (LOG.md). Same bits.
_CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class Parts(NamedTuple):
    """How a step is cut, so that less of it is in memory at once.

    Attributes:
      microbatches: parts of the batch whose gradients are added up; each has as many sequences.
      noise_per: "step" for one ŵ, "microbatch" for one each, of `fold_in(step key, part)`.
      loss_chunk: positions of the sequences whose logits are made at once; 0 for all.
    """

    microbatches: int = 1
    noise_per: str = "step"
    loss_chunk: int = 0


def parts_of(config: Config) -> Parts:
    """Those of a config."""
    return Parts(config.data.microbatches, config.pqt.noise_per, config.data.loss_chunk)


def make_schedule(config: Config) -> Callable[[Any], Any]:
    """Step → learning rate: linear warm-up, then a cosine or a line to the final rate."""
    opt = config.optimizer
    first = opt.learning_rate / (opt.warmup_steps + 1)  # not 0: the first step should count
    if opt.schedule == "linear":
        fall = config.steps - opt.warmup_steps
        parts = [
            optax.linear_schedule(first, opt.learning_rate, opt.warmup_steps),
            optax.linear_schedule(opt.learning_rate, opt.final_learning_rate, fall),
        ]
        return optax.join_schedules(parts, [opt.warmup_steps])
    return optax.warmup_cosine_decay_schedule(
        first, opt.learning_rate, opt.warmup_steps, config.steps, opt.final_learning_rate
    )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """That of the config, with the bit-widths in a group of their own; their rate follows the same
    schedule. Once they have snapped it is 0, and they stay.

    DiffQ's logits have an Adam of their own: its rate follows no schedule, which would be that of
    the weights' optimizer, and nothing decays.
    """
    opt, schedule = config.optimizer, make_schedule(config)
    ratio, snap = config.pqt.learning_rate / opt.learning_rate, bit_state.snap_step(config)
    own = config.method == "diffq"

    def bits_rate(step):
        rate = ratio * schedule(step)
        return rate if snap is None else jnp.where(step >= snap, 0.0, rate)

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
        bits_learning_rate=config.diffq.learning_rate if own else bits_rate,
        bits_weight_decay=0.0 if own else config.pqt.weight_decay,
    )


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    rules: Sequence[Rule],
    *,
    penalty: bit_state.Penalty | None = None,
    snap: int | None = None,
    parts: Parts = Parts(),
    end: int | None = None,
    outside: bit_state.Outside | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """The jitted training step.

    Args:
      graph: the model's structure.
      optimizer: on weights and bits together.
      rules: those the model was made with.
      penalty: from `bit_state.make_penalty`.
      snap: from `bit_state.snap_step`.
      parts: how a step is cut to fit into memory.
      end: the token that ends a document, beyond which nothing is seen, and behind which no target
        counts (`document_mask.window`); None for windows that run on across documents.
      outside: from `bit_state.outside`, for a method that samples outside the model.

    Returns:
      `(state, batch, key) -> (state, metrics)`. The state is donated. batch is uint8 or int
      [B, T + 1]; key is the run's, and not consumed. A step whose loss or gradient is not finite is
      skipped: it is counted, and changes nothing else; schedules go by the steps that were not.
      Metrics are float32 scalars: loss (nats per token, under the sampled weights, without the
      penalty: the mean over all targets of the batch that count, however they fall on its
      microbatches), grad_norm (of the weights, before clipping), bits_mean, bits_min, bits_max (of
      the bit-widths that were used; absent where there are none) and penalty (likewise); and the
      int32 scalars skipped and in_a_row of the new state.
    """
    inside = lambda params: bit_state.bit_widths(params, rules)  # noqa: E731
    widths = outside.bit_widths if outside else inside

    def train_step(state, batch, key):
        step_key, params = keys.step_key(key, state.step), state.params
        if snap is not None:
            params = _snap_at(snap, state.step - state.skipped, params, rules)

        each = document_mask.count(batch, end, parts.microbatches)

        def loss_of(params, tokens, key):
            weights = outside.sample(params, key) if outside else params
            options = {"chunk": parts.loss_chunk, "end": end, "each": each}
            loss = losses.of_model(graph, weights, tokens, key=key, **options)
            extra = penalty(params) if penalty else None
            return loss if extra is None else loss + extra, (loss, extra)

        (loss, extra), grads = _gradients(loss_of, params, batch, step_key, parts)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(bit_state.weights(grads))}
        if b_t := widths(params):
            stats = bit_width.statistics(b_t)
            metrics |= {f"bits_{name}": value for name, value in stats.items()}
        if extra is not None:
            metrics["penalty"] = extra
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        new: Any = optax.apply_updates(params, updates)
        # The norm of everything: a bit-width that is NaN would spoil the loss of the next step.
        good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        params, opt_state = jax.tree.map(keep, (new, opt_state), (params, state.opt_state))
        bad = 1 - good.astype(jnp.int32)
        skipped, in_a_row = state.skipped + bad, (state.in_a_row + 1) * bad
        metrics |= {"skipped": skipped, "in_a_row": in_a_row}
        new_state = TrainState(params, opt_state, state.step + 1, skipped, in_a_row)
        return partitioning.held(new_state), metrics

    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(train_step, donate_argnums=0, compiler_options=options)


def _gradients(
    loss_of: Callable[..., Any], params: nnx.State, batch: jax.Array, key: jax.Array, parts: Parts
) -> tuple[Any, Any]:
    """(what `loss_of` adds, gradients), as means over the microbatches, summed in float32."""
    gradient, tokens = jax.grad(loss_of, has_aux=True), batch.astype(jnp.int32)
    if parts.microbatches == 1:
        grads, aux = gradient(params, tokens, key)
        return aux, grads

    def add(total, part):
        index, tokens = part
        own = jax.random.fold_in(key, index) if parts.noise_per == "microbatch" else key
        grads, aux = gradient(params, tokens, own)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (aux, grads)), None

    cut = losses.parts_of(tokens, parts.microbatches)
    shapes = jax.eval_shape(gradient, params, cut[0], key)[::-1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts.microbatches), cut))
    aux, grads = jax.tree.map(lambda x: x / parts.microbatches, total)
    return aux, jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)


def _snap_at(snap: int, step: jax.Array, params: nnx.State, rules: Sequence[Rule]) -> nnx.State:
    return jax.lax.cond(step == snap, lambda p: bit_state.snapped(p, rules), lambda p: p, params)
