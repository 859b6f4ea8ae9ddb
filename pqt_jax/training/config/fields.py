# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Configurations as frozen dataclasses, as nested dicts, and as flat dicts of dotted names.

    dataclass → `list_fields` → type, default and range of each dotted name
    ConfigDict or JSON → `from_values` → dataclass, or InputError that names the field
    `with_changes`: texts of the command line → dataclass

The functions know no particular configuration: sections are fields that are dataclasses, and the
section `model` is one of several, told apart by their class attribute `name`.
"""

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from pqt_jax.errors import InputError
from pqt_jax.models.setting import Setting, of_field

C = TypeVar("C")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a configuration.

    Attributes:
      name: dotted, such as "data.batch".
      kind: bool, int, float, str or tuple.
      member: the type of a tuple's members; str for other fields.
      default: `dataclasses.MISSING` where the config file must say.
      setting: what the field takes and means.
    """

    name: str
    kind: type
    member: type = str
    default: Any
    setting: Setting

    @property
    def kind_in_words(self) -> str:
        """Such as "a whole number"."""
        return _KINDS.get(self.kind, f"something like {self.default!r}")


def model_classes(cls: type) -> dict[str, type]:
    """Name → configuration class of each model that a configuration can have."""
    return {one.name: one for one in typing.get_args(typing.get_type_hints(cls)["model"])}


@functools.cache
def list_fields(cls: type, model: str) -> dict[str, Field]:
    """Dotted name → field, in the order of the dataclasses.

    Args:
      cls: a configuration's dataclass.
      model: name of the model that the section `model` is of.
    """
    listed: dict[str, Field] = {}
    for prefix, section in _sections(cls, model).items():
        if prefix == "model.":
            listed["model.name"] = _model_name_field(tuple(model_classes(cls)))
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            if f"{prefix}{field.name}." not in _sections(cls, model):
                listed[prefix + field.name] = _field(prefix + field.name, field, hints[field.name])
    return listed


def _model_name_field(names: tuple[str, ...]) -> Field:
    setting = Setting(help="Kind of model; only the config file can set it.", choices=names)
    return Field(name="model.name", kind=str, default=dataclasses.MISSING, setting=setting)


def _sections(cls: type, model: str) -> dict[str, Any]:
    """Prefix of the names in a section → its dataclass; "" → the class itself."""
    hints = typing.get_type_hints(cls) | {"model": model_classes(cls)[model]}
    inside = {f"{name}.": hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return {"": cls} | inside


def section_class(cls: type, section: str, model: str) -> type:
    """The dataclass of a section, "" for the configuration itself; `model` as in `list_fields`."""
    return _sections(cls, model)[f"{section}." if section else ""]


def _field(name: str, field: dataclasses.Field[Any], hint: Any) -> Field:
    kind: Any = typing.get_origin(hint) or hint
    members = typing.get_args(hint)
    return Field(
        name=name,
        kind=str if kind is typing.Literal else kind,
        member=members[0] if kind is tuple else str,
        default=field.default,
        setting=of_field(field),
    )


def to_dict(config: Any) -> dict[str, Any]:
    """The sections and fields of a dataclass or a ConfigDict, sorted by name; the model's name too.

    Example:
      >>> from pqt_jax.training.config.schema import MeshConfig
      >>> to_dict(MeshConfig(fsdp=8))
      {'data': 0, 'fsdp': 8, 'tensor': 1}
    """
    if not dataclasses.is_dataclass(config):
        return config.to_dict()
    names = [field.name for field in dataclasses.fields(config)]
    if hasattr(type(config), "name"):  # a class attribute of models, a field of the optimizer
        names.append("name")
    values = {name: getattr(config, name) for name in sorted(set(names))}
    return {
        name: to_dict(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
    }


def to_config_dict(config: Any) -> ConfigDict:
    """The fields of a dataclass as a locked ConfigDict, for config files to change."""
    # Not type-safe: `from_values` names the field, and says what it takes.
    return ConfigDict(to_dict(config), type_safe=False).lock()


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field as (dotted name, value), sorted by name.

    Args:
      config: a dataclass, a ConfigDict or a nested dict.
      prefix: of the names.
    """
    values = config if isinstance(config, dict) else to_dict(config)
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def from_values(cls: type[C], values: Mapping[str, Any]) -> C:
    """The dataclass that has the values of a nested dict; whole numbers and lists are converted.

    Args:
      cls: a configuration's dataclass.
      values: of every field, such as `ConfigDict.to_dict()` or what was read from JSON.

    Raises:
      InputError: for a field that is missing, unknown or of another type.
    """
    flat = dict(flatten(values))
    models = tuple(model_classes(cls))
    if (model := flat.get("model.name")) not in models:
        raise InputError(f"config.model.name={model!r}; it must be one of {', '.join(models)}")
    known = list_fields(cls, str(model))
    for name, value in flat.items():
        if name in known:
            continue
        if inside := [other for other in known if other.startswith(f"{name}.")]:
            raise InputError(
                f"config.{name}={shown(value)}; it must be a section: {', '.join(inside)}"
            )
        raise InputError(f"config.{name}: no such field; {hint(name, list(known))}")
    for name in known:
        if name not in flat:
            raise InputError(f"config.{name} is missing; start from {cls.__module__}.default")
    return _build(cls, {name: _convert(field, flat[name]) for name, field in known.items()})


def with_changes(config: C, changes: Sequence[tuple[str, str]]) -> C:
    """The configuration with some fields set by texts.

    Args:
      config: a configuration's dataclass.
      changes: (dotted field, text of the value), in order.

    Raises:
      InputError: if there is no such field, and for a text that does not fit.
    """
    flat: dict[str, Any] = dict(flatten(config))
    known = list_fields(type(config), flat["model.name"])
    for name, text in changes:
        if inside := sorted(field for field in known if field.startswith(f"{name}.")):
            raise InputError(
                f"--config.{name}={text}: a section; its fields are {', '.join(inside)}"
            )
        if name not in known:
            raise InputError(f"--config.{name}: no such field; {hint(name, list(known))}")
        field = known[name]
        if name == "model.name" and text != flat[name]:
            names = field.setting.describe_range(str)
            raise InputError(
                f"config.{name}={text!r}; it must be {names}, and only the config file can set it"
            )
        try:
            flat[name] = _parse(text, field.kind, field.member)
        except (ValueError, OverflowError):
            raise InputError(f"config.{name}={text!r}; it must be {field.kind_in_words}") from None
    return _build(type(config), flat)


def _build(cls: type[C], flat: Mapping[str, Any]) -> C:
    made = {}
    for prefix, section in _sections(cls, flat["model.name"]).items():
        names = [field.name for field in dataclasses.fields(section)]
        values = {name: flat[prefix + name] for name in names if prefix + name in flat}
        made[prefix.removesuffix(".")] = values if prefix == "" else section(**values)
    return cls(**made.pop(""), **made)


def _convert(field: Field, value: Any) -> Any:
    """The value in the field's type, which whole numbers and lists may stand for."""
    if isinstance(value, field.kind) and isinstance(value, bool) == (field.kind is bool):
        return value
    if field.kind is tuple and isinstance(value, list):
        return tuple(value)
    if field.kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    raise InputError(f"config.{field.name}={shown(value)}; it must be {field.kind_in_words}")


def _parse(text: str, kind: type, member: type = str) -> Any:
    """The value of a type that a text stands for; ValueError or OverflowError if there is none."""
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]
    if kind is int:
        number = float(text)  # so that 1e3 can be given
        if not number.is_integer():
            raise ValueError(text)
        return int(number)
    if kind is tuple:
        inside = re.fullmatch(r"\s*(?:\(([^()]*)\)|\[([^][]*)\]|([^][()]*))\s*", text)
        if inside is None:
            raise ValueError(text)
        members = next(group for group in inside.groups() if group is not None).split(",")
        return tuple(_parse(one, member) for one in members if one.strip())
    return kind(text)


def hint(name: str, known: Sequence[str]) -> str:
    """Which field a misspelt name may mean; else the fields of its section, or the sections.

    Args:
      name: dotted.
      known: the fields; of equally similar ones the first is meant.
    """

    def similarity(field: str) -> list[float]:
        parts = zip((last, section), field.rpartition(".")[::-2], strict=True)
        return [difflib.SequenceMatcher(None, a, b).ratio() for a, b in parts]

    section, _, last = name.lower().rpartition(".")
    inside = [field for field in known if section and field.startswith(f"{section}.")] or known
    near = difflib.get_close_matches(last, {field.rpartition(".")[2] for field in inside})
    if candidates := [field for field in inside if field.rpartition(".")[2] in near]:
        return f"did you mean config.{max(candidates, key=similarity)}?"
    if inside is known:
        sections = dict.fromkeys(field.partition(".")[0] for field in known)
        return f"there are {', '.join(sections)}; --help lists all fields"
    return f"there are {', '.join(inside)}"


def check_ranges(config: Any, only: str = "") -> None:
    """Raise InputError for the first field whose value is out of its range.

    Args:
      config: a configuration's dataclass.
      only: what the names of the checked fields begin with.
    """
    values = dict(flatten(config))
    for name, field in list_fields(type(config), config.model.name).items():
        if name.startswith(only) and (reason := _range_error(field, values[name])):
            raise InputError(f"config.{reason}")


def _range_error(field: Field, value: Any) -> str:
    setting, range_ = field.setting, field.setting.describe_range(field.kind)
    if not setting.accepts(value):
        return f"{field.name}={shown(value)}; it must be {range_}"
    if field.kind is float and not setting.accepts(as_float32(value)):
        in_float32 = f"{as_float32(value):g}"
        return f"{field.name}={value!r}; it must be {range_}, and in float32 it is {in_float32}"
    if setting.check is None:
        return ""
    try:
        setting.check(value)
    except (ValueError, TypeError, OverflowError) as error:
        section, _, last = field.name.rpartition(".")
        reason = " ".join(str(error).split())
        if not reason.startswith(f"{last}="):
            reason = f"{last}={shown(value)}; {reason}"
        return f"{section}.{reason}"
    return ""


def shown(value: Any) -> str:
    """A value for a message; whole numbers of many digits are shortened, as 1e30 was given."""

    def shorten(digits: re.Match[str]) -> str:
        return f"{int(digits[0][:4]) / 1000:g}e+{len(digits[0]) - 1}"

    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "(a number of thousands of digits)"
    return text if isinstance(value, str) else re.sub(r"(?<![.\d])\d{16,}", shorten, text)


def as_float32(value: float) -> float:
    """The value as training has it; XLA takes what is below the smallest normal number for 0."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded
