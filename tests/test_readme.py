# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The README's examples run, and its file tree names the files that there are."""

import re

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


def test_the_tree_names_every_stage_once():
    tree = TEXT.split("## Files")[1].split("## Status")[0]
    listed = re.findall(r"^      (\w+\.py|\w+/)", tree, re.MULTILINE)
    stages = {p.name for p in (ROOT / "pqt_jax").glob("*.py")} - {"__init__.py"}
    stages |= {f"{p.parent.name}/" for p in (ROOT / "pqt_jax").glob("*/__init__.py")}
    assert sorted(listed) == sorted(stages)


def test_the_two_commands_are_targets():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"quickstart", "test", "check"} <= set(targets)
    assert "make quickstart" in TEXT and "make test" in TEXT
