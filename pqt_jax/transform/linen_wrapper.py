# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for Linen: a module in the model's scope that samples parameters before the call.

`nn.WeightNorm` around a wrapped layer normalizes every collection, the bits too. Wrap the module
that holds the `WeightNorm`, or give `WeightNorm` a filter with the name of the wrapped layer, such
as `variable_filter={"PQT_0/kernel"}`.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax import nnx

from pqt_jax.transform.flax_internals import is_nowrap, rewound_scope, rng_of_scope
from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.perturb import perturb_tree
from pqt_jax.transform.rules import Rule
from pqt_jax.transform.tree_paths import same_leaves

COLLECTION = "pqt"  # name of the collection of the bits, and of the rng stream


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Hides a module from Flax, which would else make it a submodule with a scope of its own."""

    module: nn.Module


class PQT(nn.Module):
    """A Linen module with sampled weights; made by `pqt_transform`.

    It has the fields and methods of the bare module; its methods sample.

    Attributes:
      model: the bare module.
      rules, prefix, strict: the arguments of `pqt_transform`.
    """

    model: Hidden
    rules: tuple[Rule, ...]
    prefix: str = ""
    strict: bool = False

    def setup(self):
        """Bind the model to this scope, so that no path and no random stream changes."""
        scope = self.scope
        assert scope is not None
        # Names that are taken in the scope were taken by the same module, called bare.
        self.inner = Hidden(self.model.module.clone(parent=rewound_scope(scope)))

    @nn.nowrap  # capture_intermediates then records the call of the model alone
    def __call__(self, *args: Any, pqt_method: str = "__call__", **kwargs: Any) -> Any:
        """Call a method of the model, on sampled parameters if there is a "pqt" rng."""
        return self.run_sampled(pqt_method, *args, **kwargs)

    @nn.compact
    def run_sampled(self, pqt_method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Make the bits while initializing; else call a method, on sampled parameters if asked."""

        def call(model: nn.Module) -> Any:
            return getattr(model, pqt_method)(*args, **kwargs)

        options: dict[str, Any] = {"prefix": self.prefix, "strict": self.strict}
        if self.is_initializing():
            out = call(self.inner.module)
            if not self.has_variable(COLLECTION, "bits"):
                if self.variables.get(COLLECTION):
                    raise ValueError(
                        f"a part of {type(self.inner.module).__name__} is wrapped already, and has "
                        f"bits of its own: {sorted(self.variables[COLLECTION])}; wrap it once"
                    )
                init = param_transform(self.rules, **options).init
                self.variable(COLLECTION, "bits", init, self.variables.get("params", {}))
            return out
        scope = self.scope
        if scope is None or not scope.has_rng(COLLECTION):
            return call(self.inner.module)
        if not self.has_variable(COLLECTION, "bits"):
            raise ValueError(
                'the "pqt" rng is given but the variables have no "pqt" collection; take it from '
                'init, or make it: {"params": p, "pqt": {"bits": param_transform(rules).init(p)}}'
            )
        bits = self.get_variable(COLLECTION, "bits")
        wrapped_params = self.variables.get("params", {})
        key = rng_of_scope(scope, COLLECTION)  # every call of one step samples the same ŵ

        def sample(variables: Mapping[str, Any]) -> Mapping[str, Any]:
            # Flax calls this once per scope. A module that was passed in has a scope of its own,
            # whose parameters are not ours to sample.
            params = variables.get("params", {})
            if not same_leaves(params, wrapped_params):
                return variables
            return {"params": perturb_tree(params, bits, key, self.rules, **options)}

        return nn.map_variables(call, "params", sample)(self.inner.module)

    def __getattr__(self, name: str) -> Any:
        """Return a field of the bare module, or one of its methods, which then samples."""
        try:
            return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]
        except AttributeError:
            if name.startswith("__") or "model" not in vars(self):
                raise
        model = self.model.module
        static = inspect.getattr_static(type(model), name, None)
        if inspect.isfunction(static) and not is_nowrap(static):

            @functools.wraps(static)
            def method(self, *args, **kwargs):
                return self(*args, pqt_method=name, **kwargs)

            return types.MethodType(method, self)
        if static is not None or name in {field.name for field in dataclasses.fields(model)}:
            return getattr(model, name)
        raise AttributeError(
            f"{type(model).__name__} has no field or method {name!r}; what a wrapped module makes "
            "in setup or in a call stays inside, and other methods are called by their names"
        )


def wrap(model: nn.Module, rules: tuple[Rule, ...], prefix: str, strict: bool) -> PQT:
    """Wrap a Linen module, in its own scope if it is bound. See `pqt_transform`."""
    if isinstance(model, PQT):
        raise ValueError(f"{type(model.model.module).__name__} is wrapped already; wrap it once")
    if isinstance(model, nnx.bridge.ToLinen):
        raise TypeError(
            "ToLinen holds an NNX module; wrap that with pqt_transform, and use it in NNX"
        )
    wrapped = PQT(Hidden(model), rules, prefix, strict)
    if model.scope is not None:  # made, and named, in a parent's compact method
        if wrapped.scope is None:
            raise ValueError(
                f"{model.name!r} is part of its parent already; in setup wrap it when it is made: "
                f"self.{model.name} = pqt_transform({type(model).__name__}(...), rules)"
            )
        nn.share_scope(wrapped, model)
    return wrapped
