# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command line → configuration and workdir.

    --config FILE [--workdir DIR] [--config.field=value …]

Everything wrong with it is an `InputError` that names the field, its value and what would be right.
"""

import argparse
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pqt_jax import config as configs
from pqt_jax.config import Config
from pqt_jax.errors import InputError


def parse(arguments: Sequence[str]) -> tuple[Config, Path]:
    """Read the command line and the config file that it names.

    Returns:
      (locked configuration, workdir).

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
    parser.add_argument("-h", "--help", action="store_true", help="show this and the fields")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    if known.help:
        parser.print_help()
        if known.config:
            print("\n" + configs.describe(load(known.config)))
        raise SystemExit(0)
    if known.config is None:
        raise InputError("--config is missing; try --config configs/quickstart.py")
    config = load(known.config, _overrides(rest))
    default = Path("runs") / f"{Path(known.config).stem}-{config.method}"
    return config, Path(known.workdir) if known.workdir else default


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--config.a=1` and `--config.a 1` → ("a", "1")."""
    overrides, rest = [], list(rest)
    while rest:
        name, has_value, value = rest.pop(0).partition("=")
        if not name.startswith("--config."):
            raise InputError(f"unknown argument {name!r}; fields are given as --config.field=value")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{name} has no value; give {name}=VALUE")
            value = rest.pop(0)
        overrides.append((name.removeprefix("--config."), value))
    return overrides


def load(path: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Read a config file, apply overrides, check the result and lock it.

    Args:
      path: of a Python file with `get_config()`.
      overrides: (dotted field, text of the value), in order.

    Returns:
      A locked ConfigDict.

    Raises:
      InputError: for anything wrong with file, field or value.
    """
    config = _read(path)
    for name, text in overrides:
        _override(config, name, text)
    configs.check(config)
    return config.lock()


def _read(path: str) -> Config:
    if not Path(path).is_file():
        near = sorted(str(other) for other in Path(path).parent.glob("*.py"))
        there = f"; there is {', '.join(near)}" if near else ""
        raise InputError(f"--config={path}: no such file{there}")
    spec = importlib.util.spec_from_file_location("pqt_jax_user_config", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config={path}: a config is a Python file, name it something.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever a user's file does wrong, one line says it
        raise InputError(f"--config={path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config={path}: get_config() must return a ConfigDict")
    return config


def _override(config: Config, name: str, text: str) -> None:
    known = dict(configs.fields(config))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        by_last = {other.rpartition(".")[2]: other for other in known}
        if not close:  # perhaps the field is right, but not where it is
            last = difflib.get_close_matches(name.rpartition(".")[2], by_last, n=1)
            close = [by_last[other] for other in last]
        hint = f"did you mean config.{close[0]}?" if close else f"there are {', '.join(known)}"
        raise InputError(f"--config.{name}: no such field; {hint}")
    try:
        value = _parse(text, known[name])
    except (ValueError, OverflowError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}
        wanted = kind.get(type(known[name]), f"something like {known[name]!r}")
        raise InputError(f"config.{name}={text!r}; it must be {wanted}") from None
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
        parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
        return tuple(_parse(part, like[0]) for part in parts)
    return text


def _no(text: str) -> Any:
    raise ValueError(text)
