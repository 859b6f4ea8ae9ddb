# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for Linen: a module in the model's scope that maps parameters before the call.

`nn.WeightNorm` around a wrapped layer normalizes every collection, bits too: wrap what holds it, or
give it `variable_filter={"PQT_0/kernel"}`, by the wrapped layer's name.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax import nnx
from flax.core.scope import LazyRng

from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.rules import Rule, same_leaves

COLLECTION = "pqt"  # of the bits, and name of the rng stream


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Holds a module, so that Flax does not make it a submodule with a scope of its own."""

    module: nn.Module


class PQT(nn.Module):
    """A Linen module with sampled weights; made by `pqt_transform`.

    Fields and methods of the bare module are this one's, too; a method called on it samples.

    Attributes:
      model: the bare module.
      rules, prefix, strict: as given to `pqt_transform`.
    """

    model: Hidden
    rules: tuple[Rule, ...]
    prefix: str = ""
    strict: bool = False

    def setup(self):
        """Run the model in this scope, so that no path and no random stream changes."""
        assert self.scope is not None
        # Rewound: the names that are taken in it are taken by the same module, called bare.
        self.inner = Hidden(self.model.module.clone(parent=self.scope.rewound()))

    @nn.nowrap  # so that capture_intermediates meets the call of the model alone
    def __call__(self, *args: Any, pqt_method: str = "__call__", **kwargs: Any) -> Any:
        """Call a method of the model, on sampled parameters if there is a "pqt" rng."""
        return self.run_sampled(pqt_method, *args, **kwargs)

    @nn.compact
    def run_sampled(self, pqt_method: str, /, *args: Any, **kwargs: Any) -> Any:
        """What a call does."""

        def bare(model: nn.Module) -> Any:
            return getattr(model, pqt_method)(*args, **kwargs)

        transform = param_transform(self.rules, prefix=self.prefix, strict=self.strict)
        if self.is_initializing():
            out = bare(self.inner.module)
            if not self.has_variable(COLLECTION, "bits"):
                if self.variables.get(COLLECTION):
                    raise ValueError(
                        f"a part of {type(self.inner.module).__name__} is wrapped already, and has "
                        f"bits of its own: {sorted(self.variables[COLLECTION])}; wrap it once"
                    )
                self.variable(COLLECTION, "bits", transform.init, self.variables.get("params", {}))
            return out
        scope = self.scope
        if scope is None or not scope.has_rng(COLLECTION):
            return bare(self.inner.module)
        if not self.has_variable(COLLECTION, "bits"):
            raise ValueError(
                'the "pqt" rng is given but the variables have no "pqt" collection; take it from '
                'init, or make it: {"params": p, "pqt": {"bits": param_transform(rules).init(p)}}'
            )
        bits, own = self.get_variable(COLLECTION, "bits"), self.variables.get("params", {})
        # Not make_rng, whose key depends on how often it was called: one step, one ŵ.
        key = LazyRng.create(scope.rngs[COLLECTION]).as_jax_rng()

        def sample(variables: Mapping[str, Any]) -> Mapping[str, Any]:
            # Called once for each scope; that of a module handed in from outside is not ours.
            params = variables.get("params", {})
            if not same_leaves(params, own):
                return variables
            return {"params": transform.sample(params, bits, key)}

        return nn.map_variables(bare, "params", sample)(self.inner.module)

    def __getattr__(self, name: str) -> Any:
        """A field of the bare module, or a method of it that samples when it is called."""
        try:
            return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]
        except AttributeError:
            if name.startswith("__") or "model" not in vars(self):
                raise
        model = self.model.module
        static = inspect.getattr_static(type(model), name, None)
        if inspect.isfunction(static) and not hasattr(static, "nowrap"):

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
    """A Linen module in the model's scope; see `pqt_transform`."""
    if isinstance(model, PQT):
        raise ValueError(f"{type(model.model.module).__name__} is wrapped already; wrap it once")
    if isinstance(model, nnx.bridge.ToLinen):
        raise TypeError(
            "ToLinen holds an NNX module; wrap that with pqt_transform, and use it in NNX"
        )
    wrapped = PQT(Hidden(model), rules, prefix, strict)
    if model.scope is not None:  # made in the compact method of a parent, which has named it
        if wrapped.scope is None:
            raise ValueError(
                f"{model.name!r} is part of its parent already; in setup wrap it when it is made: "
                f"self.{model.name} = pqt_transform({type(model).__name__}(...), rules)"
            )
        nn.share_scope(wrapped, model)
    return wrapped
