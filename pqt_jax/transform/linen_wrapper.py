# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for Linen: a module of a subclass, whose methods run on sampled parameters.

wrapped.apply(variables, x)                      the bare model
wrapped.apply(variables, x, rngs={"pqt": key})   the bare model in a scope that holds ŵ

A bound wrapped module makes one bare module in a scope whose "params" are ŵ, and hands it every
call and every attribute. So it does not matter how the model is called: by `method=`, by a function
of the bare class, through `bind`, or by a layer that a parent reads from it.

`nn.WeightNorm` around a wrapped layer normalizes every collection, the bits too. Wrap the module
that holds the `WeightNorm`, or give `WeightNorm` a filter with the name of the wrapped layer, such
as `variable_filter={"Dense_0/kernel"}`.
"""

import contextlib
import contextvars
import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import linen as nn
from flax import nnx
from flax.core.scope import in_filter

from pqt_jax.transform.flax_internals import (
    field_names,
    is_module_method,
    overlay_scope,
    rebind,
    rng_of_scope,
    running_scopes,
    unbind_below,
)
from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.rules import Rule, first_match
from pqt_jax.transform.tree_paths import paths_and_leaves
from pqt_jax.transform.wrapped_class import Recipe, pickled_as_recipe

COLLECTION = "pqt"  # name of the collection of the bits, and of the rng stream

# Wrapped modules that the call of `apply` that runs has reached; None outside of one. Whether they
# sampled cannot be told: a compiled function that runs again does not run their code.
_reached: contextvars.ContextVar[list[nn.Module] | None] = contextvars.ContextVar(
    "reached", default=None
)

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class Wrapped(_Base):
    """What a wrapped Linen module has before its bare class in the order of its bases."""

    pqt_recipe: Recipe

    def __post_init__(self) -> None:
        """Bind the module, and its fields that are modules, which a parent may read."""
        super().__post_init__()
        if self.scope is None:
            return
        leaves = jax.tree.leaves(
            [getattr(self, name) for name in field_names(self)],
            is_leaf=lambda x: isinstance(x, nn.Module),
        )
        if not any(isinstance(leaf, nn.Module) for leaf in leaves):
            return
        if (model := self._pqt_sampled()) is not None:
            for name in field_names(self):
                object.__setattr__(self, name, getattr(model, name))

    def _call_wrapped_method(self, fun: Any, args: Any, kwargs: Any) -> Any:
        """Call a method. Flax comes here for each, whether it was called by name or by class."""
        if (model := self._pqt_sampled()) is not None:
            return model._call_wrapped_method(fun, args, kwargs)
        is_outer = not vars(self).get("_pqt_is_called", False)
        object.__setattr__(self, "_pqt_is_called", True)
        try:
            out = super()._call_wrapped_method(fun, args, kwargs)
        finally:
            if is_outer:
                object.__setattr__(self, "_pqt_is_called", False)
        name = getattr(fun, "__name__", "")
        if is_outer and name != "setup" and self.scope is not None and self.is_initializing():
            self._pqt_init_bits(is_complete=name == "__call__")
        return out

    def __getattr__(self, name: str) -> Any:
        """Return what the model made in its setup, in the scope that holds ŵ."""
        is_special = name.startswith("__") or name.startswith("_pqt")
        if not is_special and (model := self._pqt_sampled()) is not None:
            return getattr(model, name)
        return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]

    def _try_setup(self, shallow: bool = False) -> None:
        """Set up. Flax asks for a shallow setup before it lifts a function over the module."""
        if shallow:
            self._pqt_note()
        super()._try_setup(shallow)

    def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
        """The bare model's output, whatever the rngs. The variables always have the bits."""
        out, variables = super().init_with_output(*args, **kwargs)
        is_kept = in_filter(kwargs.get("mutable", True), COLLECTION)
        if is_kept and "params" in variables:  # a function may have called layers alone
            bits = self._pqt_transform().init(variables["params"])
            variables = type(variables)({**variables, COLLECTION: {"bits": bits}})
        return out, variables

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of the bare model, on ŵ with the rng "pqt"; an error if nothing was sampled by it."""
        rngs = kwargs.get("rngs")
        with _reaching() as reached:
            out = super().apply(variables, *args, **kwargs)
        if isinstance(rngs, Mapping) and COLLECTION in rngs and not reached:
            raise ValueError(
                f'the "pqt" rng is given, and this call of {type(self).__name__} sampled nothing: '
                'it called no method or layer of the model. Leave out rngs={"pqt": …}, or take ŵ '
                "from param_transform(rules).sample(params, bits, key)"
            )
        return out

    def _pqt_transform(self) -> Any:
        _, rules, options = self.pqt_recipe
        return param_transform(rules, prefix=options["prefix"], strict=options["strict"])

    def _pqt_sampled(self) -> nn.Module | None:
        """Return the bare module in the scope that holds ŵ; None if this module runs bare."""
        if self.scope is None or self.is_initializing():
            return None
        if "_pqt_model" not in vars(self):
            object.__setattr__(self, "_pqt_model", self._pqt_sample())
        self._pqt_note()
        return vars(self)["_pqt_model"]

    def _pqt_note(self) -> None:
        """Note that this call of `apply` reached the module."""
        if (modules := _reached.get()) is not None:
            modules.append(self)

    def _pqt_sample(self) -> nn.Module | None:
        scope, options = self.scope, self.pqt_recipe.options
        assert scope is not None
        variables = scope.variables()
        bits = variables.get(COLLECTION, {}).get("bits")
        if not scope.has_rng(COLLECTION):
            # Flax also sets a module up in an empty scope, to see whether it can.
            if variables.get("params") and any(s.has_rng(COLLECTION) for s in running_scopes()):
                raise ValueError(
                    f'the "pqt" rng is given, and {type(self).__name__} does not get it: name it '
                    'in the scan or vmap around it, split_rngs={"params": True, "pqt": True}'
                )
            if bits is not None and options["require_key"]:
                raise ValueError(
                    f"{type(self).__name__} was wrapped with require_key=True and is called "
                    'without a key: give rngs={"pqt": key}, or leave the bits out to run the bare '
                    'model on purpose: apply({"params": …}, …)'
                )
            if not isinstance(self, nnx.bridge.ToLinen):
                return None
            # It hands every collection to its NNX module, which knows no bits.
            return self._pqt_bare(overlay_scope(scope, {}, hide=COLLECTION))
        if bits is None:
            raise ValueError(
                'the "pqt" rng is given but the variables have no "pqt" collection; take it from '
                'init, or make it: {"params": p, "pqt": {"bits": param_transform(rules).init(p)}}'
            )
        key = rng_of_scope(scope, COLLECTION)  # every call of one step samples the same ŵ
        params = self._pqt_transform().sample(variables.get("params", {}), bits, key)
        return self._pqt_bare(overlay_scope(scope, {"params": params}, hide=COLLECTION))

    def _pqt_bare(self, scope: Any) -> nn.Module:
        return self.pqt_recipe.cls(**unbind_below(self), parent=scope, name=self.name)

    def _pqt_init_bits(self, is_complete: bool) -> None:
        """Make the bits of the parameters that there are so far."""
        scope, (_, rules, options) = self.scope, self.pqt_recipe
        assert scope is not None
        made = set(scope.variables().get(COLLECTION, {})) - {"bits"}
        if made:
            raise ValueError(
                f"a part of {type(self).__name__} is wrapped already, and has bits of its own: "
                f"{sorted(made)}; wrap it once"
            )
        if not scope.is_mutable_collection(COLLECTION):
            if any(s.is_mutable_collection(COLLECTION) for s in running_scopes()):
                raise ValueError(
                    f"{type(self).__name__} is wrapped, and can keep no bits: name their "
                    'collection in the scan or vmap around it, variable_axes={"params": 0, '
                    '"pqt": 0}, and their rng, split_rngs={"params": True, "pqt": True}'
                )
            return
        params = scope.variables().get("params", {})
        if not is_complete:  # other methods may make what the other rules are for
            paths = paths_and_leaves(params, options["prefix"])
            matched = {first_match(rules, path) for path, w in paths.items() if w.ndim >= 2}
            rules = tuple(rule for rule in rules if rule in matched)
        transform = param_transform(
            rules, prefix=options["prefix"], strict=options["strict"] and is_complete
        )
        scope.put_variable(COLLECTION, "bits", transform.init(params))


def wrap(model: Any, rules: tuple[Rule, ...], **options: Any) -> Any:
    """Wrap a Linen module, at its place if it has one. See `pqt_transform`."""
    if isinstance(model, Wrapped):
        raise ValueError(f"{type(model).__name__} is wrapped already; wrap it once")
    cls = _wrapped_class(type(model), rules, **options)
    if model.scope is not None:  # made, and named, by a parent
        return rebind(model, cls)
    fields = {name: getattr(model, name) for name in field_names(model)}
    return cls(**fields, parent=model.parent, name=model.name)


def unwrap(model: Any) -> nn.Module:
    """Make the bare module of a wrapped one, with the same fields and name."""
    fields = {name: getattr(model, name) for name in field_names(model)}
    return model.pqt_recipe.cls(**fields, parent=model.parent, name=model.name)


@functools.cache
def _wrapped_class(cls: type, rules: tuple[Rule, ...], **options: Any) -> type:
    """Make the class of wrapped modules.

    It has the name of the bare class, from which Flax makes the names of layers, so that a wrapped
    layer has the path of the bare one.
    """

    def fill(namespace: dict[str, Any]) -> None:
        for name in dir(cls):
            method = inspect.getattr_static(cls, name)
            if is_module_method(method) and not hasattr(nn.Module, name) or name == "__call__":
                namespace[name] = _on_sampled(method)
        namespace.update(
            __module__=cls.__module__,
            __doc__=f"{cls.__name__} with sampled weights, by `pqt_transform`.",
            pqt_recipe=Recipe(cls, rules, options),
        )

    metaclass = pickled_as_recipe(type(cls), _wrapped_class)
    return types.new_class(cls.__name__, (Wrapped, cls), {"metaclass": metaclass}, fill)


def _on_sampled(method: Any) -> Any:
    """Make a method of the wrapped class. One that is lifted then lifts over the scope with ŵ."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        # A class below the wrapped one may call its methods on the bare module.
        model = self._pqt_sampled() if isinstance(self, Wrapped) else None
        return method(self if model is None else model, *args, **kwargs)

    return call


@contextlib.contextmanager
def _reaching() -> Iterator[list[nn.Module]]:
    """Collect the wrapped modules that are called or read while the body runs."""
    token = _reached.set(modules := [])
    try:
        yield modules
    finally:
        _reached.reset(token)
