# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Any Flax model with products of reduced operands (`gemms`), beside `pqt_transform`."""

import dataclasses
import re
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from flax import linen, nnx

from pqt_jax.lab.gemms import Gemm

M = TypeVar("M", linen.Module, nnx.Module)


def simulate(model: M, rules: Mapping[str, Gemm | None]) -> M:
    """A model whose linear layers multiply with reduced operands.

    Before or after `pqt_transform`: sampled weights are reduced as others are. Parameters, their
    paths and what the model is called with stay as they were.

    Example:
      >>> import jax.numpy as jnp
      >>> from pqt_jax.lab.gemms import gemm
      >>> first, last = (nnx.Linear(32, n, rngs=nnx.Rngs(n)) for n in (32, 4))
      >>> model = nnx.Sequential(first, last)
      >>> coarse = simulate(model, {"layers/1/kernel": None, ".*/kernel": gemm("E4M3")})
      >>> coarse(jnp.ones((1, 32))).shape
      (1, 4)

    Args:
      model: of NNX or Linen. In it, any layer with a `kernel` and a field `dot_general` can be
        reduced: `Linear`, `LinearGeneral`, `Dense`, `DenseGeneral`, and what is made of them.
      rules: regular expression of the `/`-joined path of a kernel → its `Gemm`, or None to leave it
        alone; the first that matches the whole path decides.

    Returns:
      For NNX a copy of the model. For Linen a module of a class of its own; what its `__call__`
      does is reduced, and rules are checked when it is called.

    Raises:
      TypeError: for a model that is neither, and for a rule that is no `Gemm`.
      ValueError: for a rule that does not compile, matches no kernel, or one whose layer has no
        `dot_general`.
    """
    if not isinstance(rules, Mapping) or not all(isinstance(name, str) for name in rules):
        raise TypeError(f"rules={rules!r}; they must be a dict of patterns and what they mean")
    for pattern, layer in rules.items():
        if layer is not None and not isinstance(layer, Gemm):
            raise TypeError(f"rules[{pattern!r}] is {layer!r}; it must be a Gemm or None")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"rules[{pattern!r}] does not compile: {error}") from None
    if isinstance(model, nnx.Module):
        return _simulate_nnx(model, rules)
    if isinstance(model, linen.Module):
        return _simulate_linen(model, rules)
    raise TypeError(f"the model is of type {type(model).__name__}; give a module of NNX or Linen")


def _simulate_nnx(model: Any, rules: Mapping[str, Gemm | None]) -> Any:
    copy, seen = nnx.clone(model), dict[str, bool]()
    part: Any
    for path, part in nnx.iter_modules(copy):
        for name, value in vars(part).items():
            if not isinstance(value, nnx.Param):
                continue
            full = "/".join(map(str, (*path, name)))
            seen[full] = name == "kernel" and hasattr(part, "dot_general")
            _, layer = _first_match(rules, full)
            if layer and not seen[full]:
                raise _no_product(full, part)
            if layer:
                part.dot_general = layer
    _check_used(rules, list(seen))
    return copy


def _simulate_linen(model: Any, rules: Mapping[str, Gemm | None]) -> Any:
    cls = type(model)

    def __call__(self, *args, **kwargs):
        seen = []

        def intercept(call, args, kwargs, context):
            part = context.module
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            here = part.path[len(self.path) :]
            path = "/".join((*here, "kernel"))
            if not hasattr(part, "dot_general"):
                out = call(*args, **kwargs)
                own = part.variables.get("params", {}) if part.scope else {}
                for name in own:
                    full = "/".join((*here, name))
                    if not isinstance(own[name], Mapping) and _first_match(rules, full)[1]:
                        raise _no_product(full, part)
                return out
            seen.append(path)
            _, layer = _first_match(rules, path)
            if layer is None:
                return call(*args, **kwargs)
            before = part.dot_general
            object.__setattr__(part, "dot_general", layer)
            try:
                return call(*args, **kwargs)
            finally:
                object.__setattr__(part, "dot_general", before)

        with linen.intercept_methods(intercept):
            out = cls.__call__(self, *args, **kwargs)
        _check_used(rules, seen)
        return out

    def fill(namespace):
        namespace.update(__call__=__call__, __module__=cls.__module__, __doc__=cls.__doc__)

    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init}
    fields.pop("parent", None)
    return types.new_class(cls.__name__, (cls,), {}, fill)(**fields)


def _no_product(path: str, part: Any) -> ValueError:
    return ValueError(
        f"{path!r} is a parameter of a {type(part).__name__}, which multiplies by no dot_general "
        "that could be reduced; let a rule before say None for it"
    )


def _first_match(rules: Mapping[str, Gemm | None], path: str) -> tuple[str | None, Gemm | None]:
    return next((rule for rule in rules.items() if re.fullmatch(rule[0], path)), (None, None))


def _check_used(rules: Mapping[str, Gemm | None], paths: list[str]) -> None:
    used = {_first_match(rules, path)[0] for path in paths}
    for pattern in rules:
        if pattern not in used:
            known = ", ".join(paths) or "none"
            raise ValueError(f"rules[{pattern!r}] decides about no kernel; the paths are {known}")
