# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a sweep trains: arms × learning rates × seeds, from a config file.

An *arm* is a way to train: a configuration of the trainer, and how the operands of its products are
reduced. Its runs differ in seed and learning rate alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pqt_jax import checks, cli, config_file
from pqt_jax import config as configs
from pqt_jax.config import Config
from pqt_jax.errors import InputError
from pqt_jax.lab.simulate import Gemm, Operand
from pqt_jax.models import GPT2Config, Llama2Config

SECTIONS = ("simulate", "sweep")  # beside those of the trainer
_OPERANDS = ("activations", "weights", "gradients")
_EXAMPLE = '{"E8M3": ("simulate.dtype=E8M3",)}'


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
      >>> config.sweep.arms = {"BF16": (), "E8M3": ("simulate.dtype=E8M3",)}
      >>> config.simulate.rounding, config.sweep.window
      ('truncate', 20)
    """
    with configs.default(model).unlocked() as config:
        config.simulate = ConfigDict(
            {
                "dtype": "",  # of reduced operands, such as E8M3; empty: none is
                "rounding": "truncate",  # or nearest
                "scale": "none",  # or floor, ceil: of blocks of 32×32; exact with nearest alone
                "operands": _OPERANDS,  # which are reduced
                "pattern": "h/.*/kernel",  # the kernels in whose products
            },
        )
        config.sweep = ConfigDict(
            {
                "arms": {},  # name → fields as on the command line, ("method=ste", …)
                "seeds": (0, 1, 2, 3, 4, 5, 6, 7),
                "learning_rates": (1e-3, 3e-3, 1e-2, 3e-2),
                "at_once": 32,  # runs that are trained side by side, by one program
                "margin": 0.5,  # of divergence, see `outcomes`
                "window": 20,
                "spike_score": 6.0,
                "spike_window": 100,
                "record_every": 5,  # steps between losses that are kept; outcomes see all
                "sharpness_every": 20,  # steps between measurements; 0: none
                "epsilon": 5e-4,  # size of the box around the logits
                "rho": 0.0,  # radius of weight-space sharpness; 0: it is not measured
            },
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
    config = config_file.read(path)
    arms = _arms(config, path)
    known = _defaults(config)
    for section in SECTIONS:
        _check_section(config, known, section, path)
    for name, text in overrides:
        _override(config, name, text)
    _check_sweep(config.sweep)
    made = tuple(_arm(config, name, changes) for name, changes in arms.items())
    names = [arm.name for arm in made]
    if len({name.casefold() for name in names}) < len(names):
        raise InputError(f"config.sweep.arms: names that are alike: {', '.join(names)}")
    everything = {**config.to_dict()}
    everything["sweep"]["arms"] = arms
    rates = tuple(map(float, config.sweep.learning_rates))
    return Grid(made, tuple(config.sweep.seeds), rates, config.sweep, everything)


def _defaults(config: Config) -> dict[str, Any]:
    model = configs.MODELS[config.model.name][0] if _has_model(config) else Llama2Config
    return dict(configs.fields(default(model(256, 32, 1, 2, 64))))


def _has_model(config: Config) -> bool:
    return (
        isinstance(config.get("model"), ConfigDict) and config.model.get("name") in configs.MODELS
    )


def _arms(config: Config, path: str) -> dict[str, list[str]]:
    sweep = config.get("sweep")
    if not isinstance(sweep, ConfigDict) or not isinstance(config.get("simulate"), ConfigDict):
        raise InputError(f"--config={path}: it is no sweep's; start from pqt_jax.lab.grid.default")
    arms: Any = sweep.get("arms")
    arms = arms.to_dict() if isinstance(arms, ConfigDict) else arms
    good = isinstance(arms, dict) and all(
        isinstance(changes, tuple | list) and all(isinstance(c, str) and "=" in c for c in changes)
        for changes in arms.values()
    )
    if not good or not arms:
        raise InputError(f"config.sweep.arms is {arms!r}; it must name ways to train: {_EXAMPLE}")
    sweep.arms = ""  # no field that the command line could set
    return {name: list(changes) for name, changes in arms.items()}


def _check_section(config: Config, known: dict[str, Any], section: str, path: str) -> None:
    for name, value in configs.fields(config[section]):
        full = f"{section}.{name}"
        if full == "sweep.arms":
            continue
        if full not in known:
            raise InputError(f"--config={path}: config.{full}: no such field")
        like = known[full]
        fits = isinstance(value, type(like)) or (
            isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool)
        )
        if isinstance(like, tuple):
            fits = isinstance(value, tuple | list)
        if not fits:
            raise InputError(f"config.{full}={value!r}; it must be {checks.wanted(like)}")
    if missing := [
        n
        for n in known
        if n.startswith(f"{section}.")
        and n != "sweep.arms"
        and n.split(".")[1] not in config[section]
    ]:
        raise InputError(f"--config={path}: config.{missing[0]} is missing")


def _override(config: Config, name: str, text: str) -> None:
    if name.startswith("sweep.arms"):
        raise InputError(f"--config.{name}: arms are those of the file")
    cli.override(config, name, text)


def _check_sweep(sweep: Config) -> None:
    seeds, rates = list(sweep.seeds), list(sweep.learning_rates)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"config.sweep.seeds={tuple(seeds)}; give one or more, each once")
    if not all(isinstance(s, int) and 0 <= s < 2**31 for s in seeds):
        raise InputError(f"config.sweep.seeds={tuple(seeds)}; they must be from 0 to 2^31 - 1")
    if not rates or len(set(rates)) < len(rates):
        raise InputError(f"config.sweep.learning_rates={tuple(rates)}; give one or more, each once")
    if not all(0 < float(rate) <= 1e30 for rate in rates):
        raise InputError(
            f"config.sweep.learning_rates={tuple(rates)}; they must be above 0, and 1e30 at most"
        )
    for name in ("at_once", "window", "spike_window", "record_every"):
        if sweep[name] < 1:
            raise InputError(f"config.sweep.{name}={sweep[name]}; it must be 1 or more")
    for name in ("margin", "spike_score", "epsilon"):
        if not 0 < sweep[name] < float("inf"):
            raise InputError(f"config.sweep.{name}={sweep[name]}; it must be above 0")
    for name in ("sharpness_every", "rho"):
        if not 0 <= sweep[name] < float("inf"):
            raise InputError(f"config.sweep.{name}={sweep[name]}; it must be 0 or more")


def _arm(config: Config, name: str, changes: Sequence[str]) -> Arm:
    own = ConfigDict(config.to_dict(), type_safe=False)
    try:
        for change in changes:
            field, _, text = change.partition("=")
            if field.startswith("sweep."):
                raise InputError(f"config.{field} is one for all arms")
            cli.override(own, field, text)
        simulated = own.simulate
        for section in SECTIONS:
            del own[section]
        cli.set_types(own)
        checks.check(own)
        return Arm(name, own.lock(), _rules(simulated))
    except InputError as error:
        raise InputError(f"config.sweep.arms[{name!r}]: {error}") from None


def _rules(simulated: Config) -> dict[str, Gemm | None]:
    if not simulated.dtype:
        return {}
    operands = simulated.operands
    if not isinstance(operands, tuple | list) or not operands or set(operands) - set(_OPERANDS):
        raise InputError(
            f"config.simulate.operands={operands!r}; they must be some of {', '.join(_OPERANDS)}"
        )
    scale = None if simulated.scale == "none" else simulated.scale
    try:
        operand = Operand(simulated.dtype, simulated.rounding, scale)
    except (ValueError, TypeError) as error:
        raise InputError(f"config.simulate: {error}") from None
    return {simulated.pattern: Gemm(**dict.fromkeys(operands, operand))}
