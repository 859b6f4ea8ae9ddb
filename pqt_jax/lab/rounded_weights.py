# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The weights whose held-out loss a sweep measures, by a name of up to three parts.

FORMAT[/RULE][/BLOCKS]
mixed[/error][/tensor]

master          the weights as they are
mixed           by the learned bits, in formats that can represent their noise
mixed/error     in formats whose rounding error is as large as their noise
mixed/tensor    one format for each matrix
fp4_e2m1        any format by its name, blocks and scale rule as in training
E2M0/mse        with another rule for the scale of a block (`cast.ScaleRule`)
E2M1/mse/32x1   with blocks of 32 rows and one column in place of those of training
E2M1/mse/matrix     one scale for each matrix
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from pqt_jax.numerics import blocks, cast
from pqt_jax.numerics.formats import as_format
from pqt_jax.quantization import sizes
from pqt_jax.quantization.quantize import Plan, plan_uniform
from pqt_jax.training import methods, named_formats
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.transform import bit_state

DEFAULT = ("master", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1")
_BLOCKS = {"matrix": (blocks.MAX_SIDE, blocks.MAX_SIDE)}  # cut to the size of each matrix
_MIXED = {"error": {"match": "error"}, "tensor": {"granularity": "tensor"}}  # of `plan_mixed`


def check(names: Any) -> None:
    """Raise ValueError unless the names can be used, with "master" first and each once."""
    for name in names:
        _parse(name)
    if not names or names[0] != "master" or len(set(names)) != len(names):
        raise ValueError("it must begin with master, and have each name once")


def is_mixed(name: str) -> bool:
    """Whether a name is of weights by the learned bits."""
    return _parse(name)[0] == "mixed"


def make_rounding(config: RunConfig, name: str) -> Callable[[nnx.State], nnx.State] | None:
    """The function that rounds the parameters of a run.

    Args:
      config: the run's configuration.
      name: of the weights.

    Returns:
      Parameters → weights; None for a name with "mixed" where the method learns no bits, or rounds
      by itself in one way alone.
    """
    _, options = _parse(name)
    method = methods.get_method(config)
    if is_mixed(name) and (not method.learns_bits or (method.round_weights and options)):
        return None
    if name == "mixed" and method.round_weights:
        return functools.partial(method.round_weights, config)
    return lambda params: named_formats.round_by_plan(params, _make_plan(config, params, name))


def stored_bits(config: RunConfig, params: nnx.State, name: str) -> float | None:
    """Bits of a weight that is stored by the learned bits, with scales and tags; the mean.

    Args:
      config: the run's configuration.
      params: its parameters.
      name: of the weights, with "mixed".

    Returns:
      The mean over all quantized weights; None if the method learns no bits of `MIXED_FORMATS`.
    """
    method = methods.get_method(config)
    if not method.learns_bits or method.size_mb:
        return None
    plan = _make_plan(config, params, name)
    by_path = sizes.parameter_sizes(plan, bit_state.weights(params))
    return sizes.total_size(by_path.values()).mean_bits


def _make_plan(config: RunConfig, params: nnx.State, name: str) -> Plan:
    (fmt, options), rules = _parse(name), quantization_rules(config)
    if fmt in ("master", "mixed"):
        return named_formats.make_plan(params, rules, fmt, **options)
    return plan_uniform(bit_state.weights(params), rules, fmt, **options)


@functools.cache
def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """(format, options of its plan).

    Raises:
      ValueError: if the name cannot be used.
    """
    fmt, *others = name.split("/")
    options: dict[str, Any] = {}
    for other in others:
        if fmt == "master":
            raise ValueError(f"{name!r}: master stands alone")
        option = _parse_option(fmt, other)
        if twice := option.keys() & options.keys():
            raise ValueError(f"{name!r}: {other!r} is a second {twice.pop()}")
        options |= option
    if fmt not in ("master", "mixed") and as_format(fmt).exponent_bits == 8 and options:
        raise ValueError(f"{name!r}: {fmt} stands alone, since it has no scales")
    return fmt, options


def _parse_option(fmt: str, text: str) -> dict[str, Any]:
    """What follows a format: a rule for scales, or blocks."""
    if fmt == "mixed":
        if text not in _MIXED:
            raise ValueError(f"{text!r}; what follows mixed must be of {', '.join(_MIXED)}")
        return _MIXED[text]
    if text in _BLOCKS:
        return {"block": _BLOCKS[text]}
    if text[:1].isdigit():
        return {"block": blocks.parse_block(text)}
    return {"scale": cast.check_scale(text)}
