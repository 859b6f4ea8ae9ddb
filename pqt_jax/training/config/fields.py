# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Configurations as frozen dataclasses, as nested dicts, and as flat dicts of dotted names.

    dataclass → `list_fields` → type, default and range of each dotted name
    ConfigDict or JSON → `from_values` → dataclass, or InputError that names the field
    `with_changes`: texts of the command line → dataclass

The functions work for any configuration. Its sections are fields that are dataclasses. The section
`model` is one of several dataclasses, each with a different class attribute `name`.
"""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from pqt_jax.errors import InputError
from pqt_jax.models.setting import Setting, of_field
from pqt_jax.training.config.field_values import Field, check_range, convert, parse, shown

C = TypeVar("C")


def model_classes(cls: type) -> dict[str, type]:
    """Name → configuration class of each model that a configuration can have."""
    return {one.name: one for one in typing.get_args(typing.get_type_hints(cls)["model"])}


@functools.cache
def list_fields(cls: type, model: str) -> dict[str, Field]:
    """Dotted name → field, in the order of the dataclasses.

    Args:
      cls: a configuration's dataclass.
      model: name of the model whose fields the section `model` has.
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
      prefix: put before every name.
    """
    values = config if isinstance(config, dict) else to_dict(config)
    for name in sorted(values, key=str):
        if isinstance(values[name], dict):
            yield from flatten(values[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values[name]


def from_values(cls: type[C], values: Mapping[str, Any]) -> C:
    """The dataclass that has the values of a nested dict; whole numbers and lists are converted.

    Args:
      cls: a configuration's dataclass.
      values: the value of every field, such as `ConfigDict.to_dict()` or content of a JSON file.

    Raises:
      InputError: for a field that is missing, unknown or of another type.
    """
    flat = dict(flatten(values))
    models = tuple(model_classes(cls))
    if (model := flat.get("model.name")) not in models:
        raise InputError(f"config.model.name={model!r}; it must be one of {', '.join(models)}")
    known = list_fields(cls, str(model))
    for name, value in flat.items():
        _check_name(name, value, known)
    for name in known:
        if name not in flat:
            module = cls.__module__.removesuffix(".schema")  # `training.config` exports its names
            raise InputError(f"config.{name} is missing; start from {module}.default")
    return _build(cls, {name: convert(field, flat[name]) for name, field in known.items()})


def read_section(cls: type, section: str, values: Mapping[str, Any], model: str) -> Any:
    """The dataclass of one section, from values by name; a field that they lack has its default.

    Args:
      cls: a configuration's dataclass.
      section: the section's name.
      values: JSON values; "name" of the section `model` is left out.
      model: the name of the model, for the section `model`.

    Raises:
      InputError: for a field that is missing, unknown, or of another type or range.
    """
    start = f"{section}."
    known = {n.removeprefix(start): f for n, f in list_fields(cls, model).items()}
    known = {n: f for n, f in known.items() if f.name.startswith(start) and n != "name"}
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"config.{start}{name}: no such field")
        checked[name] = convert(known[name], value)
        check_range(known[name], checked[name])
    for name, field in known.items():
        if name not in checked and field.default is dataclasses.MISSING:
            raise InputError(f"config.{start}{name} is missing")
    return section_class(cls, section, model)(**checked)


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
        _check_name(name, text, known)
        field = known[name]
        if name == "model.name" and text != flat[name]:
            names = field.setting.describe_range(str)
            raise InputError(f"config.{name}={text!r}; only the config file can set it, to {names}")
        flat[name] = parse(field, text)
    return _build(type(config), flat)


def _check_name(name: str, value: Any, known: Mapping[str, Field]) -> None:
    if inside := [field for field in known if field.startswith(f"{name}.")]:
        fields = ", ".join(inside)
        raise InputError(f"config.{name}={shown(value)}; it is a section, with the fields {fields}")
    if name not in known:
        raise InputError(f"config.{name}: no such field; {hint(name, list(known))}")


def hint(name: str, known: Sequence[str]) -> str:
    """Suggest the field that a misspelt name may mean, or list the fields of its section.

    Args:
      name: the misspelt dotted name.
      known: the names of the fields. Of equally similar names the first is suggested.
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
      only: check only the fields whose names begin with this.
    """
    values = dict(flatten(config))
    for name, field in list_fields(type(config), config.model.name).items():
        if name.startswith(only):
            check_range(field, values[name])


def _build(cls: type[C], flat: Mapping[str, Any]) -> C:
    made = {}
    for prefix, section in _sections(cls, flat["model.name"]).items():
        names = [field.name for field in dataclasses.fields(section)]
        values = {name: flat[prefix + name] for name in names if prefix + name in flat}
        made[prefix.removesuffix(".")] = values if prefix == "" else section(**values)
    return cls(**made.pop(""), **made)
