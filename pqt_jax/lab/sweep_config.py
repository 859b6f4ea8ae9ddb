# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The configuration of a sweep: arms × learning rates × seeds.

An *arm*, as in a clinical trial, is one of the ways to train that a sweep compares: a configuration
of the trainer, and a reduced format for the operands of matrix products. The runs of an arm differ
only in seed and learning rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ml_collections import ConfigDict

from pqt_jax.errors import InputError
from pqt_jax.lab.gemms import Gemm
from pqt_jax.lab.operands import Operand
from pqt_jax.models import GPT2Config, Llama2Config
from pqt_jax.training import sharpness
from pqt_jax.training.config import command_line, field_types, load_file, schema, validation
from pqt_jax.training.config.schema import Config

RateAndSeed = tuple[float, int]
SECTIONS = ("simulate", "sweep")  # in addition to the sections of a training run
_OPERANDS = ("activations", "weights", "gradients")
_RANGES: field_types.Ranges = {
    "sweep.seeds": (
        lambda v: all(type(s) is int and 0 <= s < 2**31 for s in v) and _distinct(v),
        "one or more whole numbers from 0 to 2^31 - 1, each once",
    ),
    "sweep.learning_rates": (
        lambda v: all(_is_number(r) and 1e-30 <= r <= 1e30 for r in v) and _distinct(v),
        "one or more numbers from 1e-30 to 1e30, each once",
    ),
    "sweep.maximizer": (
        lambda v: v in get_args(sharpness.Maximizer),
        f"one of {', '.join(get_args(sharpness.Maximizer))}",
    ),
    "sweep.rho": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "sweep.epsilon": (lambda v: 0 < v <= 1, "above 0, and 1 at most"),
}
_LONGEST_NAME = 40  # characters
# Fields of a training run that a sweep does not use; they must keep these values.
_UNUSED = {"init_from": "", "log.sharpness_every": 0, "log.wandb": "", "log.tensorboard": False}
_UNUSED |= {"seed": 0, "mesh.data": 0, "mesh.fsdp": 1, "mesh.tensor": 1}
_MAY_BE_ZERO = {"sweep.sharpness_every"}


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
      name: as in the config.
      config: of the trainer. Its learning rate and seed are not used.
      rules: for `simulate.simulate`; empty if no operand is reduced.
    """

    name: str
    config: Config
    rules: dict[str, Gemm | None]


@dataclass(frozen=True)
class SweepConfig:
    """A sweep.

    Attributes:
      arms: in the order of the config. The first arm is the baseline.
      seeds: of every arm.
      learning_rates: of every arm.
      options: the section `sweep` of the config.
      full_config: the whole config as a dict, for `run.json`.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    options: Config
    full_config: dict[str, Any]


def default(model: Llama2Config | GPT2Config) -> Config:
    """Fields and defaults of a training run, and in addition those of a sweep.

    Example:
      >>> config = default(Llama2Config(256, d_model=32, num_layers=1, num_heads=2, d_ff=64))
      >>> config.sweep.arms = (("BF16",), ("E8M3", "simulate.dtype=E8M3"))
      >>> config.simulate.rounding, config.sweep.window
      ('truncate', 20)
    """
    with schema.default(model).unlocked() as config:
        config.simulate = ConfigDict(
            {
                "dtype": "",  # format of the reduced operands, such as E8M3; empty: no reduction
                "rounding": "truncate",  # or nearest
                # Scale of each block of 32×32: none, floor, ceil, or (with nearest only) exact.
                "scale": "none",
                "operands": _OPERANDS,  # which operands of a product are reduced
                "pattern": "h/.*/kernel",  # regular expression of the kernels' paths
            },
            type_safe=False,  # `load` checks the types, with better messages
        )
        config.sweep = ConfigDict(
            {
                # Each arm is a name and fields as on the command line, such as
                # ("STE", "method=ste"). The first arm is the baseline.
                "arms": (),
                "seeds": (0, 1, 2, 3, 4, 5, 6, 7),
                "learning_rates": (1e-3, 3e-3, 1e-2, 3e-2),
                # Runs that one program trains side by side. A few fit into the cache of a CPU;
                # a GPU needs many to be busy.
                "at_once": 4,
                "margin": 0.5,  # of divergence, see `outcomes.find_divergence`
                "window": 20,  # of divergence
                "spike_score": 6.0,  # threshold of `outcomes.count_spikes`
                "spike_window": 100,
                "record_every": 5,  # steps between recorded losses; outcomes use every loss
                "sharpness_every": 20,  # steps between measurements of sharpness; 0: none
                "epsilon": sharpness.EPSILON,  # size of the box around the logits
                "maximizer": "corner",  # how the maximum in the box is found, see `sharpness`
                "iterations": 10,  # of the maximizers gradient and lbfgsb
                "rho": 0.0,  # radius of the sharpness of weights; 0: not measured
            },
            type_safe=False,  # `load` checks the types, with better messages
        )
    return config.lock()


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> SweepConfig:
    """Read the config of a sweep, apply overrides, and check every arm.

    Args:
      path: of a Python file. Its `get_config()` starts from `default` and changes fields.
      overrides: (dotted field, value as text), applied in order.

    Raises:
      InputError: if the file, a field or a value cannot be used. Nothing is compiled before.
    """
    config = load_file.read(path)
    if not all(isinstance(config.get(name), ConfigDict) for name in SECTIONS):
        raise InputError(
            f"--config={path}: it is not the config of a sweep; start from "
            "pqt_jax.lab.sweep_config.default"
        )
    try:
        command_line.set_types(config, default)
    except InputError as error:
        raise InputError(f"--config={path}: {error}") from None
    for name, text in overrides:
        if name == "sweep.arms":
            raise InputError(f"--config.{name}: arms can only be set in the file")
        command_line.override(config, name, text)
    options = config.sweep
    field_types.check_ranges(ConfigDict({"sweep": options}), _RANGES, _MAY_BE_ZERO)
    _check_arms(options.arms)
    return SweepConfig(
        arms=tuple(_make_arm(config, name, changes) for name, *changes in options.arms),
        seeds=tuple(options.seeds),
        learning_rates=tuple(map(float, options.learning_rates)),
        options=options,
        full_config=config.to_dict(),
    )


def _distinct(values: Any) -> bool:
    return 0 < len(set(values)) == len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


def _make_arm(config: Config, name: str, changes: Sequence[str]) -> Arm:
    """The config with an arm's changes applied and checked.

    Args:
      config: of the sweep.
      name: of the arm.
      changes: field=value texts.
    """
    arm_config = ConfigDict(config.to_dict(), type_safe=False)
    try:
        for change in changes:
            field, _, text = change.partition("=")
            if field.split(".")[0] == "sweep":
                raise InputError(f"config.{field} is one for all arms")
            if field == "optimizer.learning_rate":
                raise InputError(f"config.{field}={text}; rates are config.sweep.learning_rates")
            command_line.override(arm_config, field, text)
        simulate_options: Config = arm_config.simulate
        for section in SECTIONS:
            del arm_config[section]
        validation.check(arm_config)
        _check_unused(arm_config)
        if arm_config.steps < 2 * config.sweep.window:
            raise InputError(
                f"config.steps={arm_config.steps}; it must be at least twice config.sweep.window="
                f"{config.sweep.window}, or no divergence can be detected"
            )
        sets_simulate = any(change.startswith("simulate.") for change in changes)
        if sets_simulate and not simulate_options.dtype:
            raise InputError("config.simulate.dtype is empty; it must be a format, such as E8M3")
        return Arm(name, arm_config.lock(), _make_rules(simulate_options))
    except InputError as error:
        raise InputError(f"config.sweep.arms[{name!r}]: {error}") from None


def _check_unused(arm_config: Config) -> None:
    for field, value in schema.fields(arm_config):
        if field in _UNUSED and value != _UNUSED[field]:
            raise InputError(
                f"config.{field}={value!r}; a sweep does not use this field, and it must be "
                f"{_UNUSED[field]!r}"
            )


def _make_rules(options: Config) -> dict[str, Gemm | None]:
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
