# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Everything that this package uses of Flax and that Flax does not document.

A new version of Flax may change any of it. tests/transform/test_flax_internals.py checks each
function here against the installed version, and names what has changed.
"""

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen, nnx
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


def rng_of_scope(scope: linen_scope.Scope, name: str) -> jax.Array:
    """Return the key of a Linen scope's random stream.

    `make_rng` folds in how often it was called before; this key does not depend on that.
    """
    return linen_scope.LazyRng.create(scope.rngs[name]).as_jax_rng()


def running_scopes() -> list[linen_scope.Scope]:
    """The scopes of the Linen modules whose methods are running, the outermost first."""
    modules = linen.module._context.module_stack
    return [module.scope for module in modules if module is not None and module.scope is not None]


def is_module_method(value: Any) -> bool:
    """Whether an attribute of a Linen class is a method that may use the scope, not `nn.nowrap`."""
    return getattr(value, "method_handler_wrapped", False)


class OverlaidScope(linen_scope.Scope):
    """A Linen scope with some collections replaced; every other one is that of the scope below."""

    below: linen_scope.Scope

    def _mutable_collection(self, col: str) -> Any:
        # What a call adds must reach the scope below, from which `apply` returns it.
        if col not in self._variables:
            self._variables[col] = self.below._mutable_collection(col)
        return self._variables[col]

    def rewound(self, rewind_rngs: bool = False) -> linen_scope.Scope:
        """As of any scope; Flax calls it after each compact method."""
        scope = super().rewound(rewind_rngs)
        scope.__class__ = OverlaidScope
        scope.below = self.below  # pyright: ignore[reportAttributeAccessIssue]
        return scope


def overlay_scope(
    scope: linen_scope.Scope, collections: Mapping[str, Mapping[str, Any]], hide: str
) -> OverlaidScope:
    """Return a scope in which some collections are replaced, and one and its rng are missing.

    Args:
      scope: of a bound module; it is not changed.
      collections: name → new content, at the scope's own path. They can no longer be written.
      hide: name of a collection and of a random stream.

    Returns:
      A scope with the same path and counters of random streams, in which no name is taken.
    """
    variables: Any = dict(scope.variables())
    variables.pop(hide, None)
    variables.update(collections)
    rngs: Any = {name: rng for name, rng in scope.rngs.items() if name != hide}
    overlaid = OverlaidScope(
        variables,
        rngs,
        scope.name,
        linen_scope.subtract_filters(scope.mutable, list(collections)),
        path=scope.path,
        debug_path=scope.debug_path,
        flags=scope.flags,
    )
    overlaid.rng_counters = scope.rng_counters
    overlaid.below = scope
    return overlaid


def rebind(module: linen.Module, cls: type[linen.Module]) -> linen.Module:
    """Return a bound Linen module as an object of another class, at the same place.

    Names that are taken in its scope were taken by the same module; they are free again.
    """
    copy = object.__new__(cls)
    state = type(module._state)(is_initialized=True)
    vars(copy).update(vars(module), _state=state, scope=_scope(module).rewound())
    return copy


def unbind_below(module: linen.Module) -> dict[str, Any]:
    """Return the fields of a bound module; the modules that it took as its own are unbound.

    Modules from outside stay bound where they are.
    """
    scope, clones = _scope(module), weakref.WeakValueDictionary()

    def is_own(x: Any) -> bool:
        return (
            isinstance(x, linen.Module)
            and x.scope is not None
            and x.scope.root is scope.root
            and x.scope.path[: len(scope.path)] == scope.path
        )

    def unbind(x: Any) -> Any:
        return x.clone(_deep_clone=clones, _reset_names=True, name=None) if is_own(x) else x

    def is_module(x: Any) -> bool:
        return isinstance(x, linen.Module)

    values = {name: getattr(module, name) for name in field_names(module)}
    return {name: jax.tree.map(unbind, value, is_leaf=is_module) for name, value in values.items()}


def field_names(module: linen.Module) -> list[str]:
    """Return the names of the fields of a Linen module, without those that Flax adds to each."""
    fields = dataclasses.fields(module)
    return [field.name for field in fields if field.init and field.name not in ("parent", "name")]


def _scope(module: linen.Module) -> linen_scope.Scope:
    assert module.scope is not None
    return module.scope
