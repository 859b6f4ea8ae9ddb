# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""w, b, key → FP8 codes of ŵ and the scale of each block, for matrix products in FP8."""

import dataclasses

import jax
import jax.numpy as jnp

from pqt_jax import pallas
from pqt_jax.numerics import cast, keys, partition
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import Implementation
from pqt_jax.transform.perturb import Origin, make_offset, prepare_operands


def perturb_encoded(
    w: jax.Array,
    b_i: jax.Array,
    key: jax.Array,
    spec: Spec,
    *,
    lead: jax.Array | int = 0,
    origin: Origin = (0, 0),
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sample the weights of one parameter as FP8 codes and scales: `ŵ = codes · scale`.

    ŵ is the same as that of `perturb`, in one byte per weight. There is no gradient: an operator on
    codes has a backward pass of its own, which can call that of `perturb`.

    Example:
      >>> w, spec = jnp.full((32, 32), 3.0), Spec(dtype="float8_e4m3fn")
      >>> codes, scale = perturb_encoded(w, jnp.ones((1, 1)), jax.random.key(1), spec)
      >>> codes.dtype, scale.tolist()
      (dtype(float8_e4m3fn), [[0.0078125]])

    Args:
      w, b_i, key, lead, origin, implementation: as for `perturb`.
      spec: with dtype float8_e4m3fn or float8_e5m2, and with noise.

    Returns:
      (codes, scale): codes in the shape of w and the dtype of the format; scale float32, one per
      block in the shape of b_i, a power of two. The scale is NaN for a block with a weight that is
      not finite.

    Raises:
      TypeError, ValueError: as for `perturb`; also for another format, for noise "none", and when
        differentiated.
    """
    if spec.noise == "none":
        raise ValueError("noise='none'; codes are made of sampled weights")
    w, b_i = jnp.asarray(w), jnp.asarray(b_i)
    spec = dataclasses.replace(spec, encoded=True).fitted(w.shape)
    matrices, grid = map(_refuse_gradients, prepare_operands(w, b_i, spec))
    stack = matrices, grid, keys.key_words(key), make_offset(lead, origin, spec.block)
    implementation = pallas.choose_implementation(implementation, spec)
    forward, _ = pallas.get_functions(implementation if w.size else "xla")
    ((codes, absmax),) = forward(spec, stack)
    codes = jax.lax.bitcast_convert_type(
        partition.from_matrices(codes, w, spec.matrix_axes), spec.dtype.dtype
    )
    scale = cast.block_scale(absmax, spec.dtype, spec.scale)
    return codes, partition.from_matrices(scale, b_i, (1, 1))


@jax.custom_jvp
def _refuse_gradients(x: jax.Array) -> jax.Array:
    return x


@_refuse_gradients.defjvp
def _(primals, tangents):
    raise TypeError("perturb_encoded has no gradient: codes are integers; differentiate `perturb`")
