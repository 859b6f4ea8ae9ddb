# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The weights whose held-out loss a sweep measures, by a name of up to three parts.

FORMAT[/RULE][/matrix]

master          the weights as they are
mixed           by the learned bits
fp4_e2m1        any format by its name, blocks and scale rule as in training
E2M0/mse        with another rule for the scale of a block (`cast.ScaleRule`)
E2M1/mse/matrix     one scale for each matrix
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from pqt_jax.numerics import blocks, cast
from pqt_jax.numerics.formats import as_format
from pqt_jax.quantization.quantize import plan_uniform
from pqt_jax.training import methods, named_formats
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.transform import bit_state

DEFAULT = ("master", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1")
_BLOCKS = {"matrix": (blocks.MAX_SIDE, blocks.MAX_SIDE)}  # cut to the size of each matrix


def check(names: Any) -> None:
    """Raise ValueError unless the names can be used, with "master" first and each once."""
    for name in names:
        _parse(name)
    if not names or names[0] != "master" or len(set(names)) != len(names):
        raise ValueError("it must begin with master, and have each name once")


def make_rounding(config: RunConfig, name: str) -> Callable[[nnx.State], nnx.State] | None:
    """The function that rounds the parameters of a run.

    Args:
      config: the run's configuration.
      name: of the weights.

    Returns:
      Parameters → weights; None for "mixed" where the method learns no bits.
    """
    fmt, options = _parse(name)
    rules = quantization_rules(config)
    if fmt == "mixed" and not methods.get_method(config).learns_bits:
        return None
    if fmt in ("master", "mixed"):
        return lambda params: named_formats.round_to_format(config, params, rules, fmt)

    def round_all(params):
        plan = plan_uniform(bit_state.weights(params), rules, fmt, **options)
        return named_formats.round_by_plan(params, plan)

    return round_all


@functools.cache
def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """(format, options of `plan_uniform`).

    Raises:
      ValueError: if the name cannot be used.
    """
    fmt, *others = name.split("/")
    options: dict[str, Any] = {}
    if fmt not in ("master", "mixed"):
        as_format(fmt)
    elif others:
        raise ValueError(f"{name!r}: {fmt} stands alone")
    for other in others:
        if other in _BLOCKS:
            options["block"] = _BLOCKS[other]
        else:
            options["scale"] = cast.check_scale(other)
    return fmt, options
