# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command line of the trainer → `TrainOptions`.

    --config FILE [--workdir DIR] [--distributed] [--profile] [--config.field=value …]

An `InputError` names the field, its value and what would be right.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pqt_jax import console
from pqt_jax.errors import InputError
from pqt_jax.training.config import field_table, load_file, validation
from pqt_jax.training.config.fields import flatten, list_fields, with_changes
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods import METHODS
from pqt_jax.transform.recipes import RECIPES, Rounding

C = TypeVar("C", bound=RunConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `pqt_jax.train`, with the configuration.

    Attributes:
      config: the checked configuration.
      workdir: the run's folder.
      distributed: whether this process is one of several.
      profile: whether to trace a few steps.
    """

    config: RunConfig
    workdir: Path
    distributed: bool
    profile: bool


def make_parser() -> console.Parser:
    """The options of `pqt_jax.train`, without the fields of the config."""
    parser = console.Parser(
        prog="python -m pqt_jax.train",
        description="Train a language model, with sampled weights or without.",
        epilog="Any field of the config: --config.field=value; --help lists them.",
        add_help=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="config file, or its name in configs/: quickstart"
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="folder of the run; default: runs/CONFIG-METHOD or -RECIPE",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="this is one of several processes of the run"
    )
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of five steps to DIR/profile"
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and the fields")
    return parser


def parse(arguments: Sequence[str]) -> TrainOptions:
    """Read the command line and the config file that it names.

    Raises:
      InputError: for anything wrong with either.
      SystemExit: after `--help`.
    """
    parser = make_parser()
    known, rest = parser.parse_known_args(arguments)
    if known.help:
        fields = field_table.help_text(load(known.config) if known.config else None)
        console.print_and_exit(f"{parser.format_help()}\n{fields}")
    if known.config is None:
        overrides(rest)  # a misspelt option is the likelier mistake
        raise InputError("--config is missing; try --config quickstart")
    if known.workdir == "":
        raise InputError("--workdir= is empty; give a directory")
    config = load(known.config, overrides(rest))
    kind = config.method if config.recipe == "none" else config.recipe
    default = f"runs/{Path(known.config).stem}-{kind}"
    return TrainOptions(
        config=config,
        workdir=Path(known.workdir or default),
        distributed=known.distributed,
        profile=known.profile,
    )


def overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--config.a=1` and `--config.a 1` → ("a", "1"); InputError for any other argument."""
    changes, rest = [], list(rest)
    while rest:
        name, has_value, value = rest.pop(0).partition("=")
        if not name.startswith("--config."):
            raise InputError(f"unknown argument {name!r}; fields are set by --config.field=value")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{name} has no value; give {name}=VALUE")
            value = rest.pop(0)
        changes.append((name.removeprefix("--config."), value))
    return changes


def load(path: str, changes: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Read a config file, apply changes, and check the result.

    Args:
      path: a Python file with `get_config()`.
      changes: (dotted field, text of the value), in order.

    Raises:
      InputError: for anything wrong with file, field or value.
    """
    asked = with_changes(load_file.read(path, RunConfig), changes)
    given = [name for name, _ in changes]
    config = with_defaults(asked, given)
    try:
        validation.check(config, given)
    except InputError as error:
        raise InputError(f"{error}{_origin(str(error), asked, config)}") from None
    return config


def _origin(message: str, asked: RunConfig, config: RunConfig) -> str:
    """What set the fields that a message names, and the user did not."""
    pairs = zip(flatten(asked), flatten(config), strict=True)  # NaN is not NaN, but is the same
    fields = [f"config.{name}" for (_, old), (name, new) in pairs if old is not new and old != new]
    named = [field for field in fields if f"{field}=" in message]
    if not named:
        return ""
    origin = "method" if config.recipe == "none" else "recipe"
    return f"; config.{origin}={getattr(config, origin)!r} sets {' and '.join(named)}"


def with_defaults(config: C, changed: Collection[str]) -> C:
    """Replace the schema's defaults by those of the config's recipe, and then of its method.

    A field that was set to the schema's default by a config file counts as not set.

    Args:
      config: a configuration, not checked yet.
      changed: dotted names of the fields that were set apart from the file; they stay.
    """
    rounding = RECIPES.get(config.recipe)
    if rounding:
        all_blocks = config.pqt.round_share == 1 and "pqt.round_share" in changed
        config = _set_defaults(config, _recipe_defaults(rounding, all_blocks), changed)
    method = METHODS.get(config.method)
    defaults = dict(method.defaults) if method else {}
    if rounding and "pqt.dtype" in defaults:
        defaults["pqt.dtype"] = rounding.dtype
    return _set_defaults(config, defaults, changed)


def _recipe_defaults(rounding: Rounding, all_blocks: bool) -> dict[str, str]:
    defaults = {
        "method": "bf16",
        "pqt.round_at": str(rounding.round_at),
        "pqt.round_to": rounding.dtype,
        "pqt.scale": str(rounding.scale),
    }
    if not all_blocks:
        defaults["pqt.round_share"] = str(rounding.round_share)
        defaults["pqt.round_all_at"] = str(rounding.round_all_at)
    return defaults


def _set_defaults(config: C, defaults: Mapping[str, str], changed: Collection[str]) -> C:
    values, fields = dict(flatten(config)), list_fields(type(config), config.model.name)
    unset = [name for name in defaults if values[name] == fields[name].default]
    return with_changes(config, [(n, defaults[n]) for n in unset if n not in changed])
