# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Trained weights in a format by name: "master", "bf16", …, or "mixed" for the learned bits.

parameters, rules, name → plan → rounded weights
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pqt_jax.errors import InputError
from pqt_jax.numerics.formats import FORMATS, as_format
from pqt_jax.quantization.quantize import Plan, apply, plan_mixed, plan_uniform
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods import METHODS, get_method
from pqt_jax.transform import bit_state
from pqt_jax.transform.rules import Rule

LABELS = {
    "master": "master weights",
    **{name: fmt.label for name, fmt in FORMATS.items()},
    "mixed": "learned mixed bits",
}


def make_plan(params: nnx.State, rules: Sequence[Rule], name: str, **options: Any) -> Plan:
    """Make the plan that rounds weights to a format, or by the learned bits.

    Args:
      params: with or without `BitParam`s.
      rules: which parameters are rounded, and by what blocks.
      name: one of `LABELS`. The plan of "master" rounds nothing.
      options: passed to `quantize.plan_mixed` for "mixed", else to `quantize.plan_uniform`.

    Raises:
      InputError: for "mixed" where no bits were learned, or an unknown name.
    """
    weights = bit_state.weights(params)
    if name not in LABELS:
        raise InputError(f"weights {name!r}; it must be one of {', '.join(LABELS)}")
    if name == "master":
        return {}
    if name != "mixed":
        return plan_uniform(weights, rules, FORMATS[name], **options)
    if not (bits := bit_state.collect_bits(params)):
        raise InputError("weights 'mixed': no bits were learned here; give another format")
    return plan_mixed(weights, bits, rules, **options)


def round_by_plan(params: nnx.State, plan: Plan) -> nnx.State:
    """Round the weights by a plan; they keep their dtype, or get a wider one if they need it.

    Args:
      params: with or without `BitParam`s.
      plan: from `make_plan`.

    Returns:
      The weights without bit-widths, as the bare model takes them.
    """
    weights = bit_state.weights(params)
    index = {path: assigned.index for path, assigned in plan.items()}

    def round_all(weights, index):  # an argument, since it may be split over several processes
        return apply({path: a._replace(index=index[path]) for path, a in plan.items()}, weights)

    def widen(rounded, w):
        return rounded.astype(jnp.promote_types(rounded.dtype, w.dtype))

    rounded = jax.jit(round_all)(weights, index) if plan else weights
    # To the parameters' dtype, so that one compiled model serves all formats. It holds every
    # format, but products with exact scales may need float32.
    return jax.tree.map(widen, rounded, weights)


def round_to_format(
    config: RunConfig | None, params: nnx.State, rules: Sequence[Rule], name: str
) -> nnx.State:
    """The weights in a format. A method may define how "mixed" rounds.

    Args:
      config: the run's configuration; None for a model that was trained elsewhere.
      params, rules, name: as for `make_plan`.

    Returns:
      As `round_by_plan`.

    Raises:
      InputError: as `make_plan`.
    """
    round_weights = get_method(config).round_weights if config is not None else None
    if name == "mixed" and config is not None and round_weights is not None:
        return round_weights(config, params)
    return round_by_plan(params, make_plan(params, rules, name))


def format_label(method: str | None, name: str) -> str:
    """The name that tables show for weights in a format.

    Example:
      >>> format_label("gaussws", "mixed"), format_label("diffq", "mixed")
      ('learned mixed bits', "DiffQ's own bits")

    Args:
      method: the method of the training run; None for a model that was trained elsewhere.
      name: one of `LABELS`, or of another format.
    """
    record = METHODS.get(method or "")
    if name == "mixed" and record is not None and record.mixed_label is not None:
        return record.mixed_label
    return LABELS[name] if name in LABELS else as_format(name).label
