# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a wrapped model samples, and the model rounded by its learned bits."""

from typing import Any

from flax import nnx

from pqt_jax.numerics.deterministic_rounding import check_finite
from pqt_jax.transform import linen_wrapper, nnx_wrapper
from pqt_jax.transform.param_transform import Bits, ParamTransform, param_transform
from pqt_jax.transform.rules import resolve
from pqt_jax.transform.tree_paths import BITS, paths_and_leaves

_BRIDGED_BITS = "bits"  # the attribute of a `ToNNX` that has the bits of its Linen module


def summary(model: Any, variables: Any = None) -> str:
    """List what a wrapped model samples, and what no rule decides about.

    Example:
      >>> from pqt_jax import Rule, pqt_transform
      >>> model = pqt_transform(nnx.Embed(64, 64, rngs=nnx.Rngs(0)), [Rule("embedding")])
      >>> print(summary(model))
      path       shape  blocks  mean b_t  format
      ---------  -----  ------  --------  ------------
      embedding  64x64       4      6.00  BF16 + gauss

    Args:
      model: a wrapped NNX module, or one that holds wrapped modules, of NNX or of Linen by
        `nnx.bridge.ToNNX`; or a wrapped Linen module.
      variables: of the Linen module, with "params" and "pqt".

    Returns:
      A table of path, shape, blocks, mean b_t and format. A second one lists the parameters of two
      axes or more that no rule matches, and what each probably is.

    Raises:
      TypeError: if nothing in the model is wrapped, or a Linen module has no variables.
      ValueError: if a `ToNNX` has no variables yet.
    """
    if not isinstance(model, nnx.Module):
        params, bits, transform = _linen_parts(model, variables)
        return transform.summary(params, bits)
    tables = []
    for name, module in _nnx_parts(model):
        params, bits = nnx_wrapper.parameters(module), _get_bits(module)
        table = _transform(_holder(module)).summary(params, bits)
        tables.append(f"{name}\n{table}" if name else table)
    return "\n\n".join(tables)


def quantize_model(model: Any, variables: Any = None) -> Any:
    """Round the weights of a wrapped model to the formats that its learned bits allow.

    Each block is rounded to the smallest format that carries its b_t
    (`deterministic_rounding.quantize_mixed`).

    Example:
      >>> from pqt_jax import Rule, pqt_transform
      >>> model = pqt_transform(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), [Rule("kernel")])
      >>> rounded = quantize_model(model)
      >>> type(rounded).__name__, hasattr(rounded, "pqt_bits")
      ('Linear', False)
      >>> bool((rounded.kernel[...] == model.kernel[...]).all())
      False

    Args:
      model, variables: as for `summary`. They are not changed.

    Returns:
      NNX: a bare module with rounded weights. Linen: the variables with rounded weights and without
      the bits, for the bare module.

    Raises:
      TypeError: as `summary`.
      ValueError: as `summary`, and if a weight to be rounded is Inf or NaN, unless it is traced.
    """
    if isinstance(model, nnx.Module):
        return _quantize_nnx(model)
    params, bits, transform = _linen_parts(model, variables)
    _check_finite(model, params)
    rest = {name: value for name, value in variables.items() if name != linen_wrapper.COLLECTION}
    return {**rest, "params": transform.quantize(params, bits)}


def _quantize_nnx(model: Any) -> Any:
    model = nnx.clone(model)
    for _, module in _nnx_parts(model):
        holder, bits, params = _holder(module), _get_bits(module), nnx_wrapper.parameters(module)
        _check_finite(holder, params)
        nnx.update(module, _transform(holder).quantize(params, bits))
        if isinstance(module, nnx.bridge.ToNNX):
            delattr(module, _BRIDGED_BITS)
            module.to_nnx__module = linen_wrapper.unwrap(holder)
        else:
            delattr(module, BITS)
            module.__class__ = type(module).pqt_recipe.cls
    return model


def _nnx_parts(model: Any) -> list[tuple[str, Any]]:
    parts = [
        ("/".join(map(str, path)), module)
        for path, module in nnx.iter_modules(model)
        if hasattr(type(_holder(module)), "pqt_recipe")
    ]
    if not parts:
        raise TypeError(
            f"nothing in {type(model).__name__} is wrapped; give the result of pqt_transform"
        )
    return parts


def _holder(module: Any) -> Any:
    """The module that was wrapped: the one in a `ToNNX`, or the module itself."""
    return module.to_nnx__module if isinstance(module, nnx.bridge.ToNNX) else module


def _get_bits(module: Any) -> Bits:
    if not isinstance(module, nnx.bridge.ToNNX):
        return nnx_wrapper.get_bits(module)
    bits = nnx.to_pure_dict(nnx.state(module, nnx_wrapper.BitParam))
    if _BRIDGED_BITS not in bits:
        raise ValueError("a ToNNX in the model has no variables yet; call its lazy_init(x) first")
    return bits[_BRIDGED_BITS]


def _check_finite(holder: Any, params: Any) -> None:
    _, rules, options = type(holder).pqt_recipe
    leaves = paths_and_leaves(params, options["prefix"])
    for path in resolve(rules, leaves):
        check_finite(path, leaves[path])


def _linen_parts(model: Any, variables: Any) -> tuple[Any, Any, ParamTransform]:
    if not hasattr(type(model), "pqt_recipe"):
        raise TypeError(
            f"{type(model).__name__} is not wrapped; give the result of pqt_transform, and not a "
            "module that holds one"
        )
    if variables is None or linen_wrapper.COLLECTION not in variables:
        raise TypeError(
            'a Linen module needs its variables, {"params": …, "pqt": {"bits": …}}: give them as '
            "the second argument"
        )
    return variables["params"], variables[linen_wrapper.COLLECTION]["bits"], _transform(model)


def _transform(model: Any) -> ParamTransform:
    _, rules, options = type(model).pqt_recipe
    return param_transform(rules, prefix=options["prefix"], strict=options["strict"])
