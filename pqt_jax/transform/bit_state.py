# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The bit-widths in a model's state, and what moves them beside their gradient.

state → weights | bits → b_t → penalty, snap to formats

DiffQ's logits, which its method learns in their place, lie in the state under the same name, by the
paths of their parameters, and are told apart by their type.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from pqt_jax.models import build_model
from pqt_jax.numerics import bit_width
from pqt_jax.numerics.mixed_formats import snap as snap_bits
from pqt_jax.quantization import sizes
from pqt_jax.training.config.schema import METHODS, Config, model_config, quantization_rules
from pqt_jax.training.config.schema import rules as method_rules
from pqt_jax.transform import diffq
from pqt_jax.transform.nnx_wrapper import BitParam
from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.rules import Rule, first_match, resolve
from pqt_jax.transform.tree_paths import BITS, map_paths, paths_and_leaves

Penalty = Callable[[nnx.State], jax.Array]


class LogitParam(BitParam):
    """DiffQ's logits of one parameter, float32, one per group; told apart from b_i by this type."""


class Outside(NamedTuple):
    """A method that samples outside the model.

    Attributes:
      sample: (params, step's key) → params with ŵ in the place of w.
      bit_widths: params → b of every group, nested by parameter path.
    """

    sample: Callable[[nnx.State, jax.Array], nnx.State]
    bit_widths: Callable[[nnx.State], dict[str, Any]]


def make_model(config: Config, rngs: nnx.Rngs) -> nnx.Module:
    """The model as it is trained: wrapped by the rules of its method, or bare beside its logits."""
    model = build_model(model_config(config), method_rules(config), rngs=rngs)
    if config.method == "diffq":
        params, options = nnx.state(model, nnx.Param), diffq_options(config)
        shapes = paths_and_leaves(params)
        make = lambda path, _: LogitParam(diffq.init(path, shapes[path].shape, options))  # noqa: E731
        chosen = param_transform(quantization_rules(config)).init(params)
        setattr(model, BITS, nnx.data(map_paths(make, chosen)))
    return model


def diffq_options(config: Config) -> diffq.Options:
    """Those of a config."""
    return diffq.Options(**{name: getattr(config.diffq, name) for name in diffq.Options._fields})


def outside(config: Config) -> Outside | None:
    """How the method samples outside the model; None where it samples inside."""
    if config.method != "diffq":
        return None
    options, dtype = diffq_options(config), config.model.dtype

    def sample(params, key):
        hats = diffq.sample(weights(params), logits_of(params), key, options, dtype)
        return nnx.merge_state(params, hats)

    def widths(params):
        return jax.tree.map(lambda leaf: diffq.bit_width(leaf, options), logits_of(params))

    return Outside(sample, widths)


def weights(params: nnx.State) -> nnx.State:
    """The state without its bit-widths."""
    return nnx.filter_state(params, nnx.Not(BitParam))


def collect_bits(params: nnx.State) -> dict[str, Any]:
    """The b_i of all wrapped parts, nested by the paths of the parameters they belong to."""

    def collect(tree):
        bits = {}
        for name, value in tree.items():
            if name == BITS:
                bits |= value
            elif isinstance(value, dict) and (below := collect(value)):
                bits[name] = below
        return bits

    return collect(nnx.to_pure_dict(nnx.filter_state(params, nnx.Not(LogitParam))))


def logits_of(params: nnx.State) -> dict[str, Any]:
    """DiffQ's logits, nested by the paths of the parameters they belong to; empty without any."""
    return nnx.to_pure_dict(nnx.filter_state(params, LogitParam)).get(BITS, {})


def are_learned(params: nnx.State) -> bool:
    """Whether the state has bit-widths of any kind."""
    return bool(jax.tree.leaves(nnx.filter_state(params, BitParam)))


def bit_widths(params: nnx.State, rules: Sequence[Rule]) -> dict[str, Any]:
    """b_t of every block, in a dict nested by parameter path."""
    return param_transform(rules).bit_widths(collect_bits(params))


def method_widths(config: Config, params: nnx.State) -> dict[str, Any]:
    """b_t of every block, or b of every group, whichever the method learns."""
    own = outside(config)
    return own.bit_widths(params) if own else bit_widths(params, method_rules(config))


def make_penalty(config: Config) -> Penalty | None:
    """What `config.pqt.penalty`, or DiffQ, adds to the loss, beside the decay of the bit-widths.

        layer     Σ_layers mean_B |b_t − b_target|       `bit_width.layer_loss`
        average   (mean_B b_t − average_bits)²           `bit_width.average_loss`
        size      mean bits of a stored weight           `sizes.mean_bits`
        (diffq)   megabytes of the quantized weights     `diffq.size_mb`

    Returns:
      `params -> float32 scalar`, times `penalty_weight` (DiffQ's `penalty`); None where there is
      none.
    """
    if config.method == "diffq":
        weight, options = config.diffq.penalty, diffq_options(config)
        size = lambda params: diffq.size_mb(weights(params), logits_of(params), options)  # noqa: E731
        return (lambda params: weight * size(params)) if weight else None
    pqt, own = config.pqt, method_rules(config)
    if pqt.penalty == "none" or own[0].spec is None or own[0].spec.noise == "none":
        return None

    def penalty(params):
        b_t = bit_widths(params, own)
        if pqt.penalty == "layer":
            return pqt.penalty_weight * bit_width.layer_loss(b_t, pqt.target_bits)
        if pqt.penalty == "average":
            return pqt.penalty_weight * bit_width.average_loss(b_t, pqt.average_bits)
        by_path, shapes = paths_and_leaves(b_t), paths_and_leaves(weights(params))
        specs = resolve(own, shapes)
        held = {path: sizes.weights_per_block(shapes[path].shape, specs[path]) for path in by_path}
        return pqt.penalty_weight * sizes.mean_bits(by_path, held)

    return penalty


def snap_step(config: Config) -> int | None:
    """The number of steps after which bit-widths snap to formats; None for never."""
    if config.pqt.snap_at == 1 or METHODS[config.method] == "none":
        return None
    return round(config.pqt.snap_at * config.steps)


def snapped(params: nnx.State, rules: Sequence[Rule]) -> nnx.State:
    """The state with every bit-width at what its format carries (`mixed_formats.snap`)."""

    def visit(path, leaf):
        parts = path.split("/")
        if BITS not in parts:
            return leaf
        rule = first_match(rules, "/".join(part for part in parts if part != BITS))
        assert rule is not None and rule.spec is not None  # it has bits
        return snap_bits(leaf, rule.spec.target_bits, rule.spec.init_bits)

    return map_paths(visit, params)
