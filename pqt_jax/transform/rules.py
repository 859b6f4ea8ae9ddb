# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rules: which parameter is sampled, and how, decided by its path.

Rules are an ordered list. The path of a parameter is its keys joined by `/` ("h/attn/q/kernel").
The first rule whose pattern matches the whole path decides. Vectors and scalars are never sampled,
and neither is a parameter that no rule matches.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pqt_jax.numerics import blocks, cast, keys
from pqt_jax.numerics.noise import Kind
from pqt_jax.numerics.spec import Spec
from pqt_jax.transform.tree_paths import leaf_paths, map_paths, paths_and_leaves


@dataclasses.dataclass(frozen=True, init=False)
class Rule:
    """A pattern of paths, and how the parameters that it matches are sampled.

    Example:
      >>> rule = Rule("h/.*/kernel", target_bits=3, dtype="float4_e2m1fn")
      >>> rule.spec.block, rule.spec.dtype.name
      ((32, 32), 'E2M1')
      >>> Rule("head/kernel", None).spec is None
      True

    Args:
      pattern: regular expression, matched with the whole `/`-joined path (`re.fullmatch`).
      target_bits: b_target; None if the parameters that the pattern matches are not sampled.
      init_bits, block, noise, dtype, scale, matrix_axes, sharding, round_share: as for `Spec`, with
        the same defaults.

    Raises:
      ValueError: for a pattern that does not compile, and for an option out of range.
      TypeError: for a pattern that is not a string.
    """

    pattern: str
    spec: Spec | None

    def __init__(
        self,
        pattern: str,
        target_bits: float | None = Spec.target_bits,
        init_bits: float = Spec.init_bits,
        block: blocks.Block = Spec.block,
        noise: Kind = Spec.noise,
        dtype: Any = Spec.dtype,
        scale: cast.Scale = Spec.scale,
        matrix_axes: tuple[int, int] = Spec.matrix_axes,
        sharding: PartitionSpec | None = Spec.sharding,
        round_share: float = Spec.round_share,
    ):
        options = (init_bits, block, noise, dtype, scale, matrix_axes, sharding, round_share)
        if not isinstance(pattern, str):
            raise TypeError(f"Rule({pattern!r}): the pattern must be a string")
        try:
            re.compile(pattern)
            spec = Spec(Spec.target_bits if target_bits is None else target_bits, *options)
            if target_bits is None:
                if spec != Spec():
                    raise ValueError("with target_bits=None it samples nothing; give no options")
                spec = None
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"Rule({pattern!r}): the pattern does not compile: {error}") from None
        except (ValueError, TypeError) as error:
            raise type(error)(f"Rule({pattern!r}): {error}") from None
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "spec", spec)

    def __str__(self) -> str:
        return f"Rule({self.pattern!r}{'' if self.spec else ', None'})"


def rules_of_paths(
    rules: Sequence[Rule], shapes: Mapping[str, Any], sharding_of: Callable[..., PartitionSpec]
) -> tuple[Rule, ...]:
    """Make a rule for each parameter that rules sample, which knows how it is sharded.

    Args:
      rules: ordered rules.
      shapes: path → an object with `shape`.
      sharding_of: (path, shape) → `Spec.sharding`.

    Returns:
      Rules that sample the same parameters in the same way.
    """
    exact = []
    for path, leaf in shapes.items():
        rule = first_match(rules, path)
        if rule and rule.spec and len(leaf.shape) >= 2:
            options = {f.name: getattr(rule.spec, f.name) for f in dataclasses.fields(rule.spec)}
            options |= {"sharding": sharding_of(path, leaf.shape)}
            del options["encoded"]
            exact.append(Rule(re.escape(path), **options))
    return tuple(exact)


def check_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return the rules as a tuple.

    Raises:
      TypeError: if one of them is not a `Rule`.
    """
    if not isinstance(rules, list | tuple):
        raise TypeError(f"rules is of type {type(rules).__name__}; give a list of rules")
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"rules holds {rule!r}, which is no Rule")
    return tuple(rules)


def first_match(rules: Sequence[Rule], path: str) -> Rule | None:
    """Return the first rule that matches a path, or None."""
    return next((rule for rule in rules if _matches(rule, path)), None)


def _matches(rule: Rule, path: str) -> bool:
    return re.fullmatch(rule.pattern, path) is not None


def resolve(
    rules: Sequence[Rule], shapes: Mapping[str, Any], *, strict: bool = False
) -> dict[str, Spec]:
    """Find the `Spec` of every parameter that is sampled.

    Args:
      rules: ordered rules.
      shapes: path → an object with `shape` and `dtype`.
      strict: whether a parameter of two axes or more that no rule matches is an error.

    Returns:
      path → spec, in the order of `shapes`.

    Raises:
      ValueError: for a rule that matches no parameter, or none that can be sampled; with `strict`,
        for a parameter that no rule matches; for a rule that does not fit its parameter; and for
        two paths with the same CRC-32, which would get the same noise.
      TypeError: for a sampled parameter that is neither float32 nor bfloat16.
    """
    specs: dict[str, Spec] = {}
    paths_of_rule: list[list[str]] = [[] for _ in rules]
    for path, leaf in shapes.items():
        rule = first_match(rules, path)
        if rule is not None:
            paths_of_rule[rules.index(rule)].append(path)
        if len(jnp.shape(leaf)) < 2 or 0 in leaf.shape:
            continue
        if rule is None and strict:
            raise ValueError(f"no rule decides about {path!r}, and strict=True; add one for it")
        if rule is None or rule.spec is None:
            continue
        if leaf.dtype not in (jnp.float32, jnp.bfloat16):
            raise TypeError(
                f"{rule} matches {path!r} of dtype {leaf.dtype}; only float32 and bfloat16 weights "
                "can be sampled"
            )
        try:
            rule.spec.fitted(leaf.shape)
        except ValueError as error:
            raise ValueError(f"{rule} at {path!r}: {error}") from None
        specs[path] = rule.spec
    for rule, paths in zip(rules, paths_of_rule, strict=True):
        if not paths:
            if shadowed := [path for path in shapes if _matches(rule, path)]:
                raise ValueError(
                    f"{rule} comes after rules that decide about {list_some(shadowed)}"
                )
            known = list_some(list(shapes))
            raise ValueError(f"{rule} matches no parameter; the paths are {known}")
        if rule.spec is not None and not any(path in specs for path in paths):
            raise ValueError(
                f"{rule} matches only what is never sampled (vectors, scalars, arrays without "
                f"elements): {list_some(paths)}"
            )
    _check_collisions(specs)
    return specs


def check_bits(bits: Any, specs: Mapping[str, Spec], prefix: str = "") -> None:
    """Refuse bit-widths of a path at which nothing is sampled, such as a mistyped one.

    Args:
      bits: b_i, nested by the paths of the parameters.
      specs: from `resolve`.
      prefix: put before every path.

    Raises:
      ValueError: if there are any.
    """
    if unknown := [path for path in leaf_paths(bits, prefix) if path not in specs]:
        raise ValueError(
            f"bits has {list_some(unknown)}, where no parameter is sampled; the sampled ones are "
            f"{list_some(list(specs))}: make bits with init(params) under the same rules"
        )


def map_sampled(
    function: Callable[[str, Spec, Any], Any],
    params: Any,
    rules: Sequence[Rule],
    *,
    prefix: str = "",
    strict: bool = False,
) -> Any:
    """Apply `function(path, spec, leaf)` to every parameter that a rule samples; keep the others.

    Args:
      function: makes the new leaf.
      params: pytree of arrays.
      rules, strict: as for `resolve`.
      prefix: put before every path.

    Raises:
      TypeError, ValueError: as `resolve`. A ValueError of the function is raised with the path.
    """
    specs = resolve(rules, paths_and_leaves(params, prefix), strict=strict)

    def visit(path, leaf):
        if path not in specs:
            return leaf
        try:
            return function(path, specs[path], leaf)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    return map_paths(visit, params, prefix)


def _check_collisions(specs: Mapping[str, Spec]) -> None:
    by_id: dict[int, str] = {}
    for path in specs:
        other = by_id.setdefault(keys.path_id(path), path)
        if other != path:
            raise ValueError(
                f"{path!r} and {other!r} have the same CRC-32, so they would get the same noise; "
                "rename one"
            )


def list_some(paths: Sequence[str], limit: int = 8) -> str:
    """Name the first paths, and say how many there are."""
    if not paths:
        return "none"
    rest = f", … ({len(paths)} in all)" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + rest
