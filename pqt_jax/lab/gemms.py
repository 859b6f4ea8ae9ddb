# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Matrix products whose operands have fewer bits, on hardware that has more.

    y  = Q_a(x) · Q_w(W)                                   forward
    dx = Q_g(dy) · Q_w(W)ᵀ      dW = Q_a(x)ᵀ · Q_g(dy)      backward

Q reduces an operand to a format (`operands`). Sums are those of the product in its own dtypes.
Gradients pass Q unchanged, so these are the three products of hardware with such operands.

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
    """A `lax.dot_general` of one layer with reduced operands; None leaves an operand as it is.

    Hashable and without state, so that a module can keep it where it keeps its `dot_general`. Its
    gradients are a custom VJP: reverse mode, of any order, and no forward mode.

    Attributes:
      activations, weights: the operands of the forward product, x and W.
      gradients: dy, which meets each of them in the backward pass.

    Raises:
      TypeError: for anything but an `Operand` or None.
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
        """As `lax.dot_general`, with x and w in its order."""
        (x_sum, w_sum), (x_batch, w_batch) = dimension_numbers
        axes = tuple(tuple(map(int, some)) for some in (x_sum, w_sum, x_batch, w_batch))
        options = (precision, preferred_element_type, out_sharding)
        return _product(self, axes, options, x, w)


def gemm(dtype: Any, rounding: Rounding = "truncate", scale: cast.Scale | None = None) -> Gemm:
    """A `Gemm` with all three operands in one format.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = gemm("E8M3")
      >>> x, w = jnp.full((1, 2), 1.0625), jnp.full((2, 1), 1.99)
      >>> layer(x, w, (((1,), (0,)), ((), ()))).item()  # 2 · 1.0 · 1.875
      3.75
    """
    one = Operand(dtype, rounding, scale)
    return Gemm(one, one, one)


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
