# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for Linen: a module in the model's scope that maps parameters before the call."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from pqt_jax.rules import Rule
from pqt_jax.transform import param_transform

COLLECTION = "pqt"  # of the bits, and name of the rng stream


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Holds a module, so that Flax does not make it a submodule with a scope of its own."""

    module: nn.Module


class PQT(nn.Module):
    """A Linen module with sampled weights; made by `pqt_transform`.

    Attributes:
      model: the bare module, which runs in this one's scope, or this one in its.
      rules, prefix, strict: as given to `pqt_transform`.
    """

    model: Hidden
    rules: tuple[Rule, ...]
    prefix: str = ""
    strict: bool = False

    def setup(self):
        """Share one scope with the model, so that no path and no random stream changes."""
        model = self.model.module
        if model.scope is None:
            model = model.clone(parent=self.scope)
        else:  # made in the compact method of a parent, which has given it a name
            nn.share_scope(self, model)
        self.inner = Hidden(model)

    @nn.compact
    def __call__(self, *args: Any, pqt_method: str = "__call__", **kwargs: Any) -> Any:
        """Call a method of the model, on sampled parameters if there is a "pqt" rng."""

        def bare(model: nn.Module) -> Any:
            return getattr(model, pqt_method)(*args, **kwargs)

        transform = param_transform(self.rules, prefix=self.prefix, strict=self.strict)
        if self.is_initializing():
            out = bare(self.inner.module)
            self.variable(COLLECTION, "bits", transform.init, self.variables["params"])
            return out
        if not self.has_rng(COLLECTION):
            return bare(self.inner.module)
        if not self.has_variable(COLLECTION, "bits"):
            raise ValueError(
                'the "pqt" rng is given but the variables have no "pqt" collection; take it from '
                'init, or make it: {"params": p, "pqt": {"bits": param_transform(rules).init(p)}}'
            )
        bits = self.get_variable(COLLECTION, "bits")
        key = self.make_rng(COLLECTION)

        def sample(variables: Mapping[str, Any]) -> dict[str, Any]:
            return {"params": transform.sample(variables["params"], bits, key)}

        return nn.map_variables(bare, "params", sample)(self.inner.module)


def wrap(model: nn.Module, rules: tuple[Rule, ...], prefix: str, strict: bool) -> PQT:
    """A Linen module in the model's scope; see `pqt_transform`."""
    if isinstance(model, PQT):
        raise ValueError(f"{type(model.model.module).__name__} is wrapped already; wrap it once")
    return PQT(Hidden(model), rules, prefix, strict)
