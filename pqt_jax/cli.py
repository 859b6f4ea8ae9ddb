# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command line → configuration and workdir.

    --config FILE [--workdir DIR] [--config.field=value …]

Everything wrong with it is an `InputError` that names the field, its value and what would be right.
"""

import argparse
import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Iterable, Sequence
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
    if known.workdir == "":
        raise InputError("--workdir= is empty; give a directory")
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
    try:
        _check_fields(config)
    except InputError as error:
        raise InputError(f"--config={path}: {error}") from None
    for name, text in overrides:
        _override(config, name, text)
    configs.check(config)
    return config.lock()


def _read(path: str) -> Config:
    if Path(path).is_dir():
        inside = sorted(str(other) for other in Path(path).glob("*.py"))
        there = f", such as {inside[0]}" if inside else ""
        raise InputError(f"--config={path} is a directory; give a config file{there}")
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
        if not hasattr(module, "get_config"):
            raise InputError("it has no function get_config()")
        config = module.get_config()
    except InputError as error:
        raise InputError(f"--config={path}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever a user's file does wrong, one line says it
        raise InputError(f"--config={path}: {_reason(error)}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config={path}: get_config() must return a ConfigDict")
    return config


def _reason(error: BaseException) -> str:
    """What went wrong in a config file, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, AttributeError) and (key := re.search(r'Key "(.*?)" does not', text)):
        meant = re.search(r'Did you mean "(.*?)"', text)
        hint = f"; did you mean {meant[1]!r}?" if meant else ""
        return f"no field {key[1]!r}{hint}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_fields(config: Config) -> None:
    """Raise InputError unless a config has the fields and types of `configs.default`."""
    found = dict(configs.fields(config))
    name = found.get("model.name")
    if name not in tuple(configs.MODELS):
        raise InputError(
            f"config.model.name={name!r}; it must be one of {', '.join(configs.MODELS)}"
        )
    cls, _ = configs.MODELS[name]
    shape = [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    known = dict(configs.fields(configs.default(cls(**{field.name: 1 for field in shape}))))
    for field in found:
        if field not in known and not any(other.startswith(f"{field}.") for other in known):
            raise InputError(f"config.{field}: no such field; {_hint(field, known)}")
    for field, like in known.items():
        if field not in found:
            raise InputError(f"config.{field} is missing; start from pqt_jax.config.default")
        value = found[field]
        number = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(like, float) and number:
            with config.unlocked(), config.ignore_type():
                _set(config, field, float(value))
        elif not isinstance(value, type(like)) or (isinstance(value, bool) and type(like) is int):
            raise InputError(f"config.{field}={value!r}; it must be {_wanted(like)}")


def _wanted(like: Any) -> str:
    kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return kind.get(type(like), f"something like {like!r}")


def _hint(name: str, known: Iterable[str]) -> str:
    """Which field was meant: the nearest whole name, or the nearest last part of one."""
    order = ("model", "data", "optimizer", "pqt", "log")
    fields = sorted(known, key=lambda f: order.index(f.partition(".")[0]) if "." in f else -1)
    by_name = {field.lower(): field for field in fields}
    by_last = {field.rpartition(".")[2].lower(): field for field in reversed(fields)}
    tries = [(name.lower(), by_name), (name.lower().rpartition(".")[2], by_last)]
    if "." not in name:  # the section was left out
        tries.reverse()
    for text, names in tries:
        if close := difflib.get_close_matches(text, names, n=1):
            return f"did you mean config.{names[close[0]]}?"
    return f"there are {', '.join(sorted(fields))}"


def _override(config: Config, name: str, text: str) -> None:
    known = dict(configs.fields(config))
    if name not in known:
        raise InputError(f"--config.{name}: no such field; {_hint(name, known)}")
    try:
        value = _parse(text, known[name])
    except (ValueError, OverflowError):
        raise InputError(f"config.{name}={text!r}; it must be {_wanted(known[name])}") from None
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
        parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
        return tuple(_parse(part, like[0]) for part in parts)
    return text


def _no(text: str) -> Any:
    raise ValueError(text)
