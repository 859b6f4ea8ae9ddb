# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a sweep trains: arms × learning rates × seeds, from a config file.

An *arm* is a way to train: a configuration of the trainer, and how the operands of its products are
reduced. Its runs differ in seed and learning rate alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from ml_collections import ConfigDict

from pqt_jax.errors import InputError
from pqt_jax.lab.gemms import Gemm
from pqt_jax.lab.operands import Operand
from pqt_jax.models import GPT2Config, Llama2Config
from pqt_jax.training import sharpness
from pqt_jax.training.config import command_line, field_types, load_file, schema, validation
from pqt_jax.training.config.schema import Config

SECTIONS = ("simulate", "sweep")  # beside those of the trainer
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
_LONGEST = 40  # characters of an arm's name
_NO_USE = {"init_from": "", "log.sharpness_every": 0, "log.wandb": "", "log.tensorboard": False}
_NO_USE |= {"seed": 0, "mesh.data": 0, "mesh.fsdp": 1, "mesh.tensor": 1}
_MAY_BE_ZERO = {"sweep.sharpness_every"}


class Arm(NamedTuple):
    """A way to train.

    Attributes:
      name: of the config's.
      config: of the trainer; its learning rate and its seed are not used.
      rules: for `simulate.simulate`; empty where nothing is reduced.
    """

    name: str
    config: Config
    rules: dict[str, Gemm | None]


class Grid(NamedTuple):
    """A sweep.

    Attributes:
      arms: in the order of the config.
      seeds, learning_rates: of every arm.
      sweep: the section of the config.
      everything: the whole config as a dict, for the record.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    sweep: Config
    everything: dict[str, Any]


def default(model: Llama2Config | GPT2Config) -> Config:
    """The trainer's fields and defaults, and those of a sweep.

    Example:
      >>> config = default(Llama2Config(256, d_model=32, num_layers=1, num_heads=2, d_ff=64))
      >>> config.sweep.arms = (("BF16",), ("E8M3", "simulate.dtype=E8M3"))
      >>> config.simulate.rounding, config.sweep.window
      ('truncate', 20)
    """
    with schema.default(model).unlocked() as config:
        config.simulate = ConfigDict(
            {
                "dtype": "",  # of reduced operands, such as E8M3; empty: none is
                "rounding": "truncate",  # or nearest
                "scale": "none",  # or floor, ceil: of blocks of 32×32; exact with nearest alone
                "operands": _OPERANDS,  # which are reduced
                "pattern": "h/.*/kernel",  # the kernels in whose products
            },
            type_safe=False,  # what is wrong is found, and said, when it is loaded
        )
        config.sweep = ConfigDict(
            {
                # Each a name and fields as on the command line, such as ("STE", "method=ste"); the
                # first is what others are compared with.
                "arms": (),
                "seeds": (0, 1, 2, 3, 4, 5, 6, 7),
                "learning_rates": (1e-3, 3e-3, 1e-2, 3e-2),
                # Runs that one program trains side by side: few stay in a CPU's cache, many fill a
                # GPU.
                "at_once": 4,
                "margin": 0.5,  # of divergence, see `outcomes`
                "window": 20,
                "spike_score": 6.0,
                "spike_window": 100,
                "record_every": 5,  # steps between losses that are kept; outcomes see all
                "sharpness_every": 20,  # steps between measurements; 0: none
                "epsilon": sharpness.EPSILON,  # size of the box around the logits
                "maximizer": "corner",  # how its sharpest point is found, see `sharpness`
                "iterations": 10,  # of gradient and lbfgsb
                "rho": 0.0,  # radius of weight-space sharpness; 0: it is not measured
            },
            type_safe=False,  # what is wrong is found, and said, when it is loaded
        )
    return config.lock()


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Grid:
    """Read the config of a sweep, apply overrides, and check every arm.

    Args:
      path: of a Python file whose `get_config()` returns what `default` returns, changed.
      overrides: (dotted field, text of the value), in order.

    Raises:
      InputError: for anything wrong with file, field or value, before anything is compiled.
    """
    config = load_file.read(path)
    if not all(isinstance(config.get(name), ConfigDict) for name in SECTIONS):
        raise InputError(
            f"--config={path}: it is no sweep's; start from pqt_jax.lab.sweep_config.default"
        )
    try:
        command_line.set_types(config, default)
    except InputError as error:
        raise InputError(f"--config={path}: {error}") from None
    for name, text in overrides:
        if name == "sweep.arms":
            raise InputError(f"--config.{name}: arms are those of the file")
        command_line.override(config, name, text)
    sweep = config.sweep
    field_types.check_ranges(ConfigDict({"sweep": sweep}), _RANGES, _MAY_BE_ZERO)
    made = tuple(_arm(config, one) for one in _named(sweep.arms))
    rates = tuple(map(float, sweep.learning_rates))
    return Grid(made, tuple(sweep.seeds), rates, sweep, config.to_dict())


def _distinct(values: Any) -> bool:
    return 0 < len(set(values)) == len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(arms: Any) -> Any:
    """The arms, each a tuple of texts: a name that no other has, and fields."""
    good = arms and all(
        isinstance(arm, tuple | list)
        and arm
        and all(isinstance(text, str) for text in arm)
        and all("=" in text for text in arm[1:])
        for arm in arms
    )
    if not good:
        raise InputError(
            f"config.sweep.arms={arms!r}; it must be ways to train, each a name and fields, such "
            'as (("BF16",), ("E8M3", "simulate.dtype=E8M3"))'
        )
    names = [arm[0] for arm in arms]
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= _LONGEST or name.startswith("_"):
            raise InputError(
                f"config.sweep.arms: the name {name!r}; it must be of 1 to {_LONGEST} printable "
                "characters, and not begin with _"
            )
    if not _distinct([name.casefold() for name in names]):
        raise InputError(f"config.sweep.arms: names that are alike: {', '.join(names)}")
    return arms


def _arm(config: Config, arm: Sequence[str]) -> Arm:
    name, *changes = arm
    own = ConfigDict(config.to_dict(), type_safe=False)
    try:
        for change in changes:
            field, _, text = change.partition("=")
            if field.split(".")[0] == "sweep":
                raise InputError(f"config.{field} is one for all arms")
            if field == "optimizer.learning_rate":
                raise InputError(f"config.{field}={text}; rates are config.sweep.learning_rates")
            command_line.override(own, field, text)
        simulated: Config = own.simulate
        for section in SECTIONS:
            del own[section]
        validation.check(own)
        for field, value in schema.fields(own):
            if field in _NO_USE and value != _NO_USE[field]:
                raise InputError(
                    f"config.{field}={value!r}; a sweep has no use for it, and it must be "
                    f"{_NO_USE[field]!r}"
                )
        if own.steps < 2 * config.sweep.window:
            raise InputError(
                f"config.steps={own.steps}; it must be at least twice config.sweep.window="
                f"{config.sweep.window}, or no run is seen to diverge"
            )
        if not simulated.dtype and any(change.startswith("simulate.") for change in changes):
            raise InputError("config.simulate.dtype is empty; it must be a format, such as E8M3")
        return Arm(name, own.lock(), _rules(simulated))
    except InputError as error:
        raise InputError(f"config.sweep.arms[{name!r}]: {error}") from None


def _rules(simulated: Config) -> dict[str, Gemm | None]:
    if not simulated.dtype:
        return {}
    operands = simulated.operands
    if not operands or not all(name in _OPERANDS for name in operands):
        raise InputError(
            f"config.simulate.operands={operands!r}; they must be some of {', '.join(_OPERANDS)}"
        )
    scale = None if simulated.scale == "none" else simulated.scale
    try:
        operand = Operand(simulated.dtype, simulated.rounding, scale)
    except (ValueError, TypeError) as error:
        raise InputError(f"config.simulate: {error}") from None
    return {simulated.pattern: Gemm(**dict.fromkeys(operands, operand))}
