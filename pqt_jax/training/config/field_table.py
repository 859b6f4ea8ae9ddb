# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Every field with its type, default, range and meaning: for `--help`, and for the documentation.

Both are made from the metadata of the dataclasses.
"""

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pqt_jax.training.config.field_values import Field
from pqt_jax.training.config.fields import flatten, list_fields, model_classes, section_class
from pqt_jax.training.config.schema import MAY_CHANGE, RunConfig

_WIDTH = 80  # columns of a terminal


def help_text(config: Any = None, cls: type = RunConfig) -> str:
    """The fields by section, for `--help`.

    Args:
      config: a configuration's dataclass, whose values are shown; None for the defaults.
      cls: dataclass of the configuration, where there is no `config`.
    """
    values = dict(flatten(config)) if config else {}
    models = [config.model.name] if config else list(model_classes(cls))
    lines = ["Fields of the config file, which --config.field=value sets:"]
    for title, about, fields in _by_section(type(config) if config else cls, models):
        lines += ["", textwrap.fill(f"{title}: {about}", _WIDTH)]
        for field in fields:
            value = values.get(field.name, field.default)
            text = "" if value is dataclasses.MISSING else as_text(value)
            lines.append(f"  config.{field.name}={text}")
            known = [field.setting.help + _resume_note(field), f"Takes {_takes(field)}."]
            if config and field.default not in (value, dataclasses.MISSING):
                known.append(f"Default: {as_text(field.default) or 'empty'}.")
            lines.append(textwrap.indent(textwrap.fill(" ".join(known), _WIDTH - 6), "      "))
    return "\n".join(lines)


def markdown(cls: type = RunConfig, sections: Sequence[str] = ()) -> str:
    """The fields as Markdown: a heading and a table for each section.

    Args:
      cls: dataclass of a configuration: `RunConfig`, or `lab.sweep_config.SweepFileConfig`.
      sections: names of the sections to include; empty for all.
    """
    blocks = []
    for title, about, fields in _by_section(cls, list(model_classes(cls))):
        if sections and title.split(" ")[0] not in sections:
            continue
        rows = [
            "| Field | Default | Takes | Meaning |",
            "| --- | --- | --- | --- |",
            *(_row(field) for field in fields),
        ]
        blocks.append(f"## {title}\n\n{about}\n\n" + "\n".join(rows))
    return "\n\n".join(blocks) + "\n"


def as_text(value: Any) -> str:
    """A value as the command line takes it.

    Example:
      >>> as_text((32, 32)), as_text(True), as_text(0.001)
      ('32,32', 'true', '0.001')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _row(field: Field) -> str:
    default = "" if field.default is dataclasses.MISSING else as_text(field.default) or '""'
    cells = (
        f"`config.{field.name}`",
        f"`{default}`" if default else "set by the config file",
        _takes(field),
        field.setting.help + _resume_note(field),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _resume_note(field: Field) -> str:
    return " May change when a run is resumed." if f"{field.name}.".startswith(MAY_CHANGE) else ""


def _takes(field: Field) -> str:
    """The accepted values in words, such as "a whole number, 1 or more"."""
    range_ = field.setting.describe_range(field.kind, brief=True)
    if field.kind is tuple:
        members = {int: "whole numbers", float: "numbers"}.get(field.member, "words")
        return range_ or f"{members}, such as {as_text(field.default)}"
    if field.setting.choices or not range_:
        return range_ or field.kind_in_words
    return f"{field.kind_in_words}, {range_}"


def _by_section(cls: type, models: Sequence[str]) -> Iterator[tuple[str, str, list[Field]]]:
    """(title, description, fields) of each section; each model has a section."""
    fields = {model: list_fields(cls, model) for model in models}
    names = dict.fromkeys(name.rpartition(".")[0] for name in fields[models[0]])
    for section in names:
        for model in models if section == "model" else models[:1]:
            inside = [f for f in fields[model].values() if f.name.rpartition(".")[0] == section]
            title = f"model ({model})" if section == "model" else section or "run"
            about = inspect.getdoc(section_class(cls, section, model)) or ""
            yield title, about.split("\n")[0], inside
