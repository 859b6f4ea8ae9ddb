# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How does each method train? Each has one `Method` record with everything that is special to it.

A new method is one more record in `block_methods`, or a module of its own that is listed here.
"""

from typing import TYPE_CHECKING, Any

from flax import nnx

from pqt_jax.training.methods import block_methods, diffq_method
from pqt_jax.training.methods.method import Method as Method
from pqt_jax.transform.rules import Rule

if TYPE_CHECKING:  # the schema imports the methods, for their names
    from pqt_jax.training.config.schema import RunConfig

METHODS = {method.name: method for method in (*block_methods.METHODS, diffq_method.METHOD)}


def get_method(config: "RunConfig") -> Method:
    """The record of the method that a config names."""
    return METHODS[config.method]


def make_rules(config: "RunConfig") -> list[Rule]:
    """The rules that the model is wrapped by; empty where the method wraps nothing."""
    return get_method(config).make_rules(config)


def make_model(config: "RunConfig", rngs: nnx.Rngs) -> nnx.Module:
    """The model as it is trained, its bit-widths included."""
    return get_method(config).make_model(config, rngs)


def bit_widths(config: "RunConfig", params: nnx.State) -> dict[str, Any]:
    """b_t of every block, or b of every group, nested by parameter path."""
    return get_method(config).bit_widths(config, params)


def snap_step(config: "RunConfig") -> int | None:
    """The number of steps after which bit-widths snap to formats; None for never."""
    if config.pqt.snap_at == 1 or not get_method(config).learns_bits:
        return None
    return round(config.pqt.snap_at * config.steps)
