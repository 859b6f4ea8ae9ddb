# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`param_transform`: sampling of a tree of parameters, as pure functions in the style of optax.

    init(params)               → bits          b_i = 1, one per block, nested like the parameters
    sample(params, bits, key)  → params_hat    ŵ where a rule matches, other parameters unchanged
    bit_widths(bits)           → b_t
    quantize(params, bits)     → params_q      deterministic, by the learned bits
    summary(params, bits)      → a table

Bits are in a nested dict of their own. Parameters keep their paths and dtypes, so that a checkpoint
of the bare model is also one of the transformed model, and the reverse.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pqt_jax.numerics import bit_width, blocks
from pqt_jax.numerics.deterministic_rounding import quantize_mixed
from pqt_jax.numerics.spec import Spec
from pqt_jax.transform.perturb import perturb, perturb_tree
from pqt_jax.transform.presets import describe
from pqt_jax.transform.rules import (
    Rule,
    check_bits,
    check_rules,
    first_match,
    map_sampled,
    resolve,
)
from pqt_jax.transform.tree_paths import insert_leaf, lookup_bits, map_paths, paths_and_leaves

Bits = dict[str, Any]


class _Sample(Protocol):
    def __call__(
        self, params: Any, bits: Bits, key: jax.Array, *, lead: jax.Array | int | None = None
    ) -> Any: ...


class ParamTransform(NamedTuple):
    """The functions of `param_transform`; each is pure.

    Attributes:
      init: `params -> bits`. Works on shapes too (`jax.eval_shape`).
      sample: `(params, bits, key, lead=None) -> params_hat`, differentiable in params and bits. The
        key is that of the step (`keys.step_key`); the key of a parameter is derived from it by the
        parameter's path. `lead` is the index of the layer, where params are one layer of a stack
        whose layers share the key.
      bit_widths: `bits -> b_t`, the same nested dict, in bits per weight.
      quantize: `(params, bits) -> params_q`: each block rounded to the smallest format that carries
        its b_t, see `deterministic_rounding.quantize_mixed`.
      summary: `(params, bits) -> str`, a table of path, shape, blocks, mean b_t and format, and one
        of the parameters of two axes or more that no rule matches, with what they probably are.
    """

    init: Any
    sample: _Sample
    bit_widths: Any
    quantize: Any
    summary: Any


def param_transform(
    rules: Sequence[Rule], *, prefix: str = "", strict: bool = False
) -> ParamTransform:
    """Gaussian weight sampling as pure functions on a tree of parameters.

    Example:
      >>> params = {"dense": {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}}
      >>> transform = param_transform([Rule(".*kernel")])
      >>> bits = transform.init(params)
      >>> bits["dense"]["kernel"].shape
      (2, 2)
      >>> params_hat = transform.sample(params, bits, jax.random.key(0))
      >>> params_hat["dense"]["kernel"].dtype, params_hat["dense"]["bias"].dtype
      (dtype(bfloat16), dtype('float32'))

    Args:
      rules: ordered. The first rule whose pattern matches the whole `/`-joined path decides.
      prefix: put before every path, for a subtree of a larger model.
      strict: whether a parameter of two axes or more that no rule matches is an error.

    Returns:
      A `ParamTransform`. Its functions take any pytree of arrays: dict, FrozenDict, `nnx.State`.

    Raises:
      TypeError, ValueError: from its functions, as `rules.resolve`, `rules.check_bits` and
        `perturb`; the message names the rule and the path.
    """
    rules = check_rules(rules)

    def specs_of(params: Any) -> dict[str, Spec]:
        return resolve(rules, paths_and_leaves(params, prefix), strict=strict)

    def init(params: Any) -> Bits:
        shapes = paths_and_leaves(params, prefix)
        bits: Bits = {}
        for path, spec in specs_of(params).items():
            if spec.noise != "none":
                grid = blocks.grid_shape(shapes[path].shape, spec.block, spec.matrix_axes)
                insert_leaf(bits, path, jnp.ones(grid, jnp.float32), prefix)
        return bits

    def sample(params, bits, key, *, lead=None):
        check_bits(bits, specs_of(params), prefix)
        return perturb_tree(params, bits, key, rules, prefix=prefix, strict=strict, lead=lead)

    def bit_widths(bits: Bits) -> Bits:
        def visit(path, b_i):
            rule = first_match(rules, path)
            if rule is None or rule.spec is None:
                raise ValueError(f"no rule samples {path!r}, yet it has bits")
            return bit_width.bit_width(b_i, rule.spec.target_bits, rule.spec.init_bits)

        return map_paths(visit, bits, prefix)

    def quantize_by_bits(params: Any, bits: Bits) -> Any:
        def visit(path, spec, w):
            if spec.noise == "none":
                return perturb(w, None, None, dataclasses.replace(spec, round_share=1.0))
            b_i = lookup_bits(bits, path, prefix)
            b_t = bit_width.bit_width(b_i, spec.target_bits, spec.init_bits)
            return quantize_mixed(w, b_t, spec)

        check_bits(bits, specs_of(params), prefix)
        return map_sampled(visit, params, rules, prefix=prefix, strict=strict)

    def summary(params: Any, bits: Bits) -> str:
        shapes, specs = paths_and_leaves(params, prefix), specs_of(params)
        check_bits(bits, specs, prefix)
        return _table(shapes, specs, bits, prefix) + _undecided(shapes, rules)

    return ParamTransform(
        init=init, sample=sample, bit_widths=bit_widths, quantize=quantize_by_bits, summary=summary
    )


def _table(shapes: dict[str, Any], specs: dict[str, Spec], bits: Bits, prefix: str) -> str:
    rows = [("path", "shape", "blocks", "mean b_t", "format")]
    for path, leaf in shapes.items():
        shape = "x".join(map(str, jnp.shape(leaf))) or "scalar"
        spec = specs.get(path)
        if spec is None:
            rows.append((path, shape, "", "", str(jnp.result_type(leaf))))
        elif spec.noise == "none":
            rows.append((path, shape, "", "", spec.rounding_label))
        else:
            b_i = lookup_bits(bits, path, prefix)
            try:
                blocks.check_grid(b_i, leaf, spec.block, spec.matrix_axes)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            b_t = bit_width.bit_width(b_i, spec.target_bits, spec.init_bits)
            mean = f"{float(jnp.mean(b_t)):.2f}"
            rows.append((path, shape, str(b_t.size), mean, f"{spec.dtype.label} + {spec.noise}"))
    return _align(rows, "<<>><")


def _undecided(shapes: dict[str, Any], rules: Sequence[Rule]) -> str:
    """The parameters of two axes or more that no rule matches, and what each probably is."""
    rows = [("no rule decides about", "shape", "")]
    for path, leaf in shapes.items():
        shape = jnp.shape(leaf)
        if len(shape) >= 2 and first_match(rules, path) is None:
            rows.append((path, "x".join(map(str, shape)), describe(path, shape)))
    return "\n\n" + _align(rows, "<<<") if len(rows) > 1 else ""


def _align(rows: list[tuple[str, ...]], sides: str) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    lines = [line.format(*row) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
