# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""w, b, key → ŵ: Gaussian weight sampling and its gradients.

Forward, for each block B of a matrix:

    ŵ = cast(w + R · max_B|w| · 2^(1 − b_t))

Backward, with max_B|w| and the cast passed straight through:

    ∂L/∂w   = ∂L/∂ŵ
    ∂L/∂b_t = −ln 2 · max_B|w| · 2^(1 − b_t) · Σ_B (∂L/∂ŵ · R)

The backward pass draws R again from the key. Between the two passes only the key and two numbers
per block are stored, the maximum and b_i; neither R nor a second copy of w is.

Source: arXiv 2505.11170 (2025); detaching max_B|w| is ours.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pqt_jax import pallas
from pqt_jax.numerics import blocks, keys, partition, philox
from pqt_jax.numerics.block_choice import choose_blocks
from pqt_jax.numerics.partition import Stack
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import Implementation
from pqt_jax.transform.rules import Rule, map_sampled
from pqt_jax.transform.sample import sample, straight_through
from pqt_jax.transform.tree_paths import lookup_bits, map_paths, paths_and_leaves

Origin = tuple[jax.Array | int, jax.Array | int]


def perturb_tree(
    params: Any,
    bits: Any,
    key: jax.Array,
    rules: Sequence[Rule],
    *,
    prefix: str = "",
    strict: bool = False,
    lead: jax.Array | int | None = None,
) -> Any:
    """Sample the weights of every parameter that a rule matches; keep the others.

    Args:
      params: pytree of arrays.
      bits: b_i, nested by the paths of the parameters.
      key: the key of the step; the key of a parameter is derived from it by the parameter's path.
      rules, prefix, strict: as for `param_transform`.
      lead: index of the layer, where params are one layer of a stack whose layers share the key;
        None for whole parameters, which consume the key.

    Returns:
      The same pytree with ŵ for w.

    Raises:
      TypeError, ValueError: as `rules.resolve` and `perturb`; the message names the parameter.
    """
    keys.check_key(key)
    if not any(rule.spec for rule in rules):
        raise ValueError(
            "a key is given, and no rule samples a parameter; add a rule, or run the bare model"
        )
    if lead is None:
        keys.consume(key)
    shapes = paths_and_leaves(params, prefix)
    options = {"prefix": prefix, "strict": strict, "lead": lead}
    alike, sampled = collect_stacks(params, bits, key, rules, **options)
    for spec, stacks in alike:
        implementation = pallas.choose_implementation(None, spec)
        for paths in pallas.share_launches(implementation, stacks):
            outputs: Any = sample(spec, implementation, tuple(stacks[path] for path in paths))
            for path, (w_hat, _) in zip(paths, outputs, strict=True):
                sampled[path] = partition.from_matrices(w_hat, shapes[path], spec.matrix_axes)
    return map_paths(lambda path, leaf: sampled.get(path, leaf), params, prefix)


def collect_stacks(
    params: Any,
    bits: Any,
    key: jax.Array,
    rules: Sequence[Rule],
    *,
    prefix: str = "",
    strict: bool = False,
    lead: jax.Array | int | None = None,
) -> tuple[list[tuple[Spec, dict[str, Stack]]], dict[str, jax.Array]]:
    """Collect what `sample` takes of the parameters that a rule samples with noise.

    Args:
      params, bits, key, rules, prefix, strict, lead: as for `perturb_tree`.

    Returns:
      ((spec, path → (w, b_i, words, offset)) for each spec and dtype of w, path → ŵ of the
      parameters that are rounded without noise).
    """
    alike: dict[tuple[Spec, Any], dict[str, Any]] = {}
    rounded: dict[str, jax.Array] = {}

    def prepare(path, spec, w):
        leads, _, _ = blocks.matrix_shape(w.shape, spec.matrix_axes)
        first = (0 if lead is None else lead) * leads
        if spec.noise == "none":
            of_path = keys.param_key(key, path) if spec.round_share < 1 else None
            rounded[path] = perturb(w, None, of_path, spec, lead=first)
            return w
        offset = make_offset(first, (0, 0), spec.block)
        spec, b_i = spec.fitted(w.shape), lookup_bits(bits, path, prefix)
        alike.setdefault((spec, w.dtype), {})[path] = *prepare_operands(w, b_i, spec), offset
        return w

    map_sampled(prepare, params, rules, prefix=prefix, strict=strict)
    words = keys.param_words(key, [path for some in alike.values() for path in some])
    stacks = [
        (spec, {path: (w, b_i, words[path], at) for path, (w, b_i, at) in some.items()})
        for (spec, _), some in alike.items()
    ]
    return stacks, rounded


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

    Differentiable in w (straight through the cast) and in b_i, by reverse mode.

    With noise "gauss", R · scale is exact, and ŵ has the same bits under jit, vmap and scan and on
    any mesh. Uniform R has the same bits too, but its product rounds, and a compiler may fuse the
    product into the sum: ŵ may then differ in the last place.

    Inside `jax.shard_map`, w is the shard of one device. Its noise is that of a whole matrix,
    unless `origin` says where the shard lies.

    Example:
      >>> w = jax.random.normal(jax.random.key(0), (100, 70))
      >>> w_hat = perturb(w, jnp.ones((4, 3)), jax.random.key(1))
      >>> w_hat.shape, w_hat.dtype
      ((100, 70), dtype(bfloat16))

    Args:
      w: float32 or bfloat16 parameter of two axes or more, the master weights.
      b_i: float32, one per block (`blocks.grid_shape`); not used with noise "none".
      key: scalar JAX key, consumed; not used with noise "none", unless `spec.round_share` is
        below 1.
      spec: the static options, see `Spec`.
      lead: index of the first matrix in a stack. Slice l of a stacked parameter, sampled with
        `lead=l`, gets the noise that it would get as part of the stack.
      origin: (row, column) of w's first element in a larger matrix. w must hold whole blocks of
        that matrix, and the row must be a multiple of 32. Under `shard_map`, use
        `jax.lax.axis_index(name) * rows`.
      implementation: "mosaic", "triton" or "mosaic_tpu" (the kernels of `pqt_jax.pallas`), or
        "xla"; None takes the best that the platform supports. A named one that is not supported is
        an error.

    Returns:
      ŵ in the shape of w and the dtype `spec.storage`.

    Raises:
      TypeError: for a key or a dtype of w that is not supported.
      ValueError: for a b_i of the wrong shape, and for an implementation that is not supported.
    """
    w = jnp.asarray(w)
    if spec.encoded:
        raise ValueError("encoded=True; codes come from `perturb_encoded`")
    spec = spec.fitted(w.shape)
    implementation = pallas.choose_implementation(implementation, spec)
    if spec.noise == "none":
        matrices, chosen = _matrices(w, spec), None
        if spec.round_share < 1:
            grid = blocks.grid_shape(matrices.shape, spec.block, (1, 1))
            offset = make_offset(lead, origin, spec.block)
            chosen = choose_blocks(keys.key_words(key), offset, grid, spec.block, spec.round_share)
        rounded: Any = straight_through(spec, matrices, chosen)
        return partition.from_matrices(rounded, w, spec.matrix_axes)
    operands = prepare_operands(w, b_i, spec)
    stack = *operands, keys.key_words(key), make_offset(lead, origin, spec.block)
    if not w.size:  # there is no block to launch a kernel for
        return w.astype(spec.storage)
    outputs: Any = sample(spec, implementation, (stack,))
    return partition.from_matrices(outputs[0][0], w, spec.matrix_axes)


def prepare_operands(
    w: jax.Array, b_i: jax.Array | None, spec: Spec
) -> tuple[jax.Array, jax.Array]:
    """Check w and b_i, and return them as matrices: [leads, M, N] and [leads, gm, gn]."""
    w = jnp.asarray(w)
    matrices = _matrices(w, spec)
    blocks.check_grid(b_i, w, spec.block, spec.matrix_axes)
    b_i = partition.as_matrices(jnp.asarray(b_i, jnp.float32), (1, 1))
    return matrices, partition.reshard_like(b_i, matrices, spec.block)  # as its gradient will be


def _matrices(w: jax.Array, spec: Spec) -> jax.Array:
    if w.dtype not in (jnp.float32, jnp.bfloat16):
        raise TypeError(f"w has dtype {w.dtype}; master weights must be float32 or bfloat16")
    return partition.as_matrices(w, spec.matrix_axes)


def make_offset(lead: Any, origin: Origin, block: blocks.Block) -> jax.Array:
    """Return uint32[3], the place of the first element: lead, run of 32 rows, column."""
    if not isinstance(origin, tuple) or len(origin) != 2:
        raise TypeError(f"origin={origin!r}; it must be (row, column)")
    row = _check_index("origin[0]", origin[0], "row", max(philox.ROWS, block[0]))
    column = _check_index("origin[1]", origin[1], "column", block[1])
    return jnp.stack([_check_index("lead", lead, "matrix"), row // philox.ROWS, column])


def _check_index(name: str, value: Any, axis: str, multiple: int = 1) -> jax.Array:
    if isinstance(value, str) or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{name}={value!r}; it must be the index of a {axis}, an integer")
    is_scalar = not jnp.shape(value)
    is_concrete = is_scalar and not isinstance(value, Tracer)
    if not is_scalar or is_concrete and not 0 <= int(value) < 2**32:
        raise ValueError(f"{name}={value!r}; it must be one index of a {axis}, from 0")
    if is_concrete and int(value) % multiple:
        raise ValueError(f"{name}={value!r}; it must be a multiple of {multiple}")
    return jnp.uint32(value)
