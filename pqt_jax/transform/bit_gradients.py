# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""∂L/∂w → ∂L/∂b_i, for a step in which each parameter has one ŵ.

    ∂L/∂b_i = d(max_B|w| · 2^(1 − b_t))/db_i · Σ_B (∂L/∂w · R)

∂L/∂w is ∂L/∂ŵ. Where all microbatches of a step have the same noise, the block sums of the step's
gradient are therefore those of its microbatches together, and R is drawn once and not in each.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pqt_jax import pallas
from pqt_jax.numerics import blocks, partition
from pqt_jax.transform.perturb import collect_stacks
from pqt_jax.transform.rules import Rule
from pqt_jax.transform.sample import step_size
from pqt_jax.transform.tree_paths import map_paths, paths_and_leaves


def bit_gradients(
    params: Any, bits: Any, key: jax.Array, rules: Sequence[Rule], gradients: Any
) -> Any:
    """Return ∂L/∂b_i of all parameters that a rule samples, from ∂L/∂w.

    It is what differentiating `perturb_tree` gives, but for the order of sums, if L depends on
    these parameters through ŵ of this key alone.

    Example:
      >>> from pqt_jax.transform.perturb import perturb_tree
      >>> w, b_i, key = jnp.ones((32, 32)), jnp.ones((1, 1)), jax.random.key(0)
      >>> rules = [Rule("w")]
      >>> def loss(w, b_i):
      ...     return jnp.sum(perturb_tree({"w": w}, {"w": b_i}, key, rules)["w"] ** 2)
      >>> dw, db = jax.grad(loss, (0, 1))(w, b_i)
      >>> found = bit_gradients({"w": w}, {"w": b_i}, key, rules, {"w": dw})["w"]
      >>> bool(jnp.allclose(found, db, rtol=1e-5))
      True

    Args:
      params: pytree of arrays, whole parameters.
      bits: b_i, nested by the paths of the parameters.
      key: the key of the step; not consumed, since ŵ has consumed it.
      rules: as for `param_transform`.
      gradients: ∂L/∂w, float32 or bfloat16, by the same paths as params.

    Returns:
      float32, in the form of bits.
    """
    cotangents, found = paths_and_leaves(gradients), {}
    alike, _ = collect_stacks(params, bits, key, rules)
    for spec, stacks in alike:
        implementation = pallas.choose_implementation(None, spec)
        _, backward = pallas.get_functions(implementation)
        for paths in pallas.share_launches(implementation, stacks):
            operands = [
                (partition.as_matrices(cotangents[path], spec.matrix_axes), *stacks[path][2:])
                for path in paths
            ]
            for path, (sums,) in zip(paths, backward(spec, *operands), strict=True):
                w, b_i, *_ = stacks[path]
                absmax = blocks.block_absmax(blocks.pad_to(w, *spec.block), spec.block)
                _, step_vjp = jax.vjp(functools.partial(step_size, spec), b_i)
                (found[path],) = step_vjp(absmax * sums)
    return map_paths(lambda path, b_i: found[path].reshape(jnp.shape(b_i)), bits)
