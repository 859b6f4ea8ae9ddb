# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command line → what is to be run.

    --config FILE [--workdir DIR] [--distributed] [--profile] [--config.field=value …]

Everything wrong with it is an `InputError` that names the field, its value and what would be right.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pqt_jax.errors import InputError
from pqt_jax.training.config import field_types, load_file, schema, validation
from pqt_jax.training.config.schema import Config


class Given(NamedTuple):
    """What a command line asks for.

    Attributes:
      config: checked and locked.
      workdir: of the run.
      distributed: whether this is one of several processes.
      profile: whether to trace a few steps.
    """

    config: Config
    workdir: Path
    distributed: bool
    profile: bool


def parse(arguments: Sequence[str]) -> Given:
    """Read the command line and the config file that it names.

    Raises:
      InputError: for anything wrong with either.
      SystemExit: after `--help`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pqt_jax.train",
        description="Train a language model, with sampled weights or without.",
        epilog="Any field of the config: --config.field=value. With --config, --help lists them.",
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="FILE", help="config file, e.g. configs/quickstart.py")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/CONFIG-METHOD")
    parser.add_argument(
        "--distributed", action="store_true", help="one of several processes: docs/scaling.md"
    )
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of five steps to DIR/profile"
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and the fields")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    if known.help:
        parser.print_help()
        if known.config:
            print("\n" + schema.describe(load(known.config)))
        raise SystemExit(0)
    if known.config is None:
        raise InputError("--config is missing; try --config configs/quickstart.py")
    if known.workdir == "":
        raise InputError("--workdir= is empty; give a directory")
    config = load(known.config, overrides(rest))
    default = Path("runs") / f"{Path(known.config).stem}-{config.method}"
    workdir = Path(known.workdir) if known.workdir else default
    return Given(config, workdir, known.distributed, known.profile)


def overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--config.a=1` and `--config.a 1` → ("a", "1")."""
    given, rest = [], list(rest)
    while rest:
        name, has_value, value = rest.pop(0).partition("=")
        if not name.startswith("--config."):
            raise InputError(f"unknown argument {name!r}; fields are given as --config.field=value")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{name} has no value; give {name}=VALUE")
            value = rest.pop(0)
        given.append((name.removeprefix("--config."), value))
    return given


def load(path: str, changes: Sequence[tuple[str, str]] = ()) -> Config:
    """Read a config file, apply overrides, check the result and lock it.

    Args:
      path: of a Python file with `get_config()`.
      changes: (dotted field, text of the value), in order.

    Returns:
      A locked ConfigDict.

    Raises:
      InputError: for anything wrong with file, field or value.
    """
    config = load_file.read(path)
    if "sweep" in config:
        raise InputError(
            f"--config={path}: it is a sweep's; give it to python -m pqt_jax.lab.sweep"
        )
    try:
        set_types(config)
    except InputError as error:
        raise InputError(f"--config={path}: {error}") from None
    for name, text in changes:
        override(config, name, text)
    validation.check(config)
    return config.lock()


def set_types(config: Config, default: Callable[[Any], Config] = schema.default) -> None:
    """Make whole numbers and lists what the defaults are: floats and tuples.

    Args:
      config: of a run.
      default: as for `field_types.check_types`.

    Raises:
      InputError: for fields that are missing, unknown or of another type.
    """
    defaults = field_types.check_types(config, default)
    for name, value in dict(schema.fields(config)).items():
        if isinstance(defaults[name], float | tuple):
            _set(config, name, type(defaults[name])(value))


def override(config: Config, name: str, text: str) -> None:
    """Set a field by the text of its value, in the type that it has.

    Raises:
      InputError: if there is no such field, and for a text that does not fit.
    """
    known = dict(schema.fields(config))
    if inside := sorted(field for field in known if field.startswith(f"{name}.")):
        raise InputError(f"--config.{name}={text}: a section; its fields are {', '.join(inside)}")
    if name not in known:
        raise InputError(f"--config.{name}: no such field; {field_types.hint(name, list(known))}")
    try:
        value = _parse(text, known[name])
    except (ValueError, OverflowError):
        wanted = field_types.wanted(known[name])
        raise InputError(f"config.{name}={text!r}; it must be {wanted}") from None
    _set(config, name, value)


def _set(config: Config, name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


def _parse(text: str, like: Any) -> Any:
    """The value that a text stands for, in the type of the field's default."""
    if isinstance(like, bool):
        words = {"true": True, "1": True, "false": False, "0": False}
        return words[text.lower()] if text.lower() in words else _no(text)
    if isinstance(like, int):
        number = float(text)  # so that 1e3 will do
        return int(number) if number.is_integer() else _no(text)
    if isinstance(like, float):
        return float(text)
    if isinstance(like, tuple):
        inside = re.fullmatch(r"\s*(?:\(([^()]*)\)|\[([^][]*)\]|([^][()]*))\s*", text)
        parts = next(p for p in inside.groups() if p is not None) if inside else _no(text)
        parts = [part for part in parts.split(",") if part.strip()]
        return tuple(_parse(part, _member(like)) for part in parts)
    return text


def _member(like: tuple[Any, ...]) -> Any:
    """What the members of a tuple are like: 0.1 of (1, 0.1), and text of none."""
    return next((x for x in like if isinstance(x, float)), like[0] if like else "")


def _no(text: str) -> Any:
    raise ValueError(text)
