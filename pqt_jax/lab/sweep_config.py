# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The config file of a sweep: the fields of a training run, and those of the sweep."""

from dataclasses import dataclass
from typing import Any, get_args

from pqt_jax.lab import rounded_weights
from pqt_jax.lab.operands import Rounding
from pqt_jax.models.setting import setting
from pqt_jax.numerics.cast import ScaleRule
from pqt_jax.training import sharpness
from pqt_jax.training.config.fields import to_config_dict
from pqt_jax.training.config.schema import ModelConfig, RunConfig

OPERANDS = ("activations", "weights", "gradients")


def _check_seeds(seeds: Any) -> None:
    whole = all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    if not whole or not is_distinct(seeds):
        raise ValueError("it must be one or more whole numbers from 0 to 2^31 - 1, each once")


def _check_learning_rates(rates: Any) -> None:
    numbers = all(_is_number(rate) and 1e-30 <= rate <= 1e30 for rate in rates)
    if not numbers or not is_distinct(rates):
        raise ValueError("it must be one or more numbers from 1e-30 to 1e30, each once")


def is_distinct(values: Any) -> bool:
    """Whether there is at least one value and none occurs twice."""
    return 0 < len(set(values)) == len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Matrix products whose operands are reduced to few bits."""

    dtype: str = setting("", "Format of the reduced operands, such as E8M3; empty for none.")
    rounding: str = setting("truncate", "How operands are rounded.", choices=get_args(Rounding))
    scale: str = setting(
        "none",
        "Scale of each block of 32×32: none, by the block's largest power of two rounded down or "
        "up, or exact, which needs rounding to nearest.",
        choices=("none", *(rule.value for rule in ScaleRule if rule != ScaleRule.MSE)),
    )
    operands: tuple[str, ...] = setting(
        OPERANDS, f"Operands that are reduced: some of {', '.join(OPERANDS)}."
    )
    pattern: str = setting(
        "h/.*/kernel", "Regular expression of the paths of the kernels in whose products they are."
    )


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a sweep trains, and what it records."""

    arms: tuple[tuple[str, ...], ...] = setting(
        (),
        'Ways to train, each a name and fields as on the command line, such as ("STE", '
        '"method=ste"); the first is the baseline.',
        words="tuples of text, in the config file alone",
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4, 5, 6, 7), "Seeds of every arm.", check=_check_seeds
    )
    learning_rates: tuple[float, ...] = setting(
        (1e-3, 3e-3, 1e-2, 3e-2), "Learning rates of every arm.", check=_check_learning_rates
    )
    weights: tuple[str, ...] = setting(
        rounded_weights.DEFAULT,
        "Weights whose held-out loss is measured: master; formats such as fp4_e2m1, with another "
        "scale rule as in fp4_e2m1/mse, other blocks as in fp4_e2m1/mse/32x1, or a scale for each "
        "matrix as in fp4_e2m1/mse/matrix; "
        "mixed by the learned bits, mixed/error by those whose rounding error equals the noise, "
        "mixed/tensor or mixed/error/tensor with a format for each matrix.",
        check=rounded_weights.check,
    )
    at_once: int = setting(
        4,
        "Runs that one program trains side by side; a few fit into the cache of a CPU, and a GPU "
        "needs many to be busy.",
        minimum=1,
    )
    margin: float = setting(
        0.5, "Nats above its lowest level so far from which a loss has diverged.", above=0
    )
    window: int = setting(20, "Steps of each median by which divergence is judged.", minimum=1)
    spike_score: float = setting(
        6.0, "Standard deviations above their median from which a loss is a spike.", above=0
    )
    spike_window: int = setting(
        100, "Preceding steps whose losses a spike is measured against.", minimum=1
    )
    record_every: int = setting(
        5, "Steps between recorded losses; outcomes use every loss.", minimum=1
    )
    sharpness_every: int = setting(
        20, "Steps between measurements of sharpness; 0 for none.", minimum=0
    )
    epsilon: float = setting(
        sharpness.EPSILON, "Relative size of the box around the logits.", above=0, maximum=1
    )
    maximizer: str = setting(
        "corner", "How the maximum in the box is found.", choices=get_args(sharpness.Maximizer)
    )
    iterations: int = setting(10, "Iterations of maximizers gradient and lbfgsb.", minimum=1)
    rho: float = setting(
        0.0, "Radius of the sharpness of weights; 0 for no measurement.", minimum=0, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class SweepFileConfig(RunConfig):
    """The training run that each arm of a sweep varies, and the sections of the sweep itself."""

    simulate: SimulateOptions = SimulateOptions()
    sweep: SweepOptions = SweepOptions()


def default(model: ModelConfig) -> Any:
    """Every field of a training run and of a sweep with its default, as a ConfigDict.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> config = default(Llama2Config(256, d_model=32, num_layers=1, num_heads=2, d_ff=64))
      >>> config.sweep.arms = (("BF16",), ("E8M3", "simulate.dtype=E8M3"))
      >>> config.simulate.rounding, config.sweep.window
      ('truncate', 20)
    """
    return to_config_dict(SweepFileConfig(model=model))
