# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""w, b, key → ŵ: Gaussian weight sampling and its gradients.

Forward, for each block B of a matrix:

    ŵ = cast(w + R · max_B|w| · 2^(1 − b_t))

Backward, with max_B|w| and the cast passed straight through:

    ∂L/∂w   = ∂L/∂ŵ
    ∂L/∂b_t = −ln 2 · max_B|w| · 2^(1 − b_t) · Σ_B (∂L/∂ŵ · R)

R is drawn again in the backward pass. What is kept for it is the key and, per block, a maximum and
b_i; neither R nor a second copy of w.

Source: arXiv 2505.11170 (2025); detaching max_B|w| is ours.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pqt_jax import pallas
from pqt_jax.numerics import bit_width, blocks, cast, keys, partition, philox
from pqt_jax.numerics.reference import backward, cast_blocks
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import Implementation

Origin = tuple[jax.Array | int, jax.Array | int]


def perturb(
    w: jax.Array,
    b_i: jax.Array | None,
    key: jax.Array | None,
    spec: Spec = Spec(),
    *,
    lead: jax.Array | int = 0,
    origin: Origin = (0, 0),
    implementation: Implementation | None = None,
) -> jax.Array:
    """Sample the weights of one parameter, `ŵ = cast(w + R · max_B|w| · 2^(1 − b_t))`.

    Differentiable in w (straight through the cast) and in b_i, by reverse mode. With noise "gauss",
    R · scale is exact and ŵ has the same bits under jit, vmap and scan and on any mesh. Uniform R
    is the same everywhere too, but its product rounds, and a compiler may fuse it into the sum: ŵ
    may then differ in the last place. Inside `jax.shard_map` w is what a device holds, and its
    noise that of a whole matrix unless `origin` says where it lies.

    Example:
      >>> w = jax.random.normal(jax.random.key(0), (100, 70))
      >>> w_hat = perturb(w, jnp.ones((4, 3)), jax.random.key(1))
      >>> w_hat.shape, w_hat.dtype
      ((100, 70), dtype(bfloat16))

    Args:
      w: float32 or bfloat16 parameter of two axes or more, the master weights.
      b_i: float32, one per block (`blocks.grid_shape`); not used with noise "none".
      key: scalar JAX key, consumed; not used with noise "none".
      spec: everything static, see `Spec`.
      lead: index of the first matrix among those stacked; slice l of a stacked parameter sampled
        with `lead=l` has the noise that the whole would give it.
      origin: (row, column) of w's first element in a larger matrix, of whose blocks w holds whole
        ones; the row a multiple of 32. Under `shard_map`, `jax.lax.axis_index(name) * rows`.
      implementation: "mosaic" or "triton" (the kernels of `pqt_jax.pallas`), or "xla"; None takes
        the best that the platform has. An explicit one that cannot be used is an error.

    Returns:
      ŵ in the shape of w and the dtype `spec.storage`.

    Raises:
      TypeError: for a key or a dtype of w that is not served.
      ValueError: for a b_i of the wrong shape, and for an implementation that cannot be used.
    """
    w = jnp.asarray(w)
    if spec.encoded:
        raise ValueError("encoded=True; codes come from `perturb_encoded`")
    spec = spec.fitted(w.shape)
    chosen = pallas.choose(implementation, spec)
    if spec.noise == "none":
        rounded: Any = _straight_through(spec, _matrices(w, spec))
        return partition.restored(rounded, w, spec.matrix_axes)
    operands = _operands(w, b_i, key, spec, lead, origin)
    if not w.size:  # no block to launch anything for
        return w.astype(spec.storage)
    outputs: Any = _sample(spec, chosen, *operands)
    return partition.restored(outputs[0], w, spec.matrix_axes)


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
    """ŵ as FP8 codes and their scales, one byte per weight: `ŵ = codes · scale`.

    For matrix products that take FP8 operands. The same ŵ as `perturb` gives, and no gradient:
    an operator on codes has a backward pass of its own, which can call `perturb`'s.

    Example:
      >>> w, spec = jnp.full((32, 32), 3.0), Spec(dtype="float8_e4m3fn")
      >>> codes, scale = perturb_encoded(w, jnp.ones((1, 1)), jax.random.key(1), spec)
      >>> codes.dtype, scale.tolist()
      (dtype(float8_e4m3fn), [[0.0078125]])

    Args:
      w, b_i, key, lead, origin, implementation: as for `perturb`.
      spec: with dtype float8_e4m3fn or float8_e5m2, and noise.

    Returns:
      (codes in the shape of w and the dtype of the format, scale float32, one per block in the
      shape of b_i: powers of two, NaN for a block with a weight that is not finite).

    Raises:
      TypeError, ValueError: as for `perturb`; also for another format, for noise "none", and when
        differentiated.
    """
    if spec.noise == "none":
        raise ValueError("noise='none'; codes are made of sampled weights")
    w, given = jnp.asarray(w), jnp.asarray(b_i)
    spec = dataclasses.replace(spec, encoded=True).fitted(w.shape)
    matrices, b_i, *place = _operands(w, b_i, key, spec, lead, origin)
    chosen = pallas.choose(implementation, spec)
    forward, _ = pallas.functions(chosen if w.size else "xla")
    codes, absmax = forward(spec, _undifferentiable(matrices), _undifferentiable(b_i), *place)
    codes = jax.lax.bitcast_convert_type(
        partition.restored(codes, w, spec.matrix_axes), spec.dtype.dtype
    )
    scale = cast.block_scale(absmax, spec.dtype, spec.scale)
    return codes, partition.restored(scale, given, (1, 1))


@jax.custom_jvp
def _undifferentiable(x: jax.Array) -> jax.Array:
    return x


@_undifferentiable.defjvp
def _(primals, tangents):
    raise TypeError("perturb_encoded has no gradient: codes are integers; differentiate `perturb`")


def _matrices(w: jax.Array, spec: Spec) -> jax.Array:
    if w.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(f"w has dtype {w.dtype}; master weights must be float32 or bfloat16")
    return partition.as_matrices(w, spec.matrix_axes)


def _operands(
    w: jax.Array,
    b_i: jax.Array | None,
    key: jax.Array | None,
    spec: Spec,
    lead: Any,
    origin: Origin,
):
    """Checked, and as an implementation takes them: matrices, b_i, words, offset."""
    matrices = _matrices(w, spec)
    blocks.check_grid(b_i, w, spec.block, spec.matrix_axes)
    b_i = partition.as_matrices(jnp.asarray(b_i, jnp.float32), (1, 1))
    b_i = partition.beside(b_i, matrices, spec.block)  # as its gradient will be
    return matrices, b_i, keys.key_words(key), _offset(lead, origin, spec.block)


def _offset(lead: Any, origin: Origin, block: blocks.Block) -> jax.Array:
    """uint32[3]: lead, run of 32 rows, column."""
    if not isinstance(origin, tuple) or len(origin) != 2:
        raise TypeError(f"origin={origin!r}; it must be (row, column)")
    row = _index("origin[0]", origin[0], "row", max(philox.ROWS, block[0]))
    column = _index("origin[1]", origin[1], "column", block[1])
    return jnp.stack([_index("lead", lead, "matrix"), row // philox.ROWS, column])


def _index(name: str, value: Any, what: str, whole: int = 1) -> jax.Array:
    if isinstance(value, str) or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{name}={value!r}; it must be the index of a {what}, an integer")
    one = not jnp.shape(value)
    known = one and not isinstance(value, Tracer)
    if not one or known and not 0 <= int(value) < 2**32:
        raise ValueError(f"{name}={value!r}; it must be one index of a {what}, from 0")
    if known and int(value) % whole:
        raise ValueError(f"{name}={value!r}; it must be a multiple of {whole}")
    return jnp.uint32(value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _straight_through(spec: Spec, w: jax.Array) -> jax.Array:
    return cast_blocks(spec, w)


def _straight_through_fwd(spec, w):
    return _straight_through(spec, w), jnp.zeros((), w.dtype)


def _straight_through_bwd(spec, like, cotangent):
    return (cotangent.astype(like.dtype),)


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sample(spec: Spec, implementation: Implementation, w, b_i, words, offset):
    forward, _ = pallas.functions(implementation)
    return forward(spec, w, b_i, words, offset)


def _sample_fwd(spec, implementation, w, b_i, words, offset):
    # By way of itself, so that whoever differentiates this again meets the same rule.
    outputs: Any = _sample(spec, implementation, w, b_i, words, offset)
    return outputs, (b_i, words, offset, outputs[1], jnp.zeros((), w.dtype))


def _sample_bwd(spec, implementation, residual, cotangents):
    b_i, words, offset, absmax, like = residual
    cotangent, _ = cotangents  # the maximum is detached
    product = _block_sums(spec, implementation, cotangent, words, offset)
    _, to_bits = jax.vjp(functools.partial(_step, spec), b_i)
    return cotangent.astype(like.dtype), *to_bits(absmax * product), None, None


_sample.defvjp(_sample_fwd, _sample_bwd)


def _step(spec: Spec, b_i: jax.Array) -> jax.Array:
    return bit_width.step_size(bit_width.bit_width(b_i, spec.target_bits, spec.init_bits))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block_sums(spec: Spec, implementation: Implementation, cotangent, words, offset):
    """Σ_B (∂L/∂ŵ · R), itself differentiable: it is linear in ∂L/∂ŵ."""
    return pallas.functions(implementation)[1](spec, cotangent, words, offset)


def _block_sums_fwd(spec, implementation, *operands):
    return _block_sums(spec, implementation, *operands), operands


def _block_sums_bwd(spec, implementation, operands, cotangent):
    del implementation  # a second derivative is worth no kernel
    primal, words, offset = operands
    _, transpose = jax.vjp(lambda g: backward(spec, g, words, offset), primal)
    return *transpose(cotangent), None, None


_block_sums.defvjp(_block_sums_fwd, _block_sums_bwd)
