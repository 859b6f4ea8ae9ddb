# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for NNX: a module of the same class and paths that samples when given a key."""

import functools
import types
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from pqt_jax.rules import BITS, Rule
from pqt_jax.transform import Bits, param_transform

M = TypeVar("M", bound=nnx.Module)


class BitParam(nnx.Param):
    """The b_i of one parameter, float32, one per block; told apart from weights by this type."""


def wrap(model: M, rules: tuple[Rule, ...], prefix: str, strict: bool) -> M:
    """An NNX module whose call takes `pqt_key` and `pqt_lead`; see `pqt_transform`."""
    if jax.tree.leaves(nnx.state(model, BitParam)):
        raise ValueError(
            f"{type(model).__name__} is wrapped already, or a part of it is; wrap it once, bare"
        )
    transform = param_transform(rules, prefix=prefix, strict=strict)
    bits = transform.init(_parameters(model))
    wrapped = nnx.clone(model)
    wrapped.__class__ = _subclass(type(model))
    static = {"pqt_rules": rules, "pqt_prefix": prefix, "pqt_strict": strict}
    for name, value in (static | {BITS: _as_modules(bits)}).items():
        setattr(wrapped, name, value)
    return wrapped


def bits_of(model: nnx.Module) -> Bits:
    """The bits of a wrapped module, as the nested dict that `param_transform` works on."""
    return _strings(nnx.to_pure_dict(nnx.state(getattr(model, BITS), BitParam)))


@functools.cache
def _subclass(cls: type) -> type:
    """The class of wrapped modules: `cls`, with a call that samples first."""

    def __call__(self, *args, pqt_key=None, pqt_lead=None, pqt_method="__call__", **kwargs):
        method = getattr(cls, pqt_method)
        if pqt_key is None:
            return method(self, *args, **kwargs)
        transform = param_transform(self.pqt_rules, prefix=self.pqt_prefix, strict=self.pqt_strict)
        graphdef, params, rest = nnx.split(self, _is_parameter, ...)
        sampled = transform.sample(params, bits_of(self), pqt_key, lead=pqt_lead)
        inner = nnx.merge(graphdef, sampled, rest)
        out = method(inner, *args, **kwargs)
        nnx.update(self, nnx.state(inner, nnx.Not(nnx.Param)))  # what the call changed: statistics
        return out

    def namespace(body: dict[str, Any]) -> None:
        body.update(
            __call__=functools.wraps(cls.__call__)(__call__),
            __module__=cls.__module__,
            __doc__=f"{cls.__name__} with sampled weights; `pqt_key=None` is the bare model.",
        )

    return types.new_class(f"PQT{cls.__name__}", (cls,), {}, namespace)


def _is_parameter(path: Sequence[Any], value: Any) -> bool:
    variable_type = getattr(value, "type", type(value))
    is_param = isinstance(variable_type, type) and issubclass(variable_type, nnx.Param)
    return is_param and not issubclass(variable_type, BitParam)


def _parameters(model: nnx.Module) -> nnx.State:
    return nnx.state(model, _is_parameter)


def _as_modules(bits: Bits) -> nnx.Dict:
    return nnx.Dict(
        {k: _as_modules(v) if isinstance(v, dict) else BitParam(v) for k, v in bits.items()}
    )


def _strings(tree: Any) -> Any:
    return {str(k): _strings(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
