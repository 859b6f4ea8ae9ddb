# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""w, b, key → ŵ: Gaussian weight sampling and its gradients.

Forward, for each block B of a matrix:

    ŵ = cast(w + R · max_B|w| · 2^(1 − b_t))

Backward, with max_B|w| and the cast passed straight through:

    ∂L/∂w   = ∂L/∂ŵ
    ∂L/∂b_t = −ln 2 · max_B|w| · 2^(1 − b_t) · Σ_B (∂L/∂ŵ · R)

R is drawn again in the backward pass. What is kept for it is the key and one maximum per block;
neither R nor a second copy of w.

Source: arXiv 2505.11170 (2025); detaching max_B|w| is ours.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax import bits, bitwidth, blocks, cast, keys
from pqt_jax.formats import BF16, FP32, as_format
from pqt_jax.noise import KINDS, Kind, materialize, noise_codes, noise_rows, noise_tile


@dataclasses.dataclass(frozen=True)
class Spec:
    """How a parameter is sampled: the static part of `perturb`, checked when it is made.

    Example:
      >>> Spec(target_bits=3, dtype="float4_e2m1fn").dtype.name
      'E2M1'

    Attributes:
      target_bits, init_bits: b_target and b_init, in bits.
      block: (bm, bn); each side divides 32 or is a multiple of 32.
      noise: "gauss", "uniform" (R ~ U(−½, ½)) or "none" (the cast alone).
      dtype: what ŵ is cast to: bfloat16, float32, or any format (an ml_dtypes type, its name, or a
        `FloatFormat`). Formats of fewer than eight exponent bits get a power-of-two scale per
        block, taken from max_B|w|. Kept as a `FloatFormat`.
      scale: rule for that scale, "ceil" (no weight saturates) or "floor" (OCP MX); see
        `cast.block_scale`. What noise lifts over the largest value saturates under either.
      matrix_axes: (row axes, column axes) of the parameter, see `blocks`.

    Raises:
      ValueError: for a field out of range, naming it.
    """

    target_bits: float = 4.0
    init_bits: float = 6.0
    block: blocks.Block = (32, 32)
    noise: Kind = "gauss"
    dtype: Any = BF16
    scale: cast.Scale = "ceil"
    matrix_axes: tuple[int, int] = (1, 1)

    def __post_init__(self):
        bitwidth.check_bits(self.target_bits, self.init_bits)
        object.__setattr__(self, "block", blocks.check_block(self.block))
        if self.noise not in KINDS:
            raise ValueError(f"noise={self.noise!r}; it must be one of {', '.join(KINDS)}")
        if self.scale not in cast.SCALES:
            raise ValueError(f"scale={self.scale!r}; it must be one of {', '.join(cast.SCALES)}")
        axes = self.matrix_axes
        if (
            not isinstance(axes, tuple | list)
            or len(axes) != 2
            or any(not isinstance(a, int) or a < 1 for a in axes)
        ):
            raise ValueError(f"matrix_axes={axes!r}; it must be two integers of at least 1")
        object.__setattr__(self, "matrix_axes", tuple(axes))
        object.__setattr__(self, "dtype", as_format(self.dtype))

    @property
    def storage(self) -> np.dtype:
        """The dtype that holds ŵ: bfloat16, or float32 for more than seven bits of mantissa."""
        narrow = self.dtype.mantissa_bits <= BF16.mantissa_bits
        return np.dtype(jnp.bfloat16 if narrow else jnp.float32)


def perturb(
    w: jax.Array,
    b_i: jax.Array | None,
    key: jax.Array | None,
    spec: Spec = Spec(),
    *,
    lead: jax.Array | int = 0,
) -> jax.Array:
    """Sample the weights of one parameter, `ŵ = cast(w + R · max_B|w| · 2^(1 − b_t))`.

    Differentiable in w (straight through the cast) and in b_i. With noise "gauss", R · scale is
    exact and ŵ has the same bits under jit, vmap and scan and on any mesh. Uniform R is the same
    everywhere too, but its product rounds, and a compiler may fuse it into the sum: ŵ may then
    differ in the last place.

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

    Returns:
      ŵ in the shape of w and the dtype `spec.storage`.

    Raises:
      TypeError: for a key or a dtype of w that is not served.
      ValueError: for a b_i of the wrong shape.
    """
    w = jnp.asarray(w)
    if w.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(f"w has dtype {w.dtype}; master weights must be float32 or bfloat16")
    matrices = w.reshape(blocks.matrix_shape(w.shape, spec.matrix_axes))
    if spec.noise == "none":
        return jnp.reshape(_straight_through(spec, matrices), w.shape)
    blocks.check_grid(b_i, w, spec.block, spec.matrix_axes)
    if not jnp.issubdtype(jnp.result_type(lead), jnp.integer):
        raise TypeError(f"lead={lead!r}; it must be the index of a matrix, an integer")
    words = keys.key_words(key)
    b_t = bitwidth.bit_width(jnp.asarray(b_i, jnp.float32), spec.target_bits, spec.init_bits)
    step = bitwidth.step_size(b_t).reshape(matrices.shape[0], *b_t.shape[-2:])
    offset = jnp.stack([jnp.asarray(lead).astype(jnp.uint32), jnp.uint32(0), jnp.uint32(0)])
    w_hat: Any = _sample(spec, matrices, step, words, offset)
    return jnp.reshape(w_hat, w.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _straight_through(spec: Spec, w: jax.Array) -> jax.Array:
    return cast_blocks(spec, w)


def _straight_through_fwd(spec, w):
    return cast_blocks(spec, w), jnp.zeros((), w.dtype)


def _straight_through_bwd(spec, like, cotangent):
    return (cotangent.astype(like.dtype),)


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


def cast_blocks(spec: Spec, w: jax.Array) -> jax.Array:
    """The cast alone, `cast(w)`: [leads, M, N] → the same shape in `spec.storage`."""
    _, m, n = w.shape
    padded = blocks.pad_to(w, *spec.block)
    absmax = blocks.block_absmax(padded, spec.block)
    wide = padded.astype(jnp.float32)
    return _cast(spec, wide, lambda x: blocks.spread(x, spec.block), absmax)[:, :m, :n]


def _cast(spec: Spec, x: jax.Array, spread, absmax: jax.Array) -> jax.Array:
    """Cast float32 x; `spread` takes one number per block to what broadcasts against x."""
    if spec.dtype == FP32:
        return x
    if spec.dtype == BF16:
        return cast.round_to_bfloat16(x)
    if spec.dtype.exponent_bits == 8:
        rounded = cast.round_to(x, spec.dtype)
        rounded = jnp.where(jnp.isinf(x), x, rounded)  # as in BF16; a scaled block turns NaN
    else:
        scale = cast.block_scale(absmax, spec.dtype, spec.scale)
        rounded = cast.round_scaled(x, spread(scale), spec.dtype)
    return rounded.astype(spec.storage)  # exact: the dtype holds every value of the grid


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sample(spec: Spec, w, step, words, offset):
    return _sample_fwd(spec, w, step, words, offset)[0]


@functools.partial(jax.jit, static_argnums=0)
def _sample_fwd(spec: Spec, w, step, words, offset):
    leads, m, n = w.shape
    padded = blocks.pad_to(w, max(bits.ROWS, spec.block[0]), spec.block[1])
    _, rows, columns = padded.shape
    runs = rows // bits.ROWS
    absmax = blocks.block_absmax(blocks.pad_to(w, *spec.block), spec.block)

    def tile(per_block):
        """One number per block → broadcastable against [leads, runs, 8, 4, columns]."""
        # Spread over columns first, as an array: XLA vectorizes what is a row of numbers.
        over_columns = materialize(
            lambda _, x: jnp.repeat(x, spec.block[1], axis=2), words, per_block
        )
        if spec.block[0] % bits.ROWS == 0:
            over_runs = jnp.repeat(over_columns, spec.block[0] // bits.ROWS, axis=1)
            return over_runs[:, :, None, None, :]
        over_rows = jnp.repeat(over_columns, spec.block[0], axis=1)
        over_rows = blocks.pad_to(over_rows, bits.ROWS, 1)
        return over_rows.reshape(leads, runs, bits.DRAWS, bits.GROUP, columns)

    codes = noise_codes(spec.noise, words, offset, leads, runs, columns)
    wide = padded.astype(jnp.float32).reshape(leads, runs, bits.DRAWS, bits.GROUP, columns)
    noisy = wide + noise_tile(spec.noise, codes) * tile(absmax * step)
    w_hat = _cast(spec, noisy, tile, absmax).reshape(leads, rows, columns)[:, :m, :n]
    return w_hat, (words, offset, absmax, jnp.zeros((), w.dtype))


@functools.partial(jax.jit, static_argnums=0)
def _sample_bwd(spec: Spec, residual, cotangent):
    words, offset, absmax, like = residual
    leads = cotangent.shape[0]
    padded = blocks.pad_to(cotangent, max(bits.ROWS, spec.block[0]), spec.block[1])
    _, rows, columns = padded.shape
    runs = rows // bits.ROWS

    def wide(x):
        return _wide(x).reshape(leads, runs, bits.DRAWS, bits.GROUP, columns)

    codes = noise_codes(spec.noise, words, offset, leads, runs, columns)
    if spec.block[0] % bits.ROWS == 0:
        # Sum the rows that one call serves as slices, before any reduction that XLA gets to see.
        def over_draws(_, padded, codes):
            g = wide(padded)
            return sum(g[:, :, s] * noise_rows(spec.noise, codes, s) for s in range(bits.DRAWS))

        partial = materialize(over_draws, words, padded, codes).reshape(leads, -1, columns)
        per_run = blocks.block_sum(partial, (bits.GROUP, spec.block[1]))
        product = blocks.block_sum(per_run, (spec.block[0] // bits.ROWS, 1))
    else:
        product = (wide(padded) * noise_tile(spec.noise, codes)).reshape(leads, rows, columns)
        product = blocks.block_sum(product, spec.block)
    product = product[:, : absmax.shape[1], : absmax.shape[2]]
    return cotangent.astype(like.dtype), absmax * product, None, None


def _wide(x: jax.Array) -> jax.Array:
    """float32 of float32 or bfloat16, by bits: XLA's CPU compiler vectorizes it in a reduction."""
    return cast.from_word(cast.to_word(x), jnp.dtype(jnp.float32))


_sample.defvjp(_sample_fwd, _sample_bwd)
