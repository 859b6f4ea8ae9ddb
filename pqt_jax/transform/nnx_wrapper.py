# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform` for NNX: a module with the same paths, whose call samples when it gets a key.

wrapped(x)                  the bare model
wrapped(x, pqt_key=key)     w → ŵ in every sampled variable, the bare call, ŵ → w
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer

from pqt_jax.transform.flax_internals import (
    get_raw_value,
    holds_reference,
    is_pytree_class,
    set_raw_value,
)
from pqt_jax.transform.param_transform import Bits, param_transform
from pqt_jax.transform.perturb import perturb_tree
from pqt_jax.transform.rules import Rule
from pqt_jax.transform.tree_paths import BITS, same_leaves
from pqt_jax.transform.wrapped_class import Recipe, pickled_as_recipe

M = TypeVar("M", bound=nnx.Module)

_sampled_now: set[int] = set()  # `id` of each variable that holds ŵ while a sampled call runs


class BitParam(nnx.Param):
    """The b_i of one parameter, float32, one per block. Its type tells it apart from weights."""


# The bits of a Linen model that `nnx.bridge.ToNNX` holds get this type, and those of an NNX model
# that `nnx.bridge.ToLinen` holds get Linen's collection.
nnx.register_variable_name("pqt", BitParam)


def wrap(model: M, rules: tuple[Rule, ...], *, prefix: str, strict: bool, require_key: bool) -> M:
    """Wrap an NNX module; its call takes `pqt_key` and `pqt_lead`. See `pqt_transform`."""
    name = type(model).__name__
    if any(hasattr(part, BITS) for _, part in nnx.iter_modules(model)):
        raise ValueError(f"{name} is wrapped already, or a part of it is; wrap it once, bare")
    if isinstance(model, nnx.bridge.ToNNX):
        raise TypeError(f"{name} holds a Linen module; wrap that: ToNNX(pqt_transform(linen, …))")
    if _has_call(type(model)) and "pqt_key" in inspect.signature(type(model).__call__).parameters:
        raise TypeError(f"{name} takes pqt_key itself; wrap the parts that it hands the key to")
    if isinstance(model, nnx.Dict | nnx.List):
        raise TypeError(f"{name} is a container and would hold its bits; wrap what it holds")
    for path, variable in _variables(parameters(model)).items():
        if holds_reference(variable):
            raise TypeError(
                f"{name}: {_join(path)!r} holds a reference and no array; wrap "
                "nnx.with_vars(model, ref=False, hijax=False)"
            )
    bits = param_transform(rules, prefix=prefix, strict=strict).init(parameters(model))
    wrapped = nnx.clone(model)
    wrapped.__class__ = _wrapped_class(
        type(model), rules, prefix=prefix, strict=strict, require_key=require_key
    )
    # Plain dicts, not modules: a model that iterates over its child modules finds no new ones.
    setattr(wrapped, BITS, nnx.data(jax.tree.map(BitParam, bits)))
    if require_key and not hasattr(wrapped, "deterministic"):
        # train() and eval() of this module, and of any above it, set it.
        setattr(wrapped, "deterministic", False)  # noqa: B010
    return wrapped


def get_bits(model: nnx.Module) -> Bits:
    """Return the bits of a wrapped module, in the nested dict that `param_transform` takes."""

    def is_bit_param(node: Any) -> bool:
        return isinstance(node, BitParam)

    return jax.tree.map(lambda b_i: b_i.get_value(), getattr(model, BITS), is_leaf=is_bit_param)


@contextlib.contextmanager
def with_key(model: M, key: jax.Array, *, lead: jax.Array | int | None = None) -> Iterator[M]:
    """Let a wrapped NNX module hold ŵ while the body of a `with` statement runs.

    For functions and methods that call the model themselves and take no key. What holds for a
    sampled call holds for the body: whatever it sets stays, and it must not write to a parameter
    that is sampled.

    Example:
      >>> import jax.numpy as jnp
      >>> from pqt_jax import pqt_transform
      >>> model = pqt_transform(nnx.Linear(32, 32, rngs=nnx.Rngs(0)), [Rule("kernel")])
      >>> x, key = jnp.ones((1, 32)), jax.random.key(0)
      >>> with with_key(model, key):
      ...     y = jnp.tanh(model(x))
      >>> bool((y == jnp.tanh(model(x, pqt_key=key))).all())
      True

    Args:
      model: a wrapped NNX module. It is changed while the body runs.
      key: key of the step, as for `pqt_key`.
      lead: index of the layer, as for `pqt_lead`.

    Yields:
      The model.

    Raises:
      TypeError: for a module that is not wrapped.
      ValueError: if the body writes to a sampled parameter, or samples again.
    """
    recipe = getattr(type(model), "pqt_recipe", None)
    if recipe is None:
        raise TypeError(f"{type(model).__name__} is not wrapped; wrap it with pqt_transform")
    prefix, strict = recipe.options["prefix"], recipe.options["strict"]
    sampled = perturb_tree(
        parameters(model),
        get_bits(model),
        key,
        recipe.rules,
        prefix=prefix,
        strict=strict,
        lead=lead,
    )
    with _sampled_weights(model, sampled):
        yield model


@functools.cache
def _wrapped_class(cls: type, rules: tuple[Rule, ...], **options: Any) -> type:
    """Make the class of wrapped modules: `cls`, with a call that samples first."""

    def __call__(self, *args, pqt_key=None, pqt_lead=None, pqt_method="__call__", **kwargs):
        method = _find_method(cls, pqt_method)
        if pqt_key is not None:
            with with_key(self, pqt_key, lead=pqt_lead):
                return method(self, *args, **kwargs)
        if options["require_key"]:
            _check_key(self)
        return method(self, *args, **kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        if options["require_key"]:
            namespace.update({name: _checked(method) for name, method in _methods(cls).items()})
        namespace.update(
            __call__=__call__,
            __module__=cls.__module__,
            __doc__=f"{cls.__name__} with sampled weights; `pqt_key=None` is the bare model.",
            pqt_recipe=Recipe(cls, rules, options),
        )

    if _has_call(cls):
        functools.update_wrapper(__call__, cls.__call__)
        __call__.__signature__ = _extend_signature(inspect.signature(cls.__call__))
    metaclass = pickled_as_recipe(type(cls), _wrapped_class)
    keywords = {"metaclass": metaclass, "pytree": is_pytree_class(cls)}
    return types.new_class(f"PQT{cls.__name__}", (cls,), keywords, fill)


def _methods(cls: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class by name, without those of every NNX module."""
    members = {name: inspect.getattr_static(cls, name) for name in dir(cls) if name[0] != "_"}
    return {
        name: member
        for name, member in members.items()
        if inspect.isfunction(member) and not hasattr(nnx.Module, name)
    }


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self, *args, **kwargs):
        _check_key(self)
        return method(self, *args, **kwargs)

    return call


def _check_key(model: Any) -> None:
    """Refuse to run bare in training. In a sampled call, of this module or another, all may run."""
    if not model.deterministic and not _sampled_now:
        raise ValueError(
            f"{type(model).__name__.removeprefix('PQT')} was wrapped with require_key=True and is "
            "called without a key: give pqt_key=key or use with_key(model, key), or call "
            "model.eval() first to run the bare model on purpose"
        )


def _has_call(cls: type) -> bool:
    return any("__call__" in vars(base) for base in cls.__mro__)


def _find_method(cls: type, name: str) -> Callable[..., Any]:
    if name == "__call__" and not _has_call(cls):
        raise TypeError(f"{cls.__name__} has no __call__; name one of its methods by pqt_method=")
    if not callable(method := getattr(cls, name, None)):
        raise AttributeError(f"pqt_method={name!r}: {cls.__name__} has no such method")
    if isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod):
        raise TypeError(f"pqt_method={name!r} takes no module, so it samples nothing; call it bare")
    return method


def _extend_signature(signature: inspect.Signature) -> inspect.Signature:
    """Add the three arguments of a wrapped call to a call's signature."""
    kind, parameters = inspect.Parameter.KEYWORD_ONLY, list(signature.parameters.values())
    last = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        last -= 1
    defaults = {"pqt_key": None, "pqt_lead": None, "pqt_method": "__call__"}
    added = [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]
    return signature.replace(parameters=[*parameters[:last], *added, *parameters[last:]])


@contextlib.contextmanager
def _sampled_weights(model: nnx.Module, sampled: nnx.State) -> Iterator[None]:
    """Put ŵ into the variables of a module while its call runs, and then w again.

    The call runs on the module itself, so that whatever it sets or creates stays, as it does for
    the bare model.
    """
    weights, hats = _variables(parameters(model)), _variables(sampled)
    pairs = {path: (get_raw_value(weights[path]), get_raw_value(hats[path])) for path in hats}
    pairs = {path: (w, w_hat) for path, (w, w_hat) in pairs.items() if not same_leaves(w, w_hat)}
    for path in pairs:
        if id(weights[path]) in _sampled_now:
            raise ValueError(
                f"{_join(path)} holds sampled weights already: one sampled call runs inside "
                "another; give pqt_key to one of them"
            )
    _sampled_now.update(id(weights[path]) for path in pairs)
    try:
        for path, (_, w_hat) in pairs.items():
            set_raw_value(weights[path], w_hat)
        yield
        after = _variables(parameters(model))
        for path, (_, w_hat) in pairs.items():
            is_in_place = after.get(path) is weights[path]
            if not is_in_place:
                _attach(model, path, weights[path])
            if not is_in_place or _differ(get_raw_value(weights[path]), w_hat):
                raise ValueError(f"{_join(path)}: the call writes to a parameter that is sampled")
    finally:
        for path, (w, _) in pairs.items():
            set_raw_value(weights[path], w)
            _sampled_now.discard(id(weights[path]))


def _attach(model: nnx.Module, path: Sequence[Any], variable: nnx.Variable) -> None:
    """Put back a parameter that the call replaced or deleted, if the module above it remains."""
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
    """Whether two values differ. Traced values are taken to be equal, since they are unknown.

    Identity is not enough: `nnx.jit` and `nnx.remat` inside a call return equal, new arrays.
    """
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    if len(a) != len(b):
        return True
    known = [pair for pair in zip(a, b, strict=True) if not any(map(_is_traced, pair))]
    return any(x is not y and np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in known)


def _is_traced(x: Any) -> bool:
    return isinstance(x, Tracer)


def _variables(state: nnx.State) -> dict[tuple[Any, ...], nnx.Variable]:
    return dict(nnx.to_flat_state(state))  # the module's own variables, not copies


def _join(path: Sequence[Any]) -> str:
    return "/".join(map(str, path))


def _is_parameter(path: Sequence[Any], value: Any) -> bool:
    variable_type = getattr(value, "type", type(value))
    is_param = isinstance(variable_type, type) and issubclass(variable_type, nnx.Param)
    return is_param and not issubclass(variable_type, BitParam)


def parameters(model: nnx.Module) -> nnx.State:
    """Return the parameters of a module, without bits."""
    return nnx.state(model, _is_parameter)
