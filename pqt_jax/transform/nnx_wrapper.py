# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for NNX: a module of the same class and paths that samples when given a key."""

import contextlib
import copyreg
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer

from pqt_jax.transform.param_transform import Bits, param_transform
from pqt_jax.transform.rules import BITS, Rule, same_leaves

M = TypeVar("M", bound=nnx.Module)

_held: set[int] = set()  # identities of variables that hold sampled weights at this time


class BitParam(nnx.Param):
    """The b_i of one parameter, float32, one per block; told apart from weights by this type."""


def wrap(model: M, rules: tuple[Rule, ...], prefix: str, strict: bool) -> M:
    """An NNX module whose call takes `pqt_key` and `pqt_lead`; see `pqt_transform`."""
    name = type(model).__name__
    if any(hasattr(part, BITS) for _, part in nnx.iter_modules(model)):
        raise ValueError(f"{name} is wrapped already, or a part of it is; wrap it once, bare")
    if isinstance(model, nnx.bridge.ToNNX):
        raise TypeError(f"{name} holds a Linen module; wrap that: ToNNX(pqt_transform(linen, …))")
    if _has_call(type(model)) and "pqt_key" in inspect.signature(type(model).__call__).parameters:
        raise TypeError(f"{name} takes pqt_key itself; wrap the parts that it hands the key to")
    if isinstance(model, nnx.Dict | nnx.List):
        raise TypeError(f"{name} is a container and would hold its bits; wrap what it holds")
    for path, variable in _variables(_parameters(model)).items():
        if variable.ref or variable.hijax:
            raise TypeError(
                f"{name}: {_joined(path)!r} holds a reference and no array; wrap "
                "nnx.with_vars(model, ref=False, hijax=False)"
            )
    bits = param_transform(rules, prefix=prefix, strict=strict).init(_parameters(model))
    wrapped = nnx.clone(model)
    wrapped.__class__ = _subclass(type(model), rules, prefix, strict)
    # Plain dicts and not modules, so that a model which iterates over its children meets no other.
    setattr(wrapped, BITS, nnx.data(jax.tree.map(BitParam, bits)))
    return wrapped


def bits_of(model: nnx.Module) -> Bits:
    """The bits of a wrapped module, as the nested dict that `param_transform` works on."""
    is_bits = lambda node: isinstance(node, BitParam)  # noqa: E731
    return jax.tree.map(lambda b_i: b_i.get_value(), getattr(model, BITS), is_leaf=is_bits)


@functools.cache
def _subclass(cls: type, rules: tuple[Rule, ...], prefix: str, strict: bool) -> type:
    """The class of wrapped modules: `cls`, with a call that samples first."""
    transform = param_transform(rules, prefix=prefix, strict=strict)

    def __call__(self, *args, pqt_key=None, pqt_lead=None, pqt_method="__call__", **kwargs):
        method = _method(cls, pqt_method)
        if pqt_key is None:
            return method(self, *args, **kwargs)
        sampled = transform.sample(_parameters(self), bits_of(self), pqt_key, lead=pqt_lead)
        with _holding(self, sampled):
            return method(self, *args, **kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(
            __call__=__call__,
            __module__=cls.__module__,
            __doc__=f"{cls.__name__} with sampled weights; `pqt_key=None` is the bare model.",
            pqt_recipe=(cls, rules, prefix, strict),
        )

    if _has_call(cls):
        functools.update_wrapper(__call__, cls.__call__)
        __call__.__signature__ = _extended(inspect.signature(cls.__call__))
    options = {"metaclass": _metaclass(type(cls)), "pytree": cls._pytree__is_pytree}
    return types.new_class(f"PQT{cls.__name__}", (cls,), options, fill)


@functools.cache
def _metaclass(base: type) -> type:
    """`base`, for classes that are pickled by what made them: no module holds their names."""
    metaclass = types.new_class(f"PQT{base.__name__}", (base,))
    copyreg.pickle(metaclass, lambda cls: (_subclass, cls.pqt_recipe))
    return metaclass


def _has_call(cls: type) -> bool:
    return any("__call__" in vars(base) for base in cls.__mro__)


def _method(cls: type, name: str) -> Callable[..., Any]:
    if name == "__call__" and not _has_call(cls):
        raise TypeError(f"{cls.__name__} has no __call__; name one of its methods by pqt_method=")
    if not callable(method := getattr(cls, name, None)):
        raise AttributeError(f"pqt_method={name!r}: {cls.__name__} has no such method")
    if isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod):
        raise TypeError(f"pqt_method={name!r} takes no module, so it samples nothing; call it bare")
    return method


def _extended(signature: inspect.Signature) -> inspect.Signature:
    """A call's signature with the three arguments that wrapping adds."""
    kind, parameters = inspect.Parameter.KEYWORD_ONLY, list(signature.parameters.values())
    last = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        last -= 1
    defaults = {"pqt_key": None, "pqt_lead": None, "pqt_method": "__call__"}
    added = [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]
    return signature.replace(parameters=[*parameters[:last], *added, *parameters[last:]])


@contextlib.contextmanager
def _holding(model: nnx.Module, sampled: nnx.State) -> Iterator[None]:
    """Put ŵ in the place of the weights for the time of a call on the module itself.

    All that the call sets, makes or changes is then where the bare model would have it.
    """
    weights, hats = _variables(_parameters(model)), _variables(sampled)
    raw = {path: (weights[path].get_raw_value(), hat.get_raw_value()) for path, hat in hats.items()}
    raw = {path: pair for path, pair in raw.items() if not same_leaves(*pair)}
    for path in raw:
        if id(weights[path]) in _held:
            raise ValueError(
                f"{_joined(path)} holds sampled weights already: one sampled call runs inside "
                "another; give pqt_key to one of them"
            )
    _held.update(id(weights[path]) for path in raw)
    try:
        for path, (_, w_hat) in raw.items():
            _put(weights[path], w_hat)
        yield
        after = _variables(_parameters(model))
        for path, (_, w_hat) in raw.items():
            kept = after.get(path) is weights[path]
            if not kept:
                _attach(model, path, weights[path])
            if not kept or _differ(weights[path].get_raw_value(), w_hat):
                raise ValueError(f"{_joined(path)}: the call writes to a parameter that is sampled")
    finally:
        for path, (w, _) in raw.items():
            _put(weights[path], w)
            _held.discard(id(weights[path]))


def _attach(model: nnx.Module, path: Sequence[Any], variable: nnx.Variable) -> None:
    """Put a parameter that the call has replaced or deleted back where it was, if that is left."""
    *parents, name = path
    node: Any = model
    with contextlib.suppress(AttributeError, KeyError, IndexError, TypeError):
        for parent in parents:
            node = getattr(node, parent) if isinstance(parent, str) else node[parent]
        if isinstance(name, str) and not isinstance(node, dict):
            setattr(node, name, variable)
        else:
            node[name] = variable


def _differ(a: Any, b: Any) -> bool:
    """Whether a call has put other values there, as far as they are known.

    `nnx.jit` and `nnx.remat` within it hand back what they were given as new arrays.
    """
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    if len(a) != len(b):
        return True
    known = [pair for pair in zip(a, b, strict=True) if not any(map(_is_traced, pair))]
    return any(x is not y and np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in known)


def _is_traced(x: Any) -> bool:
    return isinstance(x, Tracer)


def _variables(state: nnx.State) -> dict[tuple[Any, ...], nnx.Variable]:
    return dict(nnx.to_flat_state(state))  # those of the model, not copies


def _joined(path: Sequence[Any]) -> str:
    return "/".join(map(str, path))


def _put(variable: nnx.Variable, value: Any) -> None:
    """Past Flax's check that a variable from outside a transform is not written inside it.

    It holds for what outlives the transform; here the old value is back before that ends.
    """
    object.__setattr__(variable, "_raw_value", value)


def _is_parameter(path: Sequence[Any], value: Any) -> bool:
    variable_type = getattr(value, "type", type(value))
    is_param = isinstance(variable_type, type) and issubclass(variable_type, nnx.Param)
    return is_param and not issubclass(variable_type, BitParam)


def _parameters(model: nnx.Module) -> nnx.State:
    return nnx.state(model, _is_parameter)
