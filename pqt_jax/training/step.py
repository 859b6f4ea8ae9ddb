# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""One training step: (state, batch, key) → (state, metrics). Pure, and jitted as one function.

    key(step) → model(tokens; ŵ) → loss → gradients to weights and bits → optimizer

The state holds no random key: the noise of step t comes from `step_key(key, t)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pqt_jax.models import document_mask, partitioning
from pqt_jax.numerics import bit_width, keys
from pqt_jax.training import methods
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.loss import model_loss, split_batch
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.phases import Phase
from pqt_jax.training.state import TrainState
from pqt_jax.transform import bit_state
from pqt_jax.transform.nnx_wrapper import BitParam
from pqt_jax.transform.tree_paths import paths_and_leaves

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]

# By default XLA's CPU compiler runs each operation as early as possible, and keeps its result until
# the result is used: in the backward pass a layer's attention runs while the MLP waits for its ŵ
# (LOG.md). With this option a step takes less memory and returns the same bits.
_CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSplit:
    """How a step is split, so that less of it is in memory at once.

    Attributes:
      microbatches: number of equal parts of the batch, whose gradients are added up.
      noise_per: "step" for one ŵ in the whole step, "microbatch" for one ŵ in each microbatch, from
        the key `fold_in(step key, index)`.
      sample_once: whether the one ŵ of the step is made before the loop over the microbatches, and
        kept, instead of in each of their passes.
      loss_chunk: positions of the sequences whose logits are computed at once; 0 for all.
    """

    microbatches: int = 1
    noise_per: str = "step"
    sample_once: bool = False
    loss_chunk: int = 0


def step_split(config: RunConfig) -> StepSplit:
    """Step-splitting options read from the run config."""
    data = config.data
    return StepSplit(
        microbatches=data.microbatches,
        noise_per=config.pqt.noise_per,
        sample_once=config.pqt.sample_once,
        loss_chunk=data.loss_chunk,
    )


def build_train_step(
    config: RunConfig,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation | None = None,
    *,
    end: int | None = None,
    phase: Phase | None = None,
) -> TrainStep:
    """The jitted training step of a run.

    Args:
      config: the run's configuration; decides method, penalty, snapping and how the step is split.
      graph: the model's structure, that of the phase's config if one is given.
      optimizer: the optimizer of weights and bits together; None for `make_optimizer(config)`.
      end: the token that ends a document. No token attends beyond it, and the target that follows
        it does not count (`document_mask.make_windows`). None if sequences run on over the ends.
      phase: the phase of the run, of `list_phases`; None for the run's own method. In a phase of
        another method bit-widths stay as they are, and there is no penalty.

    Returns:
      `(state, batch, key) -> (state, metrics)`. The state is donated. batch is uint8 or int
      [B, T + 1]; key is the run's, and is not consumed. A step whose loss or gradient is not finite
      is skipped: it is counted, and changes nothing else; schedules count the other steps.

      Metrics are float32 scalars: loss (nats per token under the sampled weights, without the
      penalty, the mean over all targets of the batch that count), grad_norm (of the weights, before
      clipping), bits_mean, bits_min, bits_max (of the bit-widths that were used; absent where there
      are none) and penalty (likewise); and the int32 scalars skipped and in_a_row of the new state.
    """
    method, split, snap = methods.get_method(config), step_split(config), methods.snap_step(config)
    is_own = phase is None or phase.is_own
    rules, penalty = method.make_rules(config), method.make_penalty(config) if is_own else None
    # A phase of another method samples by rules of its own; bits snap by those of the run.
    rules_now = rules if phase is None else methods.make_rules(phase.config)
    sample = method.make_sampler(config) if is_own and method.make_sampler else None
    optimizer = optimizer or make_optimizer(config)
    # One ŵ for all microbatches: the gradient of its bits comes from that of the step.
    has_one_w_hat = split.microbatches > 1 and split.noise_per == "step"
    takes_bits_after = has_one_w_hat and is_own and method.learns_bits and not sample
    keeps_w_hat = has_one_w_hat and split.sample_once

    def train_step(state, batch, key):
        step_key, params = keys.step_key(key, state.step), state.params
        if snap is not None:
            params = _snap_at(snap, state.step - state.skipped, params, rules)
        targets = document_mask.count_targets(batch, end, split.microbatches)

        def compute_loss(params, tokens, key):
            weights = sample(params, key) if sample else params
            weights = weights if is_own else bit_state.weights(params)
            options = {"chunk": split.loss_chunk, "end": end, "targets_per_part": targets}
            loss = model_loss(graph, weights, tokens, key=key, **options)
            extra = penalty(params) if penalty else None
            return loss if extra is None else loss + extra, (loss, extra)

        shapes = paths_and_leaves(bit_state.weights(params))
        sharded = partitioning.shard_rules(rules_now, shapes)

        def bits_gradient(grads):
            bits = nnx.filter_state(params, BitParam)
            found = bit_state.gradients(params, step_key, sharded, grads)
            if (term := penalty) is not None:
                of_penalty = jax.grad(lambda bits: term(nnx.merge_state(params, bits)))(bits)
                found = jax.tree.map(jnp.add, found, of_penalty)
            return found

        point: tuple[nnx.State, jax.Array | None] = params, step_key
        if keeps_w_hat:  # without a key the model samples nothing
            point = bit_state.sample(params, step_key, sharded), None
        after = bits_gradient if takes_bits_after else None
        (loss, extra), grads = _mean_gradients(compute_loss, *point, batch, split, after)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(bit_state.weights(grads))}
        if b_t := method.bit_widths(config, params):
            statistics = bit_width.statistics(b_t)
            metrics |= {f"bits_{name}": value for name, value in statistics.items()}
        if extra is not None:
            metrics["penalty"] = extra
        # The norm of everything: a bit-width that is NaN would spoil the loss of the next step.
        is_finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        new_state = _update(optimizer, state, params, grads, is_finite)
        if not is_own:
            same_bits = nnx.merge_state(new_state.params, nnx.filter_state(params, BitParam))
            new_state = new_state._replace(params=same_bits)
        metrics |= {"skipped": new_state.skipped, "in_a_row": new_state.in_a_row}
        return partitioning.constrain_state(new_state), metrics

    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(train_step, donate_argnums=0, compiler_options=options)


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    params: nnx.State,
    grads: nnx.State,
    is_finite: jax.Array,
) -> TrainState:
    """The state after a step; weights and moments are those before it unless `is_finite`."""

    def choose(new, old):
        return jnp.where(is_finite, new, old)

    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    new: Any = optax.apply_updates(params, updates)
    params, opt_state = jax.tree.map(choose, (new, opt_state), (params, state.opt_state))
    is_skipped = 1 - is_finite.astype(jnp.int32)
    skipped, in_a_row = state.skipped + is_skipped, (state.in_a_row + 1) * is_skipped
    return TrainState(params, opt_state, state.step + 1, skipped, in_a_row)


def _mean_gradients(
    compute_loss: Callable[..., Any],
    params: nnx.State,
    key: jax.Array | None,
    batch: jax.Array,
    split: StepSplit,
    bits_gradient: Callable[..., Any] | None,
) -> tuple[Any, Any]:
    """(auxiliary output, gradients), as means over the microbatches, summed in float32.

    With a key, the gradients are taken at the weights, which the model samples by it; without, at
    the ŵ that stand in their place.
    `bits_gradient(gradients of the weights)` makes those of the bits at the end; if it is None,
    those of the bits are means, too.
    """
    tokens = batch.astype(jnp.int32)
    if bits_gradient:
        bits, params = nnx.filter_state(params, BitParam), bit_state.weights(params)

        def with_bits(weights, *args):
            return compute_loss(nnx.merge_state(weights, bits), *args)

        gradient = jax.grad(with_bits, has_aux=True)
    else:
        gradient = jax.grad(compute_loss, has_aux=True)
    if split.microbatches == 1:
        grads, aux = gradient(params, tokens, key)
        return aux, grads

    def add(total, part):
        index, tokens = part
        part_key = key
        if key is not None and split.noise_per == "microbatch":
            part_key = jax.random.fold_in(key, index)
        grads, aux = gradient(params, tokens, part_key)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (aux, grads)), None

    microbatches = split_batch(tokens, split.microbatches)
    shapes = jax.eval_shape(gradient, params, microbatches[0], key)[::-1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(split.microbatches), microbatches))
    aux, grads = jax.tree.map(lambda x: x / split.microbatches, total)
    return aux, nnx.merge_state(grads, bits_gradient(grads)) if bits_gradient else grads


def _snap_at(snap: int, step: jax.Array, params: nnx.State, rules: Any) -> nnx.State:
    """The parameters with bit-widths at those of formats if `step` is the one where they snap."""
    return jax.lax.cond(step == snap, lambda p: bit_state.snap_bits(p, rules), lambda p: p, params)
