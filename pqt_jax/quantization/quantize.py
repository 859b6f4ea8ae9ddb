# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Deterministic quantization of a model: to one format, or by the learned bit-widths.

    rules and a format, or rules and bits → plan: parameter path → format → rounded parameters

A plan holds formats and no values. `apply` rounds parameters by a plan, `sizes` counts the bits
that they take, and `packed_file` stores them. `numerics.mixed_formats` says which format a learned
bit-width calls for.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pqt_jax.numerics import bit_width, blocks, cast
from pqt_jax.numerics.deterministic_rounding import (
    FormatAssignment,
    quantize_mixed,
    round_parameter,
)
from pqt_jax.numerics.formats import as_format
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, Match, format_index, snap
from pqt_jax.numerics.spec import Spec
from pqt_jax.transform.rules import Rule, check_bits, check_rules, resolve
from pqt_jax.transform.tree_paths import map_paths, paths_and_leaves

__all__ = [
    "MIXED_FORMATS",
    "FormatAssignment",
    "Granularity",
    "Plan",
    "apply",
    "format_index",
    "plan_mixed",
    "plan_uniform",
    "quantize",
    "quantize_mixed",
    "round_parameter",
    "snap",
]

Granularity = Literal["block", "tensor", "model"]
Plan = Mapping[str, FormatAssignment]  # by parameter path; other parameters are not rounded


def plan_uniform(
    params: Any,
    rules: Sequence[Rule],
    dtype: Any,
    *,
    block: blocks.Block | None = None,
    scale: cast.Scale | None = None,
) -> Plan:
    """Plan one format for every parameter that a rule samples.

    Args:
      params: pytree of arrays, or of their shapes.
      rules: as for `param_transform`.
      dtype: bfloat16, or any format.
      block, scale: replace those of the rules; None keeps them.

    Returns:
      The plan.

    Raises:
      ValueError: for an invalid format, block or scale, and as `rules.resolve`.
    """
    options = {"block": block, "scale": scale}
    changes = {name: value for name, value in options.items() if value is not None}
    specs = resolve(check_rules(rules), paths_and_leaves(params))
    fmt = as_format(dtype)
    return {
        path: FormatAssignment(_cast_alone(spec, dtype=fmt, **changes))
        for path, spec in specs.items()
    }


def plan_mixed(
    params: Any,
    bits: Any,
    rules: Sequence[Rule],
    *,
    granularity: Granularity = "block",
    share: float = 1.0,
    match: Match = "noise",
) -> Plan:
    """Plan the formats that match the learned bit-widths.

    Example:
      >>> params, bits = {"w": jnp.ones((32, 64))}, {"w": jnp.array([[-0.5, 0.0]])}
      >>> rules = [Rule("w", target_bits=4, init_bits=6)]
      >>> plan_mixed(params, bits, rules)["w"].index.tolist()  # b_t is 3 and 4
      [[0, 1]]
      >>> plan_mixed(params, bits, rules, granularity="tensor", share=0.5)["w"].index.tolist()
      [[0, 0]]

    Args:
      params: pytree of arrays, or of their shapes.
      bits: b_i, nested as in `param_transform(rules).init(params)`.
      rules: the rules that the bits were learned under. A parameter that they cast without noise
        gets the format of its rule.
      granularity: "block": each block gets the smallest format that matches its b_t. "tensor": each
        matrix gets the smallest format that matches the share of its blocks. "model": all
        parameters get the smallest format that matches the share of all blocks.
      share: share of the blocks, above 0 and at most 1; not used with granularity "block".
      match: "noise": the format can represent the noise of b_t, so that rounding adds little to it.
        "error": its rounding error is as large as the noise, for up to six bits less of each
        weight (`numerics.mixed_formats`).

    Returns:
      The plan.

    Raises:
      ValueError: for a granularity, share or match out of range, and for bits of the wrong shape,
        or of a path at which nothing is sampled.
    """
    if granularity not in (names := ("block", "tensor", "model")):
        raise ValueError(f"granularity={granularity!r}; it must be one of {', '.join(names)}")
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}; it must be above 0 and at most 1")
    shapes, bits_by_path = paths_and_leaves(params), paths_and_leaves(bits)
    plan, index = {}, {}
    specs = resolve(check_rules(rules), shapes)
    check_bits(bits, specs)
    for path, spec in specs.items():
        plan[path] = FormatAssignment(_cast_alone(spec))
        if spec.noise != "none":
            b_i = bits_by_path.get(path)
            try:
                blocks.check_grid(b_i, shapes[path], spec.block, spec.matrix_axes)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            b_t = bit_width.bit_width(jnp.asarray(b_i), spec.target_bits, spec.init_bits)
            index[path] = format_index(b_t, match)
            if granularity == "tensor":
                index[path] = _index_for_share(index[path], share, (-2, -1))
    if granularity == "model" and index:
        all_blocks = jnp.concatenate([i.ravel() for i in index.values()])
        one = _index_for_share(all_blocks, share, (0,))[0]
        index = {path: jnp.full_like(i, one) for path, i in index.items()}
    return plan | {path: plan[path]._replace(index=i) for path, i in index.items()}


def _index_for_share(index: jax.Array, share: float, axes: tuple[int, ...]) -> jax.Array:
    """Give all blocks along the axes the smallest format that carries a share of them."""
    needed = max(1, math.ceil(share * math.prod(index.shape[axis] for axis in axes) - 1e-9))
    carried = [jnp.sum(index <= i, axis=axes, keepdims=True) for i in range(len(MIXED_FORMATS))]
    smallest = jnp.argmax(jnp.stack(carried) >= needed, axis=0)
    return jnp.broadcast_to(smallest, index.shape).astype(jnp.int32)


def apply(plan: Plan, params: Any) -> Any:
    """Round parameters by a plan.

    Args:
      plan: from `plan_uniform` or `plan_mixed`.
      params: pytree of arrays.

    Returns:
      The same pytree. Rounded parameters are bfloat16, or float32 where their format needs it. One
      weight that is Inf or NaN makes its block NaN: a function that may be traced cannot refuse it.
    """

    def visit(path, w):
        return round_parameter(w, plan[path]) if path in plan else w

    return map_paths(visit, params)


def quantize(
    params: Any,
    rules: Sequence[Rule],
    dtype: Any,
    *,
    block: blocks.Block | None = None,
    scale: cast.Scale | None = None,
) -> Any:
    """Round every parameter that a rule samples to one format, block-scaled.

    Example:
      >>> params = {"kernel": jnp.full((32, 32), 0.7), "bias": jnp.zeros(32)}
      >>> quantize(params, [Rule(".*kernel")], "float4_e2m1fn")["kernel"][0, 0].item()
      0.75

    Args:
      params: pytree of arrays.
      rules, dtype, block, scale: as for `plan_uniform`.

    Returns:
      The same pytree, as `apply` returns it.

    Raises:
      ValueError: as `plan_uniform`.
    """
    return apply(plan_uniform(params, rules, dtype, block=block, scale=scale), params)


def _cast_alone(spec: Spec, **changes: Any) -> Spec:
    return dataclasses.replace(spec, noise="none", **changes)
