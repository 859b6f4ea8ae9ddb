# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Matrix products whose operands have fewer bits, in any format ExMy, on hardware that has more.

    y  = Q_a(x) · Q_w(W)                                   forward
    dx = Q_g(dy) · Q_w(W)ᵀ      dW = Q_a(x)ᵀ · Q_g(dy)      backward

Q reduces an operand to a format: its exponent by clipping (beyond the largest value it saturates,
below the smallest normal one it is subnormal), its mantissa by cutting bits off, as in the paper,
or to the nearest, ties to even. Sums are those of the product in its own dtypes. Gradients pass Q
unchanged, so these are the three products of hardware with such operands.

Source: Lee and others, arXiv 2405.18710 (2024), for masked operands without scales; the rest is
ours: the paper does not say what becomes of what is too small, and rounding to the nearest and
scales of blocks are for comparison.
"""

import dataclasses
import functools
import math
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import lax

from pqt_jax import blocks, cast
from pqt_jax.formats import FloatFormat, as_format

Rounding = Literal["truncate", "nearest"]
M = TypeVar("M", linen.Module, nnx.Module)


@dataclasses.dataclass(frozen=True)
class Operand:
    """How one operand of a product is reduced.

    Example:
      >>> Operand("E8M3").dtype, Operand(jnp.float8_e5m2, "nearest", "ceil").scale
      (FloatFormat(exponent_bits=8, mantissa_bits=3, specials='ieee'), <ScaleRule.CEIL: 'ceil'>)

    Attributes:
      dtype: a `FloatFormat`, or a dtype or name of one.
      rounding: "truncate" cuts bits of the mantissa off; "nearest" takes the nearest value, ties to
        even.
      scale: a `ScaleRule` that gives each block a scale; None for none.
      block: rows and columns of such a block, in the operand as a matrix whose columns (of x) or
        rows (of W) are summed over.

    Raises:
      ValueError: for what is none of these.
    """

    dtype: FloatFormat
    rounding: Rounding = "truncate"
    scale: cast.Scale | None = None
    block: blocks.Block = (32, 32)

    def __init__(self, dtype, rounding="truncate", scale=None, block=(32, 32)):
        if rounding not in get_args(Rounding):
            raise ValueError(f"rounding={rounding!r}; it must be truncate or nearest")
        put = functools.partial(object.__setattr__, self)
        put("dtype", as_format(dtype))
        put("rounding", rounding)
        put("scale", None if scale is None else cast.check_scale(scale))
        put("block", blocks.check_block(block))
        if rounding == "truncate" and self.scale == cast.ScaleRule.EXACT:
            raise ValueError(
                "scale='exact' with rounding='truncate': the quotient rounds, and what is cut off "
                "then hangs on its last bit; give floor or ceil, or rounding='nearest'"
            )


@dataclasses.dataclass(frozen=True)
class Gemm:
    """A `lax.dot_general` of one layer with reduced operands; None leaves an operand as it is.

    Hashable and without state, so that a module can keep it where it keeps its `dot_general`.

    Attributes:
      activations, weights: the operands of the forward product, x and W.
      gradients: dy, which meets each of them in the backward pass.
    """

    activations: Operand | None = None
    weights: Operand | None = None
    gradients: Operand | None = None

    def __call__(
        self,
        x: jax.Array,
        w: jax.Array,
        dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        """As `lax.dot_general`, with x and w in its order."""
        (x_sum, w_sum), (x_batch, w_batch) = dimension_numbers
        axes = tuple(tuple(map(int, some)) for some in (x_sum, w_sum, x_batch, w_batch))
        options = (precision, preferred_element_type, out_sharding)
        return _product(self, axes, options, x, w)


def gemm(dtype: Any, rounding: Rounding = "truncate", scale: cast.Scale | None = None) -> Gemm:
    """A `Gemm` with all three operands in one format.

    Example:
      >>> layer = gemm("E8M3")
      >>> x, w = jnp.full((1, 2), 1.0625), jnp.full((2, 1), 1.99)
      >>> layer(x, w, (((1,), (0,)), ((), ()))).item()  # 2 · 1.0 · 1.875
      3.75
    """
    one = Operand(dtype, rounding, scale)
    return Gemm(one, one, one)


def truncate(x: jax.Array, fmt: FloatFormat) -> jax.Array:
    """Round to the next value of a format towards zero, saturating.

        truncate(x) = sign(x) · min(⌊|x| / q⌋ · q, max),  q = 2^(max(⌊log2|x|⌋, 1 − bias) − m)

    Example:
      >>> truncate(jnp.array([0.24, 0.75, 2.9, -5.9, 100.0]), FloatFormat(2, 1)).tolist()
      [0.0, 0.5, 2.0, -4.0, 6.0]

    Args:
      x: float32 or bfloat16, any shape.
      fmt: a `FloatFormat`, or a dtype that names one.

    Returns:
      Shape and dtype of x. Of a format with the exponents of float32, ±Inf stays; of others it
      becomes ±max. NaN stays.

    Raises:
      TypeError: if x is neither float32 nor bfloat16.
    """
    fmt, x = as_format(fmt), jnp.asarray(x)
    word = cast.to_word(x)
    sign, magnitude = word & np.uint32(0x80000000), word & np.uint32(0x7FFFFFFF)
    cut = np.uint32(0xFFFFFFFF << (23 - fmt.mantissa_bits) & 0xFFFFFFFF)
    if fmt.exponent_bits == 8:
        kept = magnitude & cut
    else:
        small = jnp.minimum(magnitude, np.float32(fmt.max).view(np.uint32))
        steps = jnp.floor(
            cast.from_word(small, jnp.dtype("float32")) * np.float32(1 / fmt.min_subnormal)
        )
        subnormal = cast.to_word(steps * np.float32(fmt.min_subnormal))
        is_normal = small >= np.float32(fmt.min_normal).view(np.uint32)
        kept = jnp.where(is_normal, small & cut, subnormal)
    is_nan = magnitude > np.uint32(0x7F800000)
    return cast.from_word(jnp.where(is_nan, word, sign | kept), x.dtype)


def reduce(x: jax.Array, operand: Operand | None) -> jax.Array:
    """Q of matrices, float32 or bfloat16[…, M, N] → the same shape and dtype.

    Without a scale, ±Inf stays where the format has the exponents of float32: E8M7 changes nothing
    in bfloat16. With one, a block that holds Inf or NaN becomes NaN.
    """
    if operand is None:
        return x
    fmt, rounding = operand.dtype, operand.rounding
    if operand.scale is None:
        if rounding == "truncate":
            return truncate(x, fmt)
        rounded = cast.round_to(x, fmt)
        return jnp.where(jnp.isinf(x), x, rounded) if fmt.exponent_bits == 8 else rounded
    wide = x.astype(jnp.float32).reshape(-1, *x.shape[-2:])
    m, n = x.shape[-2:]
    padded = blocks.pad_to(wide, *operand.block)
    scale = cast.block_scale(blocks.block_absmax(padded, operand.block), fmt, operand.scale)
    scale = blocks.spread(scale, operand.block)
    if rounding == "nearest":
        reduced = cast.round_scaled(padded, scale, fmt, operand.scale)
    else:
        reduced = truncate(padded * cast.reciprocal(scale), fmt) * scale
    return reduced[:, :m, :n].reshape(x.shape).astype(x.dtype)


def simulate(model: M, rules: Mapping[str, Gemm | None]) -> M:
    """A model whose linear layers multiply with reduced operands.

    Before or after `pqt_transform`: sampled weights are reduced as others are. Parameters, their
    paths and what the model is called with stay as they were.

    Example:
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
                raise ValueError(
                    f"{full!r} is a parameter of a {type(part).__name__}, which multiplies by no "
                    "dot_general that could be reduced; let a rule before say None for it"
                )
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
            if context.method_name != "__call__" or not hasattr(part, "dot_general"):
                return call(*args, **kwargs)
            path = "/".join((*part.path[len(self.path) :], "kernel"))
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


def _first_match(rules: Mapping[str, Gemm | None], path: str) -> tuple[str | None, Gemm | None]:
    return next((rule for rule in rules.items() if re.fullmatch(rule[0], path)), (None, None))


def _check_used(rules: Mapping[str, Gemm | None], paths: list[str]) -> None:
    used = {_first_match(rules, path)[0] for path in paths}
    for pattern in rules:
        if pattern not in used:
            known = ", ".join(paths) or "none"
            raise ValueError(f"rules[{pattern!r}] decides about no kernel; the paths are {known}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(layer: Gemm, axes: Any, options: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    return _plain(axes, options, *_reduced(layer, axes, x, w))


def _plain(axes: Any, options: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    precision, preferred, sharding = options
    more = {} if sharding is None else {"out_sharding": sharding}
    numbers = (axes[:2], axes[2:])
    return lax.dot_general(x, w, numbers, precision, preferred, **more)


def _reduced(layer: Gemm, axes: Any, x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_sum, w_sum, x_batch, w_batch = axes
    return (
        _reduce_as_matrices(x, layer.activations, x_batch, x_sum, sum_first=False),
        _reduce_as_matrices(w, layer.weights, w_batch, w_sum, sum_first=True),
    )


def _reduce_as_matrices(
    x: jax.Array, operand: Operand | None, batch: Any, summed: Any, *, sum_first: bool
) -> jax.Array:
    """Q of an operand of any shape, as [batch, free, summed] or [batch, summed, free]."""
    if operand is None or operand.scale is None:  # element by element, whatever the shape
        return reduce(x, operand)
    free = tuple(i for i in range(x.ndim) if i not in (*batch, *summed))
    rows, columns = (summed, free) if sum_first else (free, summed)
    order = (*batch, *rows, *columns)
    moved = x.transpose(order)
    size = lambda axes: math.prod(x.shape[i] for i in axes)  # noqa: E731
    matrices = moved.reshape(size(batch), size(rows), size(columns))
    return reduce(matrices, operand).reshape(moved.shape).transpose(np.argsort(order))


def _product_fwd(layer, axes, options, x, w):
    return _product(layer, axes, options, x, w), (x, w)


def _product_bwd(layer, axes, options, residual, cotangent):
    x, w = residual
    reduced = _reduced(layer, axes, x, w)  # again: nothing but x and W is kept
    _, transpose = jax.vjp(functools.partial(_plain, axes, options), *reduced)
    x_free = x.ndim - len(axes[0]) - len(axes[2])
    batch = tuple(range(len(axes[2])))
    columns = tuple(range(len(batch) + x_free, cotangent.ndim))
    dy = _reduce_as_matrices(cotangent, layer.gradients, batch, columns, sum_first=False)
    return transpose(dy)


_product.defvjp(_product_fwd, _product_bwd)
