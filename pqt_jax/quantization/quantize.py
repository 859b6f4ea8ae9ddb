# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Deterministic quantization: to one format, or by the learned bit-widths.

    rules, format or bits → plan: which parameter goes to which format → rounded parameters

A block of bit-width b_t goes to the smallest of E2M1, E3M2, E4M3, E4M7 and BF16 whose
`noise_bits = m + 2` is at least b_t: the format whose rounding its training has stood for.

    b_t up to   3     4     5     9     more
    format      E2M1  E3M2  E4M3  E4M7  BF16

A plan says nothing of values: `apply` rounds by it, `sizes` counts by it, `packed` stores by it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pqt_jax.numerics import bit_width, blocks, cast, partition
from pqt_jax.numerics.formats import BF16, E2M1, E3M2, E4M3, E4M7, FloatFormat, as_format
from pqt_jax.numerics.reference import cast_blocks
from pqt_jax.numerics.spec import Spec
from pqt_jax.transform.rules import Rule, check_rules, map_paths, paths_and_leaves, resolve

LADDER: tuple[FloatFormat, ...] = (E2M1, E3M2, E4M3, E4M7, BF16)
Granularity = Literal["block", "tensor", "model"]


class Assigned(NamedTuple):
    """What one parameter is quantized to.

    Attributes:
      spec: format, block, scale rule and matrix axes; nothing about noise.
      index: int32, one for each block (`blocks.grid_shape`), an index into `LADDER` that takes the
        place of the spec's format; None where the whole parameter has that.
    """

    spec: Spec
    index: jax.Array | None = None


Plan = Mapping[str, Assigned]  # by parameter path; what is not in it stays as it is


def format_index(b_t: jax.Array) -> jax.Array:
    """Which format of `LADDER` carries each bit-width.

    Example:
      >>> [LADDER[i].name for i in format_index(jnp.array([3.0, 4.5, 6.0, 12.0]))]
      ['E2M1', 'E4M3', 'E4M7', 'BF16']

    Args:
      b_t: float32, in bits.

    Returns:
      int32 of the same shape, an index into `LADDER`.
    """
    limits = [fmt.noise_bits for fmt in LADDER[:-1]]
    return jnp.sum(jnp.stack([b_t > limit for limit in limits]), axis=0, dtype=jnp.int32)


def snap(b_i: jax.Array, target_bits: float, init_bits: float) -> jax.Array:
    """Raise bit-widths to the largest that their formats carry, `b_t → m + 2`.

    Sampling then stands for the very formats that the blocks will be stored in. Blocks that go to
    BF16 stay: no format bounds them.

    Example:
      >>> bitwidth.bit_width(snap(jnp.array([-1.0, -0.25, 0.0, 1.0]), 4.0, 6.0), 4.0, 6.0).tolist()
      [3.0, 4.0, 4.0, 9.0]

    Args:
      b_i: float32, one per block.
      target_bits, init_bits: b_target and b_init, which must differ.

    Returns:
      b_i of the same shape whose formats (`format_index`) are the same.

    Raises:
      ValueError: if b_target and b_init are one, so that b_i has no effect.
    """
    if target_bits == init_bits:
        raise ValueError(f"target_bits=init_bits={init_bits}; bits that do not move cannot snap")
    b_t = bit_width.bit_width(b_i, target_bits, init_bits)
    limits = jnp.array([fmt.noise_bits for fmt in LADDER], b_t.dtype)[format_index(b_t)]
    snapped = (limits - target_bits) / (init_bits - target_bits)
    for _ in range(2):  # rounding may have lifted b_t over the limit, and so to the next format
        above = bit_width.bit_width(snapped, target_bits, init_bits) > limits
        snapped = jnp.where(above, jnp.nextafter(snapped, -jnp.inf), snapped)
    return jnp.where(format_index(b_t) == len(LADDER) - 1, b_i, snapped)


def plan_uniform(
    params: Any,
    rules: Sequence[Rule],
    dtype: Any,
    *,
    block: blocks.Block | None = None,
    scale: cast.Scale | None = None,
) -> Plan:
    """One format for every parameter that a rule samples.

    Args:
      params: pytree of arrays, or of their shapes.
      rules: as for `param_transform`.
      dtype: bfloat16, or any format.
      block, scale: in place of the rules' own.

    Returns:
      The plan.

    Raises:
      ValueError: for a format, block or scale that is none, and as `rules.resolve`.
    """
    own = {"block": block, "scale": scale}
    given = {name: value for name, value in own.items() if value is not None}
    specs = resolve(check_rules(rules), paths_and_leaves(params))
    fmt = as_format(dtype)
    return {path: Assigned(_cast_alone(spec, dtype=fmt, **given)) for path, spec in specs.items()}


def plan_mixed(
    params: Any,
    bits: Any,
    rules: Sequence[Rule],
    *,
    granularity: Granularity = "block",
    share: float = 1.0,
) -> Plan:
    """The format that the learned bit-widths call for.

    Example:
      >>> params, bits = {"w": jnp.ones((32, 64))}, {"w": jnp.array([[-0.5, 0.0]])}
      >>> rules = [Rule("w", target_bits=4, init_bits=6)]
      >>> plan_mixed(params, bits, rules)["w"].index.tolist()  # b_t is 3 and 4
      [[0, 1]]
      >>> plan_mixed(params, bits, rules, granularity="tensor", share=0.5)["w"].index.tolist()
      [[0, 0]]

    Args:
      params: pytree of arrays, or of their shapes.
      bits: b_i, nested as `param_transform(rules).init(params)` made them.
      rules: those the bits were learned under. What they cast without noise, they cast here.
      granularity: "block": each has the smallest format that carries its b_t. "tensor": each matrix
        has the smallest that carries the given share of its blocks. "model": all have.
      share: of the blocks, above 0 and up to 1; of no effect on blocks.

    Returns:
      The plan.

    Raises:
      ValueError: for a granularity or share out of range, and for bits of the wrong shape.
    """
    if granularity not in (names := ("block", "tensor", "model")):
        raise ValueError(f"granularity={granularity!r}; it must be one of {', '.join(names)}")
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}; it must be above 0 and at most 1")
    shapes, learned = paths_and_leaves(params), paths_and_leaves(bits)
    plan, index = {}, {}
    for path, spec in resolve(check_rules(rules), shapes).items():
        plan[path] = Assigned(_cast_alone(spec))
        if spec.noise != "none":
            b_i = learned.get(path)
            try:
                blocks.check_grid(b_i, shapes[path], spec.block, spec.matrix_axes)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            b_t = bit_width.bit_width(jnp.asarray(b_i), spec.target_bits, spec.init_bits)
            index[path] = format_index(b_t)
            if granularity == "tensor":
                index[path] = _carrying(index[path], share, (-2, -1))
    if granularity == "model" and index:
        one = _carrying(jnp.concatenate([i.ravel() for i in index.values()]), share, (0,))[0]
        index = {path: jnp.full_like(i, one) for path, i in index.items()}
    return plan | {path: plan[path]._replace(index=i) for path, i in index.items()}


def _carrying(index: jax.Array, share: float, axes: tuple[int, ...]) -> jax.Array:
    """The least index that is enough for a share of the blocks along the axes, for each of them."""
    needed = max(1, math.ceil(share * math.prod(index.shape[axis] for axis in axes) - 1e-9))
    held = [jnp.sum(index <= i, axis=axes, keepdims=True) for i in range(len(LADDER))]
    enough = jnp.argmax(jnp.stack(held) >= needed, axis=0)
    return jnp.broadcast_to(enough, index.shape).astype(jnp.int32)


def apply(plan: Plan, params: Any) -> Any:
    """Round parameters by a plan.

    Args:
      plan: from `plan_uniform` or `plan_mixed`.
      params: pytree of arrays.

    Returns:
      The same pytree; rounded parameters in the dtype that holds their formats (bfloat16, or
      float32).
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
      As `apply`.

    Raises:
      ValueError: as `plan_uniform`.
    """
    return apply(plan_uniform(params, rules, dtype, block=block, scale=scale), params)


def quantize_mixed(w: jax.Array, b_t: jax.Array, spec: Spec) -> jax.Array:
    """Round each block of a parameter to the format that its bit-width calls for.

    Args:
      w: float32 or bfloat16 parameter.
      b_t: float32, one per block.
      spec: block, scale rule and matrix axes are taken from it.

    Returns:
      w's shape, bfloat16: every format of `LADDER` fits it.

    Raises:
      ValueError: for a b_t of the wrong shape.
    """
    blocks.check_grid(b_t, w, spec.block, spec.matrix_axes)
    return round_parameter(w, Assigned(_cast_alone(spec), format_index(b_t)))


def round_parameter(w: jax.Array, assigned: Assigned) -> jax.Array:
    """Round one parameter to what it is assigned."""
    spec, index = assigned.spec.fitted(w.shape), assigned.index
    matrices = partition.as_matrices(w, spec.matrix_axes)
    if index is None:
        return partition.restored(cast_blocks(spec, matrices), w, spec.matrix_axes)

    def mixed(matrices, index):
        _, m, n = matrices.shape
        index = blocks.spread(index, spec.block)[:, :m, :n]
        out = cast_blocks(dataclasses.replace(spec, dtype=LADDER[-1]), matrices)
        for i, fmt in enumerate(LADDER[:-1]):
            rounded = cast_blocks(dataclasses.replace(spec, dtype=fmt), matrices)
            out = jnp.where(index == i, rounded, out)
        return out

    rounded = partition.over_blocks(
        mixed, spec.block, matrices, partition.as_matrices(index, (1, 1))
    )
    return partition.restored(rounded, w, spec.matrix_axes)


def _cast_alone(spec: Spec, **changes: Any) -> Spec:
    return dataclasses.replace(spec, noise="none", **changes)
