# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The README's examples run, it is short, and its links and commands exist."""

import importlib
import re
import shlex

import jax.numpy as jnp
import pytest

from support.paths import ROOT

TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["nnx", "linen", "simulate"])
def test_snippets_run(snippet):
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["y"].shape == (8, 64) and bool(jnp.isfinite(names["y"]).all())
    assert len(snippet.splitlines()) <= 12


def test_it_is_short_and_its_links_lead_to_files():
    assert len(TEXT.split()) <= 1200
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert len(links) > 10 and all((ROOT / link).exists() for link in links)


def test_the_two_commands_are_targets():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"quickstart", "test", "check"} <= set(targets)
    assert "make quickstart" in TEXT and "make test" in TEXT


def test_commands_are_modules_with_the_options_that_are_shown():
    lines = re.findall(r"^python -m (pqt_jax\.[\w.]+) (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
    assert len(lines) >= 8
    for name, rest in lines:
        parser = importlib.import_module(name).parser()
        known = [option for action in parser._actions for option in action.option_strings]
        words = [word for word in shlex.split(rest) if word.startswith("--")]
        for word in words:
            assert word.startswith("--config.") or word in known, f"{name}: {word}"


def test_what_is_read_is_the_folder_that_the_quick_start_writes():
    (written,) = re.findall(r"--workdir (\S+)", (ROOT / "Makefile").read_text())
    read = re.findall(r"--workdir (\S+) --(?:prompt|data|format)", TEXT)
    assert len(read) == 4 and set(read) == {written}
