# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which tiles of which stack of matrices a program of a launch takes.

A launch on one stack has a grid of three axes: matrix, run of 32 rows, and step along the columns.
A launch on several stacks has one axis, along which their programs follow each other. A program
finds its stack first. All that differs between the stacks, loads and stores, is in the branches of
a switch; the arithmetic is not.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Shape = tuple[int, int, int]  # matrices of a stack, runs in each, steps across


def choose_tiles(shapes: Sequence[Shape], most: int, programs: int) -> int:
    """Choose how many tiles of a run one program takes, which share the round keys of Philox.

    It takes fewer if there would otherwise be too few programs to fill the GPU.

    Args:
      shapes: of the stacks of a launch, with the number of tiles across for the steps; the result
        divides it.
      most: the largest result.
      programs: how many a GPU runs at once.
    """
    limit = max(sum(map(math.prod, shapes)) // programs, 1)
    columns = math.gcd(*(across for _, _, across in shapes))
    return next(t for t in range(most, 0, -1) if columns % t == 0 and t <= limit)


def make_grid(shapes: Sequence[Shape]) -> tuple[int, ...]:
    """Return the grid of a launch on stacks of these shapes."""
    return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


def locate(program: jax.Array, shapes: Sequence[Shape]) -> tuple[jax.Array, ...]:
    """Find what a program of a launch on several stacks takes.

    Example:
      >>> [int(x) for x in locate(jnp.int32(7), [(1, 2, 3), (2, 2, 2)])]  # the second of the second
      [1, 0, 0, 1]

    Args:
      program: int32 scalar, its index.
      shapes: of the stacks.

    Returns:
      int32 scalars: index of the stack, of the matrix in it, of the run, of the step.
    """
    firsts = [0, *itertools.accumulate(map(math.prod, shapes))]
    stack = jnp.zeros_like(program)
    for first in firsts[1:-1]:
        stack += (program >= np.int32(first)).astype(jnp.int32)

    def within(first: int, shape: Shape, program: jax.Array) -> tuple[jax.Array, ...]:
        _, runs, steps = (np.int32(x) for x in shape)
        index = program - np.int32(first)
        run = lax.div(index, steps)
        return lax.div(run, runs), lax.rem(run, runs), lax.rem(index, steps)

    firsts = firsts[:-1]
    return stack, *choose(stack, within, (firsts, shapes), program)


def choose(stack: Any, function: Callable[..., Any], stacks: Sequence[Any], *operands: Any) -> Any:
    """Call a function for one of the stacks; with one alone there is nothing to choose.

    Args:
      stack: index of the stack.
      function: `(*of the stack, *operands) → arrays`, or None where it stores.
      stacks: sequences with an entry for each stack, such as its references.
      operands: what does not depend on the stack.
    """
    branches = [functools.partial(function, *own) for own in zip(*stacks, strict=True)]
    return branches[0](*operands) if len(branches) == 1 else lax.switch(stack, branches, *operands)


def split_refs(refs: Sequence[Any], stacks: int) -> list[Sequence[Any]]:
    """Split a kernel's references: first those of all tables, then those of all matrices, …"""
    return [refs[i : i + stacks] for i in range(0, len(refs), stacks)]
