# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Matrix products whose operands are rounded to fewer bits before they are multiplied.

    y  = Q_a(x) · Q_w(W)                                   forward
    dx = Q_g(dy) · Q_w(W)ᵀ      dW = Q_a(x)ᵀ · Q_g(dy)      backward

Q rounds an operand to a format (`operands`); the product itself is computed in the dtypes of the
caller. Gradients pass through Q unchanged. These are the three products that hardware with such
operands would compute.

Source: Lee and others, arXiv 2405.18710 (2024).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jax import lax

from pqt_jax.lab.operands import Operand, Rounding, reduce
from pqt_jax.numerics import cast


@dataclasses.dataclass(frozen=True)
class Gemm:
    """A replacement of `lax.dot_general` for one layer, with reduced operands.

    It is hashable and has no state, so a module can store it as its `dot_general`. Its gradient is
    a custom VJP: reverse mode works to any order, forward mode does not.

    Attributes:
      activations: how x is reduced in the forward pass; None leaves an operand as it is.
      weights: how W is reduced in the forward pass.
      gradients: how dy is reduced in the two backward products.

    Raises:
      TypeError: if an attribute is neither an `Operand` nor None.
    """

    activations: Operand | None = None
    weights: Operand | None = None
    gradients: Operand | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not isinstance(value := getattr(self, field.name), Operand | None):
                raise TypeError(f"{field.name}={value!r}; it must be an Operand or None")

    def __call__(
        self,
        x: jax.Array,
        w: jax.Array,
        dimension_numbers: Any,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        """The product, with the arguments of `lax.dot_general`; x comes first, w second."""
        (x_sum, w_sum), (x_batch, w_batch) = dimension_numbers
        axes = tuple(tuple(map(int, ax)) for ax in (x_sum, w_sum, x_batch, w_batch))
        options = (precision, preferred_element_type, out_sharding)
        return _product(self, axes, options, x, w)


def gemm(dtype: Any, rounding: Rounding = "truncate", scale: cast.Scale | None = None) -> Gemm:
    """A `Gemm` whose three operands have the same format.

    Args:
      dtype, rounding, scale: as for `Operand`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = gemm("E8M3")
      >>> x, w = jnp.full((1, 2), 1.0625), jnp.full((2, 1), 1.99)
      >>> layer(x, w, (((1,), (0,)), ((), ()))).item()  # 2 · 1.0 · 1.875
      3.75
    """
    operand = Operand(dtype, rounding, scale)
    return Gemm(operand, operand, operand)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(layer: Gemm, axes: Any, options: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    return _dot_general(axes, options, *_reduce_operands(layer, axes, x, w))


def _dot_general(axes: Any, options: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    precision, preferred, sharding = options
    keywords = {} if sharding is None else {"out_sharding": sharding}
    numbers = (axes[:2], axes[2:])
    return lax.dot_general(x, w, numbers, precision, preferred, **keywords)


def _reduce_operands(
    layer: Gemm, axes: Any, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_sum, w_sum, x_batch, w_batch = axes
    return (
        _reduce_as_matrices(x, layer.activations, x_batch, x_sum, sum_first=False),
        _reduce_as_matrices(w, layer.weights, w_batch, w_sum, sum_first=True),
    )


def _reduce_as_matrices(
    x: jax.Array, operand: Operand | None, batch: Any, summed: Any, *, sum_first: bool
) -> jax.Array:
    """Q of an operand of any shape.

    Blocks are those of the operand as a matrix, [batch, summed, free] if `sum_first`, else
    [batch, free, summed].

    Args:
      x: the operand.
      operand: how it is reduced.
      batch: its batch axes.
      summed: its axes over which the product sums.
      sum_first: the order of the axes of the matrix.
    """
    if operand is None or operand.scale is None:  # element by element: the shape does not matter
        return reduce(x, operand)
    free = tuple(i for i in range(x.ndim) if i not in (*batch, *summed))
    rows, columns = (summed, free) if sum_first else (free, summed)
    order = (*batch, *rows, *columns)
    transposed = x.transpose(order)
    sizes = [math.prod(x.shape[i] for i in axes) for axes in (batch, rows, columns)]
    reduced = reduce(transposed.reshape(sizes), operand)
    return reduced.reshape(transposed.shape).transpose(np.argsort(order))


def _product_fwd(layer, axes, options, x, w):
    return _product(layer, axes, options, x, w), (x, w)


def _product_bwd(layer, axes, options, residual, cotangent):
    x, w = residual
    reduced = _reduce_operands(layer, axes, x, w)  # recomputed, so that only x and W are saved
    _, transpose = jax.vjp(functools.partial(_dot_general, axes, options), *reduced)
    x_free = x.ndim - len(axes[0]) - len(axes[2])
    batch = tuple(range(len(axes[2])))
    columns = tuple(range(len(batch) + x_free, cotangent.ndim))
    dy = _reduce_as_matrices(cotangent, layer.gradients, batch, columns, sum_first=False)
    return transpose(dy)


_product.defvjp(_product_fwd, _product_bwd)
