# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The generated pages of the site: configuration fields, commands, API reference.

docs/generated/fields.inc.md       every configuration field, from the schema
docs/generated/commands.inc.md     options from the argparse parsers, exit codes from the tables
docs/generated/api_<package>.md    one page a package, from docstrings
"""

import argparse
import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pqt_jax
from pqt_jax.lab.sweep_config import SweepFileConfig
from pqt_jax.training.config import field_table

COMMANDS = (
    "train",
    "evaluate",
    "generate",
    "export",
    "plot",
    "data.prepare",
    "lab.sweep",
    "lab.report",
)
PACKAGES = (
    "numerics",
    "pallas",
    "transform",
    "models",
    "interchange",
    "data",
    "quantization",
    "training",
    "analysis",
    "lab",
)


def write_all(folder: Path) -> None:
    """Write the generated pages; a page that would not change is left alone."""
    pages = {"fields.inc.md": fields(), "commands.inc.md": commands(), "api_public.md": public()}
    pages |= {f"api_{package}.md": package_page(package) for package in PACKAGES}
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def fields() -> str:
    """The tables of configuration fields: those of a training run, then those of a sweep."""
    sweep = field_table.markdown(SweepFileConfig, ("simulate", "sweep"))
    return f"{field_table.markdown()}\n{sweep}"


def commands() -> str:
    """A section for each command: what it does, its options and its exit codes."""
    return "\n".join(map(_command, COMMANDS))


def _command(name: str) -> str:
    module = importlib.import_module(f"pqt_jax.{name}")
    parser: argparse.ArgumentParser = module.parser()
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=88)
    usage = parser.format_usage().removeprefix("usage: ").strip()
    usage = re.sub(r"\n +", "\n    ", usage)
    lines = [f"## `python -m pqt_jax.{name}`", "", parser.description or "", ""]
    lines += ["```text", usage, "```", "", "| option | meaning |", "|---|---|"]
    lines += [_option(parser, action) for action in parser._actions]
    lines += ["", _mark_options(parser.epilog or ""), "", "| exit code | meaning |", "|---|---|"]
    lines += [f"| {code} | {_cell(text)} |" for code, text in module.EXIT_CODES.items()] + [""]
    return "\n".join(lines)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = str(action.metavar or "")
    names = ", ".join(action.option_strings)
    texts = [parser._get_formatter()._expand_help(action)] if action.help else []
    texts += [f"one of {', '.join(map(str, action.choices))}"] if action.choices else []
    texts += ["required"] if action.required else []
    shown, text = f"{names} {value}".strip(), "; ".join(texts)
    return f"| `{_cell(shown)}` | {_mark_options(_cell(text))} |"


def _mark_options(text: str) -> str:
    """The text with its options as code, where two hyphens stay two hyphens."""
    return re.sub(r"(--[\w.=-]*\w)", r"`\1`", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("*", "\\*")


def public() -> str:
    """The page of everything in `pqt_jax.__all__`."""
    lines = ["# Public names", "", "Everything in `pqt_jax.__all__`.", ""]
    for name in pqt_jax.__all__:
        value = getattr(pqt_jax, name)
        if inspect.ismodule(value):
            page = f"api_{value.__name__.split('.')[1]}"
            lines += [f"## `pqt_jax.{name}`", "", _summary(value), ""]
            lines += [f"A module: see [{value.__name__}]({page}.md).", ""]
            continue
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        # `ParamTransform` and the like have methods; a variable type of Flax has only Flax's.
        options = ["   :no-index:"] + (["   :members:"] if name != "BitParam" else [])
        options = options if kind == "autoclass" else ["   :no-index:"]
        lines += [f"## `pqt_jax.{name}`", "", "```{eval-rst}"]
        lines += [f".. {kind}:: pqt_jax.{name}", *options, "```", ""]
    return "\n".join(lines)


def package_page(package: str) -> str:
    """The page of one package: a section for each module, in the order of the alphabet."""
    root = importlib.import_module(f"pqt_jax.{package}")
    lines = [f"# pqt_jax.{package}", "", "```{eval-rst}", f".. automodule:: {root.__name__}"]
    lines += ["   :members:", "```", ""]
    for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        lines += [f"## {info.name}", "", "```{eval-rst}", f".. automodule:: {info.name}"]
        lines += ["   :members:", "```", ""]
        for function in _transformed(importlib.import_module(info.name)):
            lines += ["```{eval-rst}", f".. autofunction:: {info.name}.{function}", "```", ""]
    return "\n".join(lines)


def _transformed(module) -> list[str]:
    """Functions under a decorator of JAX, such as `custom_jvp`, which automodule passes over."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isroutine(value)
        and not inspect.isclass(value)
        and inspect.isfunction(inspect.unwrap(value))
        and value.__module__ == module.__name__
    ]


def _summary(value) -> str:
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
