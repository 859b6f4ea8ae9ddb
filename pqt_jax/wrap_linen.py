# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for Linen: a module in the model's scope that maps parameters before the call."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from pqt_jax.rules import Rule
from pqt_jax.transform import param_transform

COLLECTION = "pqt"  # of the bits, and name of the rng stream


class PQT(nn.Module):
    """A Linen module with sampled weights; made by `pqt_transform`.

    Attributes:
      model: the bare module, whose scope this one shares.
      rules, prefix, strict: as given to `pqt_transform`.
    """

    model: nn.Module
    rules: tuple[Rule, ...]
    prefix: str = ""
    strict: bool = False

    def setup(self):
        """Take the model's scope, so that no path changes."""
        nn.share_scope(self, self.model)

    @nn.compact
    def __call__(self, *args: Any, pqt_method: str = "__call__", **kwargs: Any) -> Any:
        """Call a method of the model, on sampled parameters if there is a "pqt" rng."""

        def bare(model: nn.Module) -> Any:
            return getattr(model, pqt_method)(*args, **kwargs)

        transform = param_transform(self.rules, prefix=self.prefix, strict=self.strict)
        if self.is_initializing():
            out = bare(self.model)
            self.variable(COLLECTION, "bits", transform.init, self.variables["params"])
            return out
        if not self.has_rng(COLLECTION):
            return bare(self.model)
        if not self.has_variable(COLLECTION, "bits"):
            raise ValueError(
                'the "pqt" rng is given but the variables have no "pqt" collection; take it from '
                'init, or make it: {"params": p, "pqt": {"bits": param_transform(rules).init(p)}}'
            )
        bits = self.get_variable(COLLECTION, "bits")
        key = self.make_rng(COLLECTION)

        def sample(variables: Mapping[str, Any]) -> dict[str, Any]:
            return {"params": transform.sample(variables["params"], bits, key)}

        return nn.map_variables(bare, "params", sample)(self.model)


def wrap(model: nn.Module, rules: tuple[Rule, ...], prefix: str, strict: bool) -> PQT:
    """A Linen module in the model's scope; see `pqt_transform`."""
    return PQT(model, rules, prefix, strict)
