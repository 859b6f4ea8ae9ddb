# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The arms of a sweep, made from its config file and checked.

An *arm*, as in a clinical trial, is one of the ways to train that a sweep compares: a configuration
of the trainer, and a reduced format for the operands of matrix products. The runs of an arm differ
only in seed and learning rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pqt_jax.errors import InputError
from pqt_jax.lab.gemms import Gemm
from pqt_jax.lab.operands import Operand
from pqt_jax.lab.sweep_config import (
    OPERANDS,
    SimulateOptions,
    SweepFileConfig,
    SweepOptions,
    is_distinct,
)
from pqt_jax.training.config import load_file, validation
from pqt_jax.training.config.command_line import with_defaults
from pqt_jax.training.config.fields import check_ranges, flatten, read_section, with_changes
from pqt_jax.training.config.schema import RunConfig

RateAndSeed = tuple[float, int]
_LONGEST_NAME = 40  # characters
# Fields of a training run that a sweep does not use; they must keep these values.
_UNUSED = {
    "init_from": "",
    "log.sharpness_every": 0,
    "log.store": "",
    "log.tensorboard": False,
    "log.wandb": "",
}
_UNUSED |= {"seed": 0, "mesh.data": 0, "mesh.fsdp": 1, "mesh.tensor": 1}


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
      name: the arm's name in the config.
      config: configuration of the trainer. Its learning rate and seed are not used.
      rules: for `simulate.simulate`; empty if no operand is reduced.
    """

    name: str
    config: RunConfig
    rules: dict[str, Gemm | None]


@dataclass(frozen=True)
class Sweep:
    """What a sweep trains.

    Attributes:
      arms: in the order of the config. The first arm is the baseline.
      seeds: the seeds of every arm.
      learning_rates: the learning rates of every arm.
      options: the section `sweep` of the config.
      full_config: the whole config, for `run.json`.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    options: SweepOptions
    full_config: SweepFileConfig


def load_sweep(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Sweep:
    """Read the config of a sweep, apply overrides, and check every arm.

    Args:
      path: a Python file. Its `get_config()` starts from
        `sweep_config.default` and changes fields.
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
    if config.recipe != "none":
        raise InputError(
            f"config.recipe={config.recipe!r} would be that of all arms, also of the baseline; "
            f'give it in config.sweep.arms, as in ("recipe", "recipe={config.recipe}")'
        )
    _check_arms(options.arms)
    given = [name for name, _ in overrides]
    return Sweep(
        arms=tuple(_make_arm(config, given, name, texts) for name, *texts in options.arms),
        seeds=tuple(options.seeds),
        learning_rates=tuple(map(float, options.learning_rates)),
        options=options,
        full_config=config,
    )


def read_options(saved: Mapping[str, Any]) -> SweepOptions:
    """The section `sweep` of the config in a `run.json`; a field that it lacks has its default.

    Raises:
      InputError: for a field that is unknown, or of another type or range.
    """
    options = read_section(SweepFileConfig, "sweep", saved, "llama2")  # the same for all models
    _check_arms(options.arms)
    return options


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
    if not is_distinct([name.casefold() for name in names]):
        raise InputError(f"config.sweep.arms: names that are alike: {', '.join(names)}")


def _make_arm(
    config: SweepFileConfig, given: Sequence[str], name: str, texts: Sequence[str]
) -> Arm:
    """The config with an arm's changes applied and checked.

    Args:
      config: the sweep's configuration.
      given: fields that the command line gives for all arms; no recipe or method changes them.
      name: the arm's name.
      texts: the arm's changes, each `field=value`.
    """
    changes = [(field, value) for field, _, value in (text.partition("=") for text in texts)]
    try:
        for field, text in changes:
            if field.split(".")[0] == "sweep":
                raise InputError(f"config.{field} is one for all arms")
            if field == "optimizer.learning_rate":
                raise InputError(f"config.{field}={text}; rates are config.sweep.learning_rates")
        file_config = with_changes(config, changes)
        file_config = with_defaults(file_config, [*given, *(field for field, _ in changes)])
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
    if not operands or not all(name in OPERANDS for name in operands):
        raise InputError(
            f"config.simulate.operands={operands!r}; they must be some of {', '.join(OPERANDS)}"
        )
    scale = None if options.scale == "none" else options.scale
    try:
        operand = Operand(options.dtype, options.rounding, scale)
    except (ValueError, TypeError) as error:
        raise InputError(f"config.simulate: {error}") from None
    return {options.pattern: Gemm(**dict.fromkeys(operands, operand))}
