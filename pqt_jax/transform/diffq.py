# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""DiffQ as published, a baseline: noise as wide as a quantization step, one bit-width per group.

    b     = σ(l) · max_bits + (1 − σ(l)) · min_bits       a logit l for each group of weights
    step  = (max w − min w) / (2^b − 1)                    the range is that of the whole matrix
    ŵ     = w + R · step                                   R ~ N(0, 1)/2, or U(−½, ½)
    size  = Σ b / 2^23                                     over all weights; a MB is 2^20 bytes
    w_q   = min w + step · ⌊(w − min w) / step⌉            at whole b: 2^b levels

In a kernel [..., in, out], a group is 8 consecutive weights along the input axis, as in the
original, which flattens [out, in]. In an embedding [tokens, width], it is 8 consecutive weights of
one token. The last group is smaller where 8 does not divide the axis. Each matrix of a stack has
its own range.

Weights are not cast; noise is added, and nothing else. `jax.random` draws R from
`keys.param_key(step key, path)` as one array over a whole stack. With JAX's partitionable threefry
the R of an element is therefore a function of (seed, step, path, index), on any mesh.

As in the published method, sampling acts on the tree of parameters, outside the model. ŵ of all
parameters is therefore in memory at once, and R of all parameters until the backward pass ends.

The paper does not settle whether gradients pass through the range. Here they do not, as they do not
pass through max|w| in `perturb`.

Source: Défossez, Adi, Synnaeve, "Differentiable Model Compression via Pseudo Quantization Noise",
arXiv 2104.09987 (2021).
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pqt_jax.numerics import blocks, keys
from pqt_jax.numerics.bit_width import step_size
from pqt_jax.transform.tree_paths import map_paths, paths_and_leaves

Noise = Literal["normal", "uniform"]
NOISES: tuple[Noise, ...] = ("normal", "uniform")
MB = 2**23  # bits


class Options(NamedTuple):
    """Options of DiffQ.

    Attributes:
      group: number of weights that share a bit-width.
      init_bits: b before the first step, between `min_bits` and `max_bits`.
      min_bits, max_bits: the bounds of b, which the logits approach at ∓∞; from 1 to 16.
      noise: "normal" for N(0, 1)/2, "uniform" for U(−½, ½).
    """

    group: int = 8
    init_bits: float = 8.0
    min_bits: float = 2.0
    max_bits: float = 15.0
    noise: Noise = "normal"


def init(path: str, shape: tuple[int, ...], options: Options = Options()) -> jax.Array:
    """The initial logits of one parameter, at which every b is `init_bits`.

    Example:
      >>> init("h/mlp/up/kernel", (12, 768, 3072)).shape, init("embed/embedding", (300, 20)).shape
      ((12, 96, 3072), (300, 3))

    Args:
      path: the parameter's path. Groups lie along the last axis if it ends in "embedding", else
        along the last but one.
      shape: the parameter's shape, two axes or more.
      options: see `Options`.

    Returns:
      float32, one per group.
    """
    axis = len(shape) - (1 if path.split("/")[-1] == "embedding" else 2)
    groups = -(-shape[axis] // options.group)
    low, high = options.init_bits - options.min_bits, options.max_bits - options.init_bits
    return jnp.full((*shape[:axis], groups, *shape[axis + 1 :]), math.log(low / high), jnp.float32)


def bit_width(logits: jax.Array, options: Options = Options()) -> jax.Array:
    """`b = σ(l) · max_bits + (1 − σ(l)) · min_bits`.

    Example:
      >>> bit_width(jnp.array([-jnp.inf, 0.0, jnp.inf])).tolist()
      [2.0, 8.5, 15.0]

    Args:
      logits: float32, one per group.
      options: see `Options`.

    Returns:
      float32 of the same shape, in bits.
    """
    share = jax.nn.sigmoid(logits)
    return share * options.max_bits + (1 - share) * options.min_bits


def perturb(
    w: jax.Array,
    logits: jax.Array,
    key: jax.Array,
    options: Options = Options(),
    dtype: Any = None,
) -> jax.Array:
    """`ŵ = w + R · (max w − min w) / (2^b − 1)`, differentiable in w and in the logits.

    Example:
      >>> w = jnp.linspace(0.0, 1.0, 16).reshape(16, 1)
      >>> w_hat = perturb(w, jnp.full((2, 1), jnp.inf), jax.random.key(0))
      >>> bool(jnp.all(jnp.abs(w_hat - w) < 3 / 2**15))
      True

    Args:
      w: float32 or bfloat16 [..., in, out]; each matrix has its own range.
      logits: float32, one per group, see `init`.
      key: consumed.
      options: see `Options`.
      dtype: the dtype of ŵ, which is rounded once, after a sum in float32; None for the dtype of w.

    Returns:
      ŵ in the shape of w.

    Raises:
      ValueError: for logits of the wrong shape.
    """
    if options.noise == "normal":
        noise = jax.random.normal(key, w.shape, jnp.float32) / 2
    else:
        noise = jax.random.uniform(key, w.shape, jnp.float32) - 0.5
    wide = w.astype(jnp.float32)
    low, high = _ends(wide)
    step = _spread(_share(bit_width(logits, options)), w.shape, options.group) * (high - low)
    return (wide + noise * step).astype(dtype or w.dtype)


def quantize(w: jax.Array, logits: jax.Array, options: Options = Options()) -> jax.Array:
    """Round a parameter to the nearest of 2^b levels between min w and max w, b to whole bits.

    Example:
      >>> w = jnp.array([[0.0], [0.3], [0.4], [1.0]])
      >>> [round(x, 4) for x in quantize(w, jnp.full((1, 1), -jnp.inf))[:, 0].tolist()]
      [0.0, 0.3333, 0.3333, 1.0]

    Args:
      w, logits, options: as for `perturb`.

    Returns:
      The shape and dtype of w. In bfloat16 the levels themselves are rounded.

    Raises:
      ValueError: for logits of the wrong shape.
    """
    wide = w.astype(jnp.float32)
    low, high = _ends(wide)
    share = _share(jnp.round(bit_width(logits, options)))
    step = _spread(share, w.shape, options.group) * (high - low)
    level = jnp.round((wide - low) / jnp.where(step == 0, 1.0, step))
    return (low + level * step).astype(w.dtype)


def sample(
    params: Any, logits: Any, key: jax.Array, options: Options = Options(), dtype: Any = None
) -> Any:
    """Sample every parameter that has logits; keep the others.

    Args:
      params: pytree of arrays.
      logits: nested by the paths of the parameters.
      key: the key of the step; the key of a parameter is derived from it by the parameter's path.
      options, dtype: as for `perturb`.

    Returns:
      The same pytree with ŵ for w.
    """
    logits_at = paths_and_leaves(logits)

    def visit(path, w):
        if path not in logits_at:
            return w
        return perturb(w, logits_at[path], keys.param_key(key, path), options, dtype)

    return map_paths(visit, params)


def quantize_all(params: Any, logits: Any, options: Options = Options()) -> Any:
    """Apply `quantize` to every parameter that has logits; keep the others."""
    logits_at = paths_and_leaves(logits)

    def visit(path, w):
        return quantize(w, logits_at[path], options) if path in logits_at else w

    return map_paths(visit, params)


def size_mb(params: Any, logits: Any, options: Options = Options()) -> jax.Array:
    """The stored size of the weights in MB of 2^20 bytes, differentiable in the logits.

        Σ_groups b · weights in the group / 2^23

    Only the part that depends on the logits is counted. `quantization.diffq_sizes` also counts the
    stored minima, maxima and bit-widths, and the parameters that are not quantized.

    Example:
      >>> params, logits = {"w": jnp.ones((1024, 1024))}, {"w": init("w", (1024, 1024))}
      >>> round(size_mb(params, logits).item(), 4)
      1.0

    Args:
      params: pytree of arrays, or of their shapes.
      logits: nested by the paths of the parameters.
      options: see `Options`.

    Returns:
      float32 scalar, in MB.
    """
    shapes, total = paths_and_leaves(params), jnp.float32(0)
    for path, leaf in paths_and_leaves(logits).items():
        counts = weights_per_group(shapes[path].shape, leaf.shape, options.group)
        total += jnp.sum(bit_width(leaf, options) * jnp.float32(counts / MB))
    return total


def _ends(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimum and maximum of each matrix, without gradients."""
    w = lax.stop_gradient(w)
    return jnp.min(w, axis=(-2, -1), keepdims=True), jnp.max(w, axis=(-2, -1), keepdims=True)


def _share(b: jax.Array) -> jax.Array:
    """`1 / (2^b − 1)`. The power of two has the same bits on every platform."""
    power = step_size(b)  # 2^(1 − b)
    return power / (2 - power)


def _axis(shape: tuple[int, ...], groups: tuple[int, ...], group: int) -> int:
    """The axis along which the groups lie."""
    for axis in (len(shape) - 2, len(shape) - 1):
        if groups == (*shape[:axis], -(-shape[axis] // group), *shape[axis + 1 :]):
            return axis
    raise ValueError(f"logits of shape {groups} for w of shape {shape} in groups of {group}")


def _spread(per_group: jax.Array, shape: tuple[int, ...], group: int) -> jax.Array:
    """Repeat one number per group for each weight of the group."""
    axis = _axis(shape, per_group.shape, group)
    return lax.slice_in_dim(blocks.repeat(per_group, group, axis), 0, shape[axis], axis=axis)


def weights_per_group(shape: tuple[int, ...], groups: tuple[int, ...], group: int) -> np.ndarray:
    """The number of weights in each group; the last group may be smaller.

    Args:
      shape: the parameter's shape.
      groups: the shape of its logits.
      group: number of weights in a whole group.

    Returns:
      float64, which broadcasts against the logits.
    """
    axis = _axis(shape, groups, group)
    counts = np.minimum(group, shape[axis] - group * np.arange(groups[axis], dtype=np.float64))
    return np.broadcast_to(counts.reshape(-1, *[1] * (len(shape) - 1 - axis)), groups)
