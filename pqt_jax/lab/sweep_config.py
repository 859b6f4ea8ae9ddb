# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The configuration of a sweep: arms × learning rates × seeds.

An *arm*, as in a clinical trial, is one of the ways to train that a sweep compares: a configuration
of the trainer, and a reduced format for the operands of matrix products. The runs of an arm differ
only in seed and learning rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from pqt_jax.errors import InputError
from pqt_jax.lab.gemms import Gemm
from pqt_jax.lab.operands import Operand, Rounding
from pqt_jax.models.setting import setting
from pqt_jax.numerics.cast import ScaleRule
from pqt_jax.training import sharpness
from pqt_jax.training.config import load_file, validation
from pqt_jax.training.config.fields import check_ranges, flatten, to_config_dict, with_changes
from pqt_jax.training.config.schema import ModelConfig, RunConfig

RateAndSeed = tuple[float, int]
_OPERANDS = ("activations", "weights", "gradients")
_LONGEST_NAME = 40  # characters
# Fields of a training run that a sweep does not use; they must keep these values.
_UNUSED = {"init_from": "", "log.sharpness_every": 0, "log.wandb": "", "log.tensorboard": False}
_UNUSED |= {"seed": 0, "mesh.data": 0, "mesh.fsdp": 1, "mesh.tensor": 1}


def _check_seeds(seeds: Any) -> None:
    whole = all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    if not whole or not _distinct(seeds):
        raise ValueError("it must be one or more whole numbers from 0 to 2^31 - 1, each once")


def _check_learning_rates(rates: Any) -> None:
    numbers = all(_is_number(rate) and 1e-30 <= rate <= 1e30 for rate in rates)
    if not numbers or not _distinct(rates):
        raise ValueError("it must be one or more numbers from 1e-30 to 1e30, each once")


def _distinct(values: Any) -> bool:
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
        choices=("none", *(rule.value for rule in ScaleRule)),
    )
    operands: tuple[str, ...] = setting(
        _OPERANDS, f"Operands that are reduced: some of {', '.join(_OPERANDS)}."
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
        '"method=ste"); the first is the baseline. Only the file can set them.',
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4, 5, 6, 7), "Seeds of every arm.", check=_check_seeds
    )
    learning_rates: tuple[float, ...] = setting(
        (1e-3, 3e-3, 1e-2, 3e-2), "Learning rates of every arm.", check=_check_learning_rates
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
    """The fields of a config file of a sweep: those of a training run, and two sections more."""

    simulate: SimulateOptions = SimulateOptions()
    sweep: SweepOptions = SweepOptions()


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
      name: as in the config.
      config: of the trainer. Its learning rate and seed are not used.
      rules: for `simulate.simulate`; empty if no operand is reduced.
    """

    name: str
    config: RunConfig
    rules: dict[str, Gemm | None]


@dataclass(frozen=True)
class SweepConfig:
    """A sweep.

    Attributes:
      arms: in the order of the config. The first arm is the baseline.
      seeds: of every arm.
      learning_rates: of every arm.
      options: the section `sweep` of the config.
      full_config: the whole config, for `run.json`.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    options: SweepOptions
    full_config: SweepFileConfig


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


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> SweepConfig:
    """Read the config of a sweep, apply overrides, and check every arm.

    Args:
      path: of a Python file. Its `get_config()` starts from `default` and changes fields.
      overrides: (dotted field, value as text), applied in order.

    Raises:
      InputError: if the file, a field or a value cannot be used. Nothing is compiled before.
    """
    for name, _ in overrides:
        if name == "sweep.arms":
            raise InputError(f"--config.{name}: arms can only be set in the file")
    config = with_changes(load_file.read(path, SweepFileConfig), overrides)
    check_ranges(config, only="sweep.")
    options = config.sweep
    _check_arms(options.arms)
    return SweepConfig(
        arms=tuple(_make_arm(config, name, texts) for name, *texts in options.arms),
        seeds=tuple(options.seeds),
        learning_rates=tuple(map(float, options.learning_rates)),
        options=options,
        full_config=config,
    )


def _check_arms(arms: Any) -> None:
    """Raise InputError unless each arm is a unique name followed by field=value texts."""
    well_formed = arms and all(
        isinstance(arm, tuple | list)
        and arm
        and all(isinstance(text, str) for text in arm)
        and all("=" in text for text in arm[1:])
        for arm in arms
    )
    if not well_formed:
        raise InputError(
            f"config.sweep.arms={arms!r}; it must be ways to train, each a name and fields, such "
            'as (("BF16",), ("E8M3", "simulate.dtype=E8M3"))'
        )
    names = [arm[0] for arm in arms]
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME or name.startswith("_"):
            raise InputError(
                f"config.sweep.arms: the name {name!r}; it must be of 1 to {_LONGEST_NAME} "
                "printable characters, and not begin with _"
            )
    if not _distinct([name.casefold() for name in names]):
        raise InputError(f"config.sweep.arms: names that are alike: {', '.join(names)}")


def _make_arm(config: SweepFileConfig, name: str, texts: Sequence[str]) -> Arm:
    """The config with an arm's changes applied and checked.

    Args:
      config: of the sweep.
      name: of the arm.
      texts: field=value.
    """
    changes = [(field, value) for field, _, value in (text.partition("=") for text in texts)]
    try:
        for field, text in changes:
            if field.split(".")[0] == "sweep":
                raise InputError(f"config.{field} is one for all arms")
            if field == "optimizer.learning_rate":
                raise InputError(f"config.{field}={text}; rates are config.sweep.learning_rates")
        file_config = with_changes(config, changes)
        names = [field.name for field in fields(RunConfig)]
        arm_config = RunConfig(**{name: getattr(file_config, name) for name in names})
        validation.check(arm_config)
        _check_unused(arm_config)
        if arm_config.steps < 2 * config.sweep.window:
            raise InputError(
                f"config.steps={arm_config.steps}; it must be at least twice config.sweep.window="
                f"{config.sweep.window}, or no divergence can be detected"
            )
        sets_simulate = any(field.startswith("simulate.") for field, _ in changes)
        if sets_simulate and not file_config.simulate.dtype:
            raise InputError("config.simulate.dtype is empty; it must be a format, such as E8M3")
        return Arm(name, arm_config, _make_rules(file_config.simulate))
    except InputError as error:
        raise InputError(f"config.sweep.arms[{name!r}]: {error}") from None


def _check_unused(arm_config: RunConfig) -> None:
    for field, value in flatten(arm_config):
        if field in _UNUSED and value != _UNUSED[field]:
            raise InputError(
                f"config.{field}={value!r}; a sweep does not use this field, and it must be "
                f"{_UNUSED[field]!r}"
            )


def _make_rules(options: SimulateOptions) -> dict[str, Gemm | None]:
    """The rules for `simulate.simulate` that the section `simulate` of the config describes."""
    if not options.dtype:
        return {}
    operands = options.operands
    if not operands or not all(name in _OPERANDS for name in operands):
        raise InputError(
            f"config.simulate.operands={operands!r}; they must be some of {', '.join(_OPERANDS)}"
        )
    scale = None if options.scale == "none" else options.scale
    try:
        operand = Operand(options.dtype, options.rounding, scale)
    except (ValueError, TypeError) as error:
        raise InputError(f"config.simulate: {error}") from None
    return {options.pattern: Gemm(**dict.fromkeys(operands, operand))}
