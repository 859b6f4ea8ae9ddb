# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The training state: weights, bit-widths, moments and counts, as arrays or as shapes only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pqt_jax.errors import InputError
from pqt_jax.models import build_model, partitioning
from pqt_jax.models.decoder import check_rules
from pqt_jax.models.registry import model_config
from pqt_jax.training import flops, methods
from pqt_jax.training.background import call_in_thread
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves

# The program that makes new weights runs once, and LLVM's highest level takes twice as long to
# compile it (LOG.md). The weights have the same bits.
_CPU_OPTIONS = {"xla_backend_optimization_level": 1}


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      params: weights and `BitParam`s of the model.
      opt_state: the optimizer's state.
      step: int32 scalar, the number of steps taken, skipped ones among them.
      skipped: int32 scalar, the number of steps that changed neither weights nor optimizer, since
        loss or gradient was not finite.
      in_a_row: int32 scalar, how many of them were the last steps.
    """

    params: nnx.State
    opt_state: Any
    step: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array


def init_state(
    config: RunConfig, optimizer: optax.GradientTransformation, start: Any = None
) -> tuple[nnx.GraphDef, TrainState]:
    """The model's structure and the state before the first step.

    Args:
      config: a checked configuration.
      optimizer: from `make_optimizer`.
      start: weights to start from, nested by their paths; None for new ones.

    Returns:
      (structure, state); new weights are a function of `config.seed`. Bit-widths are always new.
    """
    graph, _, take_state = begin_state(config, optimizer, start)
    return graph, take_state()


def begin_state(
    config: RunConfig, optimizer: optax.GradientTransformation, start: Any = None
) -> tuple[nnx.GraphDef, TrainState, Callable[[], TrainState]]:
    """Begin to make the state before the first step: a thread compiles the program that makes it.

    Args:
      config, optimizer, start: as for `init_state`.

    Returns:
      (structure, shapes as from `abstract_state`, a function that waits for the program and returns
      the state). The function can be called once, so that nothing else keeps the weights.
    """
    graph, init = _initializer(config, optimizer)
    options = _CPU_OPTIONS if jax.default_backend() == "cpu" else None
    traced = jax.jit(init, compiler_options=options).trace(start)
    once = [(call_in_thread(traced.lower().compile), start)]

    def take_state() -> TrainState:
        wait_for_program, weights = once.pop()
        return wait_for_program()(weights)

    return graph, partitioning.add_shardings(traced.out_info), take_state


def abstract_state(
    config: RunConfig, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """The shapes, dtypes and shardings of what `init_state` returns; needs no memory for arrays.

    Args:
      config: a checked configuration.
      optimizer: from `make_optimizer`.
    """
    graph, init = _initializer(config, optimizer)
    return graph, partitioning.add_shardings(jax.eval_shape(init, None))


def _initializer(
    config: RunConfig, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, Callable[[Any], TrainState]]:
    def build():
        return methods.make_model(config, nnx.Rngs(config.seed))

    def init(start):
        params = nnx.state(build())
        if start is not None:
            params = _replace_weights(params, start)
        none = jnp.zeros((), jnp.int32)
        return partitioning.constrain_state(
            TrainState(params, optimizer.init(params), none, none, none)
        )

    return make_graph(config), init


def make_graph(config: RunConfig) -> nnx.GraphDef:
    """The structure of the model as it is trained."""
    return nnx.split(nnx.eval_shape(lambda: methods.make_model(config, nnx.Rngs(0))))[0]


def _replace_weights(params: nnx.State, start: Any) -> nnx.State:
    """Replace the weights, whose dtypes stay; the bit-widths do not change."""
    new, old = paths_and_leaves(start), paths_and_leaves(params)
    same = [new.pop(path).astype(leaf.dtype) for path, leaf in old.items()]
    assert not new, min(new)
    tree = jax.tree.structure(bit_state.weights(params))
    return nnx.merge_state(params, jax.tree.unflatten(tree, same))


def count_parameters(config: RunConfig) -> int:
    """Count the weights by their shapes, and check the rules against their paths.

    Raises:
      InputError: if a rule does not fit the model.
    """
    shapes = nnx.eval_shape(lambda: build_model(model_config(config), rngs=nnx.Rngs(0)))
    try:
        check_rules(shapes, quantization_rules(config))
    except ValueError as error:
        raise InputError(f"config.pqt.pattern={config.pqt.pattern!r}: {error}") from None
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))


def check_memory(config: RunConfig, parameters: int) -> None:
    """Raise InputError if weights, gradients and the optimizer's two moments cannot fit."""
    shards = config.mesh.fsdp * config.mesh.tensor
    needed = 4 * parameters * jnp.dtype(config.model.param_dtype).itemsize / shards
    there = flops.device_memory(jax.local_devices()[0])
    if needed > there:
        raise InputError(
            f"config.model: {parameters:,} parameters, with gradients and moments, take "
            f"{needed / 1e9:,.0f} GB on each device, and there are {there / 1e9:,.0f} GB; give a "
            "smaller model, or a larger config.mesh.fsdp"
        )


def check_step_memory(memory: Any, limit: int) -> None:
    """Raise InputError if the compiled step needs more than twice the memory of a device.

    Up to that it is tried: a CPU may swap, and what XLA says is an upper bound.

    Args:
      memory: what `memory_analysis()` of the compiled step returns.
      limit: bytes of the device, from `flops.device_memory`.
    """
    if memory is None:
        return
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    if needed > 2 * limit:
        raise InputError(
            f"config.data.batch: the compiled step takes {needed / 1e9:,.1f} GB on each device, "
            f"and there are {limit / 1e9:,.1f} GB; give more config.data.microbatches, a "
            "config.data.loss_chunk, config.model.remat, or a larger config.mesh.fsdp"
        )
