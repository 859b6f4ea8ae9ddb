# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Everything that this package uses of Flax and that Flax does not document.

A new version of Flax may change any of it. tests/transform/test_flax_internals.py checks each
function here against the installed version, and names what has changed.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.core import scope as linen_scope
from flax.core.meta import AxisMetadata


def is_box(node: Any) -> bool:
    """Whether a node of a tree is a box around an array: an NNX variable, or Linen metadata."""
    return isinstance(node, nnx.Variable | AxisMetadata)


def is_pytree_class(cls: type[nnx.Module]) -> bool:
    """Whether the modules of an NNX class are pytrees; `class M(nnx.Module, pytree=False)` is not.

    A subclass must state it again: Flax does not inherit it.
    """
    return cls._pytree__is_pytree  # pyright: ignore[reportAttributeAccessIssue]


def holds_reference(variable: nnx.Variable) -> bool:
    """Whether a variable holds a mutable reference (`ref` or `hijax`) instead of an array."""
    return bool(variable.ref or variable.hijax)


def get_raw_value(variable: nnx.Variable) -> Any:
    """Return what a variable holds: an array, or the box around one."""
    return variable.get_raw_value()


def set_raw_value(variable: nnx.Variable, value: Any) -> None:
    """Set what a variable holds, without Flax's check of the trace level.

    Flax forbids that a variable made outside a transform is written inside it, since the value
    would outlive the trace. The caller must put the old value back before the transform ends.
    """
    object.__setattr__(variable, "_raw_value", value)


def rewound_scope(scope: linen_scope.Scope) -> linen_scope.Scope:
    """Return a Linen scope as it was before any name in it was taken."""
    return scope.rewound()


def rng_of_scope(scope: linen_scope.Scope, name: str) -> jax.Array:
    """Return the key of a Linen scope's random stream.

    `make_rng` folds in how often it was called before; this key does not depend on that.
    """
    return linen_scope.LazyRng.create(scope.rngs[name]).as_jax_rng()


def is_nowrap(method: Callable[..., Any]) -> bool:
    """Whether a method of a Linen module is marked by `linen.nowrap`."""
    return hasattr(method, "nowrap")
