# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Stacks of matrices → ŵ, with gradients: what `perturb` and `perturb_tree` differentiate.

A stack is (w, b_i, words of the key, offset); see `pqt_jax.pallas.get_functions`. One call takes
several of one spec and dtype, which a kernel samples in one launch, and again in the backward pass.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pqt_jax import pallas
from pqt_jax.numerics import bit_width
from pqt_jax.numerics.partition import Stack
from pqt_jax.numerics.reference import backward, cast_blocks
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import Implementation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def straight_through(spec: Spec, w: jax.Array, chosen: jax.Array | None) -> jax.Array:
    """Cast matrices [leads, M, N] without noise, see `cast_blocks`; the gradient is that of ŵ."""
    return cast_blocks(spec, w, chosen)


def _straight_through_fwd(spec, w, chosen):
    return straight_through(spec, w, chosen), jnp.zeros((), w.dtype)


def _straight_through_bwd(spec, like, cotangent):
    return cotangent.astype(like.dtype), None


straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sample(spec: Spec, implementation: Implementation, stacks: tuple[Stack, ...]) -> Any:
    """Sample matrices: (ŵ, max_B|w|) of each stack. The gradient of the maximum is left out."""
    forward, _ = pallas.get_functions(implementation)
    return forward(spec, *stacks)


def _sample_fwd(spec, implementation, stacks):
    # Calls itself, so that differentiating this a second time uses the same rule.
    outputs: Any = sample(spec, implementation, stacks)
    residuals = [
        (b_i, words, offset, absmax, jnp.zeros((), w.dtype))
        for (w, b_i, words, offset), (_, absmax) in zip(stacks, outputs, strict=True)
    ]
    return outputs, residuals


def _sample_bwd(spec, implementation, residuals, cotangents):
    gradients = [cotangent for cotangent, _ in cotangents]  # the maximum is detached
    places = [(words, offset) for _, words, offset, _, _ in residuals]
    sums: Any = _block_sums(spec, implementation, gradients, places)
    results = []
    for g, (b_i, _, _, absmax, like), product in zip(gradients, residuals, sums, strict=True):
        _, step_vjp = jax.vjp(functools.partial(step_size, spec), b_i)
        results.append((g.astype(like.dtype), *step_vjp(absmax * product), None, None))
    return (tuple(results),)


sample.defvjp(_sample_fwd, _sample_bwd)


def step_size(spec: Spec, b_i: jax.Array) -> jax.Array:
    """Return `2^(1 − b_t)` of each block, which can be differentiated."""
    return bit_width.step_size(bit_width.bit_width(b_i, spec.target_bits, spec.init_bits))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _block_sums(spec: Spec, implementation: Implementation, cotangents: Any, places: Any) -> Any:
    """Σ_B (∂L/∂ŵ · R) of each ∂L/∂ŵ. It is linear in ∂L/∂ŵ, and can be differentiated again."""
    _, backward = pallas.get_functions(implementation)
    stacks = [(g, *place) for g, place in zip(cotangents, places, strict=True)]
    return [sums for (sums,) in backward(spec, *stacks)]


def _block_sums_fwd(spec, implementation, *operands):
    return _block_sums(spec, implementation, *operands), operands


def _block_sums_bwd(spec, implementation, operands, cotangents):
    del implementation  # second derivatives are rare, and have no kernel
    results = []
    for primal, place, cotangent in zip(*operands, cotangents, strict=True):
        _, transpose = jax.vjp(lambda g, place=place: backward(spec, g, *place), primal)
        results += transpose(cotangent)
    return results, None


_block_sums.defvjp(_block_sums_fwd, _block_sums_bwd)
