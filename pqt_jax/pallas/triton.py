# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Pallas Triton: one warp for each block of 32 × 32."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jax has deprecated this back-end
    from jax.experimental.pallas import triton as plt

from pqt_jax.numerics import philox
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import body

ROWS, COLUMNS = philox.ROWS, 32  # of a tile; w must be padded to multiples of them
_SLICE = (philox.GROUP, COLUMNS)


def _spread(per_block: jax.Array) -> jax.Array:
    return jnp.broadcast_to(per_block, _SLICE)


def _reduce(reduction: Any, x: jax.Array) -> jax.Array:
    return reduction(reduction(x, axis=1), axis=0)  # Triton reduces one axis at a time


def _slices(ref: Any) -> list[jax.Array]:
    slices = (ref[pl.ds(s * philox.GROUP, philox.GROUP), :] for s in range(philox.DRAWS))
    return [x.astype(jnp.float32) for x in slices]


def _noise(spec: Spec, table_ref: Any) -> body.Noise:
    q, column = (lax.broadcasted_iota(jnp.uint32, _SLICE, d) for d in range(2))
    tile, run = (pl.program_id(axis).astype(jnp.uint32) for axis in (0, 1))
    column = column + tile * np.uint32(COLUMNS)
    return body.make_noise(spec, [table_ref[i] for i in range(body.TABLE_ENTRIES)], run, q, column)


def _forward(table_ref, w_ref, bits_ref, out_ref, absmax_ref, *, spec: Spec):
    rows = _slices(w_ref)
    largest = _reduce(jnp.max, body.largest_magnitude(rows))
    absmax = lax.bitcast_convert_type(largest, jnp.float32)
    w_hat = body.forward(spec, rows, _noise(spec, table_ref), absmax, bits_ref[0, 0], _spread)
    for s, value in enumerate(w_hat):
        out_ref[pl.ds(s * philox.GROUP, philox.GROUP), :] = value
    absmax_ref[0, 0] = absmax


def _backward(table_ref, cotangent_ref, out_ref, *, spec: Spec):
    total = body.backward(_slices(cotangent_ref), _noise(spec, table_ref))
    out_ref[0, 0] = _reduce(jnp.sum, total)


_MATRIX = pl.BlockSpec((None, ROWS, COLUMNS), lambda tile, run, lead: (lead, run, tile))
_BLOCK = pl.BlockSpec((None, 1, 1), lambda tile, run, lead: (lead, run, tile))


def _call(function: Any, spec: Spec, shape, in_specs, out_specs, out_shape, interpret: bool):
    leads, m, n = shape
    table = pl.BlockSpec((None, 8), lambda tile, run, lead: (lead, 0))
    return pl.pallas_call(
        functools.partial(function, spec=spec),
        grid=(n // COLUMNS, m // ROWS, leads),  # neighbouring tiles run at the same time
        in_specs=[table, *in_specs],
        out_specs=out_specs,
        out_shape=out_shape,
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=1, num_stages=1),
    )


def forward(spec: Spec, w, b_i, table, *, interpret: bool = False):
    """Sample ŵ, with the block maxima; shapes as for `launch.forward`, padded to whole tiles."""
    kind = jax.typeof(w).manual_axis_type  # says what w varies over, under shard_map
    out_shape = (
        jax.ShapeDtypeStruct(w.shape, spec.storage, manual_axis_type=kind),
        jax.ShapeDtypeStruct(b_i.shape, jnp.float32, manual_axis_type=kind),
    )
    specs = [_MATRIX, _BLOCK]
    return _call(_forward, spec, w.shape, specs, specs, out_shape, interpret)(table, w, b_i)


def backward(spec: Spec, cotangent, table, *, interpret: bool = False):
    """Return block sums of ∂L/∂ŵ · R; shapes as for `launch.backward`, padded to whole tiles."""
    leads, m, n = cotangent.shape
    kind = jax.typeof(cotangent).manual_axis_type
    shape = (leads, m // 32, n // 32)
    out_shape = jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=kind)
    call = _call(_backward, spec, cotangent.shape, [_MATRIX], _BLOCK, out_shape, interpret)
    return call(table, cotangent)
