# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Weights and bit-widths in the state of a model.

state → weights | bits → b_t, snapped to formats

DiffQ learns logits in place of b_i. They are in the state under the same name, by the paths of
their parameters, and have a type of their own.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from pqt_jax.numerics.mixed_formats import snap
from pqt_jax.transform.bit_gradients import bit_gradients
from pqt_jax.transform.nnx_wrapper import BitParam
from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.perturb import perturb_tree
from pqt_jax.transform.rules import Rule, first_match
from pqt_jax.transform.tree_paths import BITS, map_paths, paths_and_leaves


class LogitParam(BitParam):
    """DiffQ's logits of one parameter, float32, one per group."""


def weights(params: nnx.State) -> nnx.State:
    """The state without its bit-widths."""
    return nnx.filter_state(params, nnx.Not(BitParam))


def collect_bits(params: nnx.State) -> dict[str, Any]:
    """The b_i of all parameters that have bit-widths, nested by the paths of these parameters."""

    def collect(tree):
        bits = {}
        for name, value in tree.items():
            if name == BITS:
                bits |= value
            elif isinstance(value, dict) and (below := collect(value)):
                bits[name] = below
        return bits

    return collect(nnx.to_pure_dict(nnx.filter_state(params, nnx.Not(LogitParam))))


def collect_logits(params: nnx.State) -> dict[str, Any]:
    """DiffQ's logits, nested by the paths of their parameters; empty for other methods."""
    return nnx.to_pure_dict(nnx.filter_state(params, LogitParam)).get(BITS, {})


def has_bits(params: nnx.State) -> bool:
    """Whether the state has b_i or DiffQ's logits."""
    return bool(jax.tree.leaves(nnx.filter_state(params, BitParam)))


def bit_widths(params: nnx.State, rules: Sequence[Rule]) -> dict[str, Any]:
    """b_t of every block, in a dict nested by parameter path."""
    return param_transform(rules).bit_widths(collect_bits(params))


def sample(params: nnx.State, key: jax.Array, rules: Sequence[Rule]) -> nnx.State:
    """The state with ŵ in place of every weight that a rule samples; the key is consumed."""
    return nnx.merge_state(params, perturb_tree(weights(params), collect_bits(params), key, rules))


def gradients(
    params: nnx.State, key: jax.Array, rules: Sequence[Rule], of_weights: nnx.State
) -> nnx.State:
    """∂L/∂b_i in the form of the state's bits, from ∂L/∂w; see `bit_gradients`."""
    found = bit_gradients(weights(params), collect_bits(params), key, rules, of_weights)
    by_path = paths_and_leaves(found)

    def visit(path, _):
        return by_path["/".join(part for part in path.split("/") if part != BITS)]

    return map_paths(visit, nnx.filter_state(params, BitParam))


def snap_bits(params: nnx.State, rules: Sequence[Rule]) -> nnx.State:
    """The state with every b_t at the largest bit-width of its format (`mixed_formats.snap`)."""

    def visit(path, leaf):
        parts = path.split("/")
        if BITS not in parts:
            return leaf
        rule = first_match(rules, "/".join(part for part in parts if part != BITS))
        assert rule is not None and rule.spec is not None  # else it would have no bits
        return snap(leaf, rule.spec.target_bits, rule.spec.init_bits)

    return map_paths(visit, params)
