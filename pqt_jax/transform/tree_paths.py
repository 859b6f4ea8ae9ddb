# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Trees of parameters by path: the keys of a leaf, joined by `/` ("h/attn/q/kernel")."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from pqt_jax.transform.flax_internals import is_box

BITS = "pqt_bits"  # the attribute under which wrapped modules keep their bit-widths


def leaf_paths(tree: Any, prefix: str = "") -> list[str]:
    """List the path of every leaf, in the order of `jax.tree.leaves`.

    A box around an array (`nnx.Variable`, Linen metadata) adds nothing to its path.

    Example:
      >>> leaf_paths({"h": [{"kernel": 0.0}, {"kernel": 1.0}]}, prefix="model")
      ['model/h/0/kernel', 'model/h/1/kernel']
    """
    first = [prefix] if prefix else []
    return ["/".join(names) for names in _walk(tree, first)]


def _walk(node: Any, names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the names on each leaf's path. A box adds none; it may hold another box."""

    def is_inner_box(inside: Any) -> bool:
        return inside is not node and is_box(inside)

    for entries, inside in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_inner_box):
        here = [*names, *map(_entry_name, entries[1:] if is_box(node) else entries)]
        if is_inner_box(inside):
            yield from _walk(inside, here)
        else:
            yield here


def _entry_name(entry: Any) -> str:
    fields = ("key", "name", "idx")
    return str(next(getattr(entry, field) for field in fields if hasattr(entry, field)))


def map_paths(function: Callable[[str, Any], Any], tree: Any, prefix: str = "") -> Any:
    """Apply `function(path, leaf)` to every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(map(function, leaf_paths(tree, prefix), leaves))


def paths_and_leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return every parameter of a tree by its path. Bit-widths in the tree are left out.

    Raises:
      ValueError: if two parameters have one path, as in `{"a/b": …, "a": {"b": …}}`, or if the
        path of one is a folder of others, as in `{"a": …, "a/b": …}`.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in zip(leaf_paths(tree, prefix), jax.tree.leaves(tree), strict=True):
        if BITS in path.split("/"):
            continue
        if path in leaves:
            raise ValueError(f"two parameters have the path {path!r}; rename one")
        leaves[path] = leaf
    for path in leaves:
        names = path.split("/")
        for end in range(1, len(names)):
            if (folder := "/".join(names[:end])) in leaves:
                raise ValueError(f"{folder!r} is a parameter, yet {path!r} is one too; rename one")
    return leaves


def insert_leaf(tree: dict[str, Any], path: str, leaf: Any, prefix: str = "") -> None:
    """Put a leaf into a nested dict at a path, whose prefix is left out."""
    *folders, name = _split(path, prefix)
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = leaf


def lookup_bits(bits: Any, path: str, prefix: str = "") -> jax.Array:
    """Return the bit-widths of the parameter at a path, whose prefix is left out.

    Raises:
      ValueError: if there are none.
    """
    node: Any = bits
    for name in _split(path, prefix):
        try:
            node = node[name]
        except (KeyError, TypeError):
            raise ValueError(
                "bits has no entry for it; make bits with init(params) under the same rules"
            ) from None
    return node


def _split(path: str, prefix: str) -> list[str]:
    return path.removeprefix(f"{prefix}/" if prefix else "").split("/")


def same_leaves(a: Any, b: Any) -> bool:
    """Whether two trees hold the very same arrays (identity, not equality)."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
