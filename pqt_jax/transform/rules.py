# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rules: which parameter is sampled how, decided by its path.

Rules are an ordered list. A parameter's path is its keys joined by `/` ("h/attn/q/kernel"); the
first rule whose pattern matches the whole path decides. Vectors and scalars are never sampled, and
a parameter that no rule matches is left alone.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core.meta import AxisMetadata

from pqt_jax.numerics import blocks, cast, keys
from pqt_jax.numerics.noise import Kind
from pqt_jax.numerics.spec import Spec

BITS = "pqt_bits"  # where wrapped modules keep their bit-widths; never parameters themselves


@dataclasses.dataclass(frozen=True, init=False)
class Rule:
    """One line of the rule list: a pattern, and how what it matches is sampled.

    Example:
      >>> rule = Rule("h/.*/kernel", target_bits=3, dtype="float4_e2m1fn")
      >>> rule.spec.block, rule.spec.dtype.name
      ((32, 32), 'E2M1')
      >>> Rule("head/kernel", None).spec is None
      True

    Args:
      pattern: regular expression, `re.fullmatch`-ed on the `/`-joined path.
      target_bits: b_target; None leaves alone what the pattern matches.
      init_bits, block, noise, dtype, scale, matrix_axes: as for `Spec`, with its defaults.

    Raises:
      ValueError: for a pattern that does not compile and for an option out of range.
      TypeError: for a pattern that is no string.
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
    ):
        options = (init_bits, block, noise, dtype, scale, matrix_axes)
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


def check_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules as a tuple.

    Raises:
      TypeError: if one is not a `Rule`.
    """
    if not isinstance(rules, list | tuple):
        raise TypeError(f"rules is of type {type(rules).__name__}; give a list of rules")
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"rules holds {rule!r}, which is no Rule")
    return tuple(rules)


def first_match(rules: Sequence[Rule], path: str) -> Rule | None:
    """The rule that decides about a path, or None."""
    return next((rule for rule in rules if _matches(rule, path)), None)


def _matches(rule: Rule, path: str) -> bool:
    return re.fullmatch(rule.pattern, path) is not None


def resolve(
    rules: Sequence[Rule], shapes: Mapping[str, Any], *, strict: bool = False
) -> dict[str, Spec]:
    """Decide about every parameter: path → `Spec`, for those that are sampled.

    Args:
      rules: ordered rules.
      shapes: path → anything with `shape` and `dtype`.
      strict: whether a parameter of two axes or more that no rule matches is an error.

    Returns:
      The specs by path, in the order of `shapes`.

    Raises:
      ValueError: for a rule that matches nothing, or nothing that can be sampled; for a parameter
        that no rule decides about (strict); for one that its rule does not fit; and for two paths
        whose noise keys would collide.
      TypeError: for a sampled parameter that is neither float32 nor bfloat16.
    """
    specs: dict[str, Spec] = {}
    matched: list[list[str]] = [[] for _ in rules]
    for path, leaf in shapes.items():
        index = next((i for i, rule in enumerate(rules) if _matches(rule, path)), None)
        rule = None if index is None else rules[index]
        if index is not None:
            matched[index].append(path)
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
            blocks.matrix_shape(leaf.shape, rule.spec.matrix_axes)
        except ValueError as error:
            raise ValueError(f"{rule} at {path!r}: {error}") from None
        specs[path] = rule.spec
    for rule, paths in zip(rules, matched, strict=True):
        if not paths:
            if hidden := [path for path in shapes if _matches(rule, path)]:
                raise ValueError(f"{rule} comes after rules that decide about {_some(hidden)}")
            raise ValueError(f"{rule} matches no parameter; the paths are {_some(list(shapes))}")
        if rule.spec is not None and not any(path in specs for path in paths):
            raise ValueError(
                f"{rule} matches only what is never sampled (vectors, scalars, arrays without "
                f"elements): {_some(paths)}"
            )
    _check_collisions(specs)
    return specs


def _check_collisions(specs: Mapping[str, Spec]) -> None:
    by_id: dict[int, str] = {}
    for path in specs:
        other = by_id.setdefault(keys.path_id(path), path)
        if other != path:
            raise ValueError(
                f"{path!r} and {other!r} have the same CRC-32, so they would get the same noise; "
                "rename one"
            )


def _some(paths: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(paths[:most])
    return shown + (f", … ({len(paths)} in all)" if len(paths) > most else "") if paths else "none"


def leaf_paths(tree: Any, prefix: str = "") -> list[str]:
    """The `/`-joined path of every leaf, in the order of `jax.tree.leaves`.

    A box around an array, `nnx.Variable` or Linen metadata, adds nothing to its path.

    Example:
      >>> leaf_paths({"h": [{"kernel": 0.0}, {"kernel": 1.0}]}, prefix="model")
      ['model/h/0/kernel', 'model/h/1/kernel']
    """
    top = [prefix] if prefix else []
    return ["/".join(parts) for parts in _walk(tree, top)]


def _walk(node: Any, parts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The parts of each leaf's path; a box, which may hold another box, adds none."""

    def is_inner_box(inside: Any) -> bool:
        return inside is not node and _is_box(inside)

    for entries, inside in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_inner_box):
        here = [*parts, *map(_name, entries[1:] if _is_box(node) else entries)]
        if is_inner_box(inside):
            yield from _walk(inside, here)
        else:
            yield here


def _is_box(node: Any) -> bool:
    return isinstance(node, nnx.Variable | AxisMetadata)


def _name(entry: Any) -> str:
    fields = ("key", "name", "idx")
    return str(next(getattr(entry, field) for field in fields if hasattr(entry, field)))


def map_paths(function: Callable[[str, Any], Any], tree: Any, prefix: str = "") -> Any:
    """Apply `function(path, leaf)` to every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(map(function, leaf_paths(tree, prefix), leaves))


def paths_and_leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every parameter of a tree by its path; bit-widths kept in the tree are passed over.

    Raises:
      ValueError: if two parameters have one path, as `{"a/b": …, "a": {"b": …}}` has, or if a
        parameter's path is also a folder of others', as in `{"a": …, "a/b": …}`.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in zip(leaf_paths(tree, prefix), jax.tree.leaves(tree), strict=True):
        if BITS in path.split("/"):
            continue
        if path in leaves:
            raise ValueError(f"two parameters have the path {path!r}; rename one")
        leaves[path] = leaf
    for path in leaves:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if (folder := "/".join(parts[:end])) in leaves:
                raise ValueError(f"{folder!r} is a parameter, yet {path!r} is one too; rename one")
    return leaves


def same_leaves(a: Any, b: Any) -> bool:
    """Whether two trees hold the very same arrays."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
