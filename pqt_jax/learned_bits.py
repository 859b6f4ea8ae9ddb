# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The bit-widths in a model's state, and what moves them beside their gradient.

state → weights | bits → b_t → penalty, snap to formats
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from pqt_jax import bitwidth, sizes
from pqt_jax.config import METHODS, Config
from pqt_jax.config import rules as method_rules
from pqt_jax.quantize import snap as snap_bits
from pqt_jax.rules import BITS, Rule, first_match, map_paths, paths_and_leaves, resolve
from pqt_jax.transform import param_transform
from pqt_jax.wrap_nnx import BitParam

Penalty = Callable[[nnx.State], jax.Array]


def weights(params: nnx.State) -> nnx.State:
    """The state without its bit-widths."""
    return nnx.filter_state(params, nnx.Not(BitParam))


def collect_bits(params: nnx.State) -> dict[str, Any]:
    """The bits of all wrapped parts, nested by the paths of the parameters they belong to."""

    def collect(tree):
        bits = {}
        for name, value in tree.items():
            if name == BITS:
                bits |= value
            elif isinstance(value, dict) and (below := collect(value)):
                bits[name] = below
        return bits

    return collect(nnx.to_pure_dict(params))


def bit_widths(params: nnx.State, rules: Sequence[Rule]) -> dict[str, Any]:
    """b_t of every block, in a dict nested by parameter path."""
    return param_transform(rules).bit_widths(collect_bits(params))


def make_penalty(config: Config) -> Penalty | None:
    """What `config.pqt.penalty` adds to the loss, beside the decay of the bit-widths.

        layer     Σ_layers mean_B |b_t − b_target|       `bitwidth.layer_loss`
        average   (mean_B b_t − average_bits)²           `bitwidth.average_loss`
        size      mean bits of a stored weight           `sizes.mean_bits`

    Returns:
      `params -> float32 scalar`, times `penalty_weight`; None where there is none.
    """
    pqt, own = config.pqt, method_rules(config)
    if pqt.penalty == "none" or own[0].spec is None or own[0].spec.noise == "none":
        return None

    def penalty(params):
        b_t = bit_widths(params, own)
        if pqt.penalty == "layer":
            return pqt.penalty_weight * bitwidth.layer_loss(b_t, pqt.target_bits)
        if pqt.penalty == "average":
            return pqt.penalty_weight * bitwidth.average_loss(b_t, pqt.average_bits)
        by_path, shapes = paths_and_leaves(b_t), paths_and_leaves(weights(params))
        specs = resolve(own, shapes)
        held = {path: sizes.block_sizes(shapes[path].shape, specs[path]) for path in by_path}
        return pqt.penalty_weight * sizes.mean_bits(by_path, held)

    return penalty


def snap_step(config: Config) -> int | None:
    """The number of steps after which bit-widths snap to formats; None for never."""
    if config.pqt.snap_at == 1 or METHODS[config.method] == "none":
        return None
    return round(config.pqt.snap_at * config.steps)


def snapped(params: nnx.State, rules: Sequence[Rule]) -> nnx.State:
    """The state with every bit-width at what its format carries (`quantize.snap`)."""

    def visit(path, leaf):
        parts = path.split("/")
        if BITS not in parts:
            return leaf
        rule = first_match(rules, "/".join(part for part in parts if part != BITS))
        assert rule is not None and rule.spec is not None  # it has bits
        return snap_bits(leaf, rule.spec.target_bits, rule.spec.init_bits)

    return map_paths(visit, params)
