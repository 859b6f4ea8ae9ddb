# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Make any Flax model multiply with reduced operands (`gemms`), with or without sampling."""

import dataclasses
import re
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from flax import linen, nnx

from pqt_jax.lab.gemms import Gemm

M = TypeVar("M", linen.Module, nnx.Module)


def simulate(model: M, rules: Mapping[str, Gemm | None]) -> M:
    """A copy of a model whose linear layers multiply with reduced operands.

    It can be combined with `pqt_transform` in either order: the sampled weights are then reduced.
    Parameters, their paths and the arguments of the model do not change.

    Example:
      >>> import jax.numpy as jnp
      >>> from pqt_jax.lab.gemms import gemm
      >>> first, last = (nnx.Linear(32, n, rngs=nnx.Rngs(n)) for n in (32, 4))
      >>> model = nnx.Sequential(first, last)
      >>> coarse = simulate(model, {"layers/1/kernel": None, ".*/kernel": gemm("E4M3")})
      >>> coarse(jnp.ones((1, 32))).shape
      (1, 4)

    Args:
      model: an NNX or Linen module. Every layer in it with a `kernel` and a field `dot_general`
        can be reduced: `Linear`, `LinearGeneral`, `Dense`, `DenseGeneral`, and layers built on
        them.
      rules: regular expression → `Gemm`, or None to leave a layer as it is. The first expression
        that matches the whole `/`-joined path of a kernel decides.

    Returns:
      For NNX, a copy of the model. For Linen, a module of a new class; only its `__call__` is
      reduced, and the rules are checked when it is called.

    Raises:
      TypeError: if the model is neither an NNX nor a Linen module, or a rule is not a `Gemm`.
      ValueError: if a rule does not compile, matches no kernel, or matches a parameter whose layer
        has no `dot_general`.
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
    raise TypeError(f"the model is of type {type(model).__name__}; give an NNX or Linen module")


def _simulate_nnx(model: Any, rules: Mapping[str, Gemm | None]) -> Any:
    copy = nnx.clone(model)
    paths = []
    module: Any
    for module_path, module in nnx.iter_modules(copy):
        for name, value in vars(module).items():
            if not isinstance(value, nnx.Param):
                continue
            path = "/".join(map(str, (*module_path, name)))
            paths.append(path)
            _, layer = _first_match(rules, path)
            if layer is None:
                continue
            if name != "kernel" or not hasattr(module, "dot_general"):
                raise _not_a_product(path, module)
            module.dot_general = layer
    _check_all_used(rules, paths)
    return copy


def _simulate_linen(model: Any, rules: Mapping[str, Gemm | None]) -> Any:
    cls = type(model)

    def __call__(self, *args, **kwargs):
        paths = []

        def intercept(call, args, kwargs, context):
            module = context.module
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            module_path = module.path[len(self.path) :]
            if not hasattr(module, "dot_general"):
                out = call(*args, **kwargs)
                _refuse_rules_of(module, module_path, rules)  # after the call has made parameters
                return out
            path = "/".join((*module_path, "kernel"))
            paths.append(path)
            _, layer = _first_match(rules, path)
            if layer is None:
                return call(*args, **kwargs)
            original = module.dot_general
            object.__setattr__(module, "dot_general", layer)  # Linen modules are frozen
            try:
                return call(*args, **kwargs)
            finally:
                object.__setattr__(module, "dot_general", original)

        with linen.intercept_methods(intercept):
            out = cls.__call__(self, *args, **kwargs)
        _check_all_used(rules, paths)
        return out

    def set_members(namespace):
        namespace.update(__call__=__call__, __module__=cls.__module__, __doc__=cls.__doc__)

    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init}
    fields.pop("parent", None)
    return types.new_class(cls.__name__, (cls,), {}, set_members)(**fields)


def _refuse_rules_of(
    module: Any, module_path: tuple[str, ...], rules: Mapping[str, Gemm | None]
) -> None:
    """Raise ValueError if a rule reduces a parameter of a Linen module without `dot_general`."""
    parameters = module.variables.get("params", {}) if module.scope else {}
    for name, value in parameters.items():
        path = "/".join((*module_path, name))
        if not isinstance(value, Mapping) and _first_match(rules, path)[1]:
            raise _not_a_product(path, module)


def _not_a_product(path: str, module: Any) -> ValueError:
    return ValueError(
        f"{path!r} is a parameter of a {type(module).__name__}, which has no dot_general that "
        "could be reduced; give None for it in an earlier rule"
    )


def _first_match(rules: Mapping[str, Gemm | None], path: str) -> tuple[str | None, Gemm | None]:
    return next((rule for rule in rules.items() if re.fullmatch(rule[0], path)), (None, None))


def _check_all_used(rules: Mapping[str, Gemm | None], paths: list[str]) -> None:
    """Raise ValueError if a rule is not the first match of any path."""
    used = {_first_match(rules, path)[0] for path in paths}
    for pattern in rules:
        if pattern not in used:
            known = ", ".join(paths) or "none"
            raise ValueError(f"rules[{pattern!r}] decides about no kernel; the paths are {known}")
