# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Recipes: the phases of training whose weights lose little in a format of few bits.

    steps      0 ─────────────── round_at · steps ────────────── round_all_at · steps ───── steps
    weights    in bfloat16       a random share of the blocks    all blocks
                                 rounded to the format, with gradients straight through

Which recipe is best is measured in docs/payoff. The trainer's `config.recipe` follows the same
numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pqt_jax.numerics import cast
from pqt_jax.numerics.blocks import Block
from pqt_jax.transform.rules import Rule

HALF = 0.5


class Rounding(NamedTuple):
    """The last phases of a recipe.

    Attributes:
      dtype: the format.
      scale: rule for the scale of a block.
      round_at: share of the steps after which weights are rounded.
      round_share: share of the blocks that a step rounds.
      round_all_at: share of the steps after which a step rounds all blocks.
    """

    dtype: str
    scale: cast.Scale = "mse"
    round_at: float = 0.85
    round_share: float = HALF
    round_all_at: float = 0.95


RECIPES = {
    "fp4": Rounding("float4_e2m1fn"),
    "fp6": Rounding("float6_e2m3fn"),
    "fp8": Rounding("float8_e4m3fn"),
}


class Phase(NamedTuple):
    """The rules for a share of the training steps.

    Attributes:
      begin: share of the steps before it, from 0 to below 1.
      rules: for `pqt_transform` or `param_transform`.
    """

    begin: float
    rules: list[Rule]


def fp4(
    pattern: str,
    *,
    block: Block = (32, 32),
    matrix_axes: tuple[int, int] = (1, 1),
    round_share: float = HALF,
) -> list[Phase]:
    """Phases for weights that will be stored in FP4 E2M1.

    Parameters and bit-widths are the same tree in all, so the state of one goes on in the next.

    Example:
      >>> for begin, (rule,) in fp4(".*kernel"):
      ...     print(begin, rule.spec.dtype.name, rule.spec.round_share)
      0.0 BF16 1.0
      0.85 E2M1 0.5
      0.95 E2M1 1.0

    Args:
      pattern: regular expression on whole paths of parameters, as for `Rule`.
      block: rows and columns of the blocks that share a scale, as for `Rule`.
      matrix_axes: how a parameter becomes matrices, as for `Rule`.
      round_share: share of the blocks that a step rounds, as for `Rule`, before a last phase that
        rounds all of them; 1 to round all from the start.

    Returns:
      The phases, in order.

    Raises:
      ValueError: as `Rule`.
    """
    return _phases(RECIPES["fp4"], pattern, block, matrix_axes, round_share)


def fp6(
    pattern: str,
    *,
    block: Block = (32, 32),
    matrix_axes: tuple[int, int] = (1, 1),
    round_share: float = HALF,
) -> list[Phase]:
    """Phases for weights that will be stored in FP6 E2M3; see `fp4`.

    Args:
      pattern, block, matrix_axes, round_share: as for `fp4`.
    """
    return _phases(RECIPES["fp6"], pattern, block, matrix_axes, round_share)


def fp8(
    pattern: str,
    *,
    block: Block = (32, 32),
    matrix_axes: tuple[int, int] = (1, 1),
    round_share: float = HALF,
) -> list[Phase]:
    """Phases for weights that will be stored in FP8 E4M3; see `fp4`.

    Args:
      pattern, block, matrix_axes, round_share: as for `fp4`.
    """
    return _phases(RECIPES["fp8"], pattern, block, matrix_axes, round_share)


def phase_at(phases: Sequence[Phase], step: int, steps: int) -> int:
    """The index of the phase of a step.

    Example:
      >>> [phase_at(fp4(".*kernel"), step, 20) for step in range(15, 20)]
      [0, 0, 1, 1, 2]

    Args:
      phases: from a recipe.
      step: the number of steps before this one.
      steps: the number of all steps.

    Raises:
      ValueError: if there is no such step, or so few that the last phase has none.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step={step}; it must be from 0 to below steps={steps}")
    if first_step(phases[-1].begin, steps) >= steps:
        last = phases[-1].begin
        raise ValueError(f"steps={steps}; too few for a step after the share {last} of them")
    return max(i for i, phase in enumerate(phases) if first_step(phase.begin, steps) <= step)


def first_step(share: float, steps: int) -> int:
    """The number of steps before a phase that begins after a share of them."""
    return round(share * steps)


def _phases(
    rounding: Rounding,
    pattern: str,
    block: Block,
    matrix_axes: tuple[int, int],
    round_share: float,
) -> list[Phase]:
    options: dict[str, Any] = {"noise": "none", "block": block, "matrix_axes": matrix_axes}
    last = options | {"dtype": rounding.dtype, "scale": rounding.scale}
    some = Rule(pattern, round_share=round_share, **last)
    phases = [Phase(0.0, [Rule(pattern, **options)]), Phase(rounding.round_at, [some])]
    if round_share < 1:
        phases.append(Phase(rounding.round_all_at, [Rule(pattern, **last)]))
    return phases
