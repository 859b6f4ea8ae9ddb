# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Code in the pages runs, links lead somewhere, docstrings become the text they should."""

import importlib.util
import re

import pytest

from support.paths import ROOT

PAGES = sorted(ROOT.glob("docs/**/*.md")) + [ROOT / "CONTRIBUTING.md"]
PAGES = [page for page in PAGES if page.parent.name != "generated"]


def code_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def load_tool(name):
    path = ROOT / "docs" / "build_tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_have_code():
    assert sum(map(len, map(code_blocks, PAGES))) >= 5


@pytest.mark.slow
@pytest.mark.jax_version
@pytest.mark.parametrize("page", [p for p in PAGES if code_blocks(p)], ids=lambda page: page.stem)
def test_code_in_a_page_runs(page):
    for number, block in enumerate(code_blocks(page)):
        names = {"__name__": "page"}
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
        if "get_config" in names:
            assert names["get_config"]().pqt.target_bits == 3.0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_of_a_page_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        if not target.startswith("generated/"):  # written when the site is built
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:docs|examples|configs|tests|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for package, name in re.findall(
        r"`(numerics|pallas|transform|models|interchange|data|quantization|training|analysis|lab)"
        r"/([a-z0-9_./]+\.py)`",
        text,
    ):
        assert (ROOT / "pqt_jax" / package / name).exists(), f"{package}/{name}"


def test_every_page_is_in_the_contents():
    for index in (ROOT / "docs" / "index.md", ROOT / "docs" / "decisions" / "index.md"):
        for page in index.parent.glob("*.md"):
            assert page.name == "index.md" or page.stem in index.read_text()


def test_docstrings_become_restructured_text():
    convert = load_tool("docstrings").convert
    formula = convert(["Maximum |w| of a `block`.", "", "    y = |w|", "", "Args:", "  w: b_i."])
    assert formula[0] == r"Maximum \|w\| of a \ ``block``\ ."
    assert formula[2:5] == [".. code-block:: text", "", "    y = |w|"]
    assert formula[-1] == "  w: b_i."
    assert convert(["Example:", "  >>> a_ | b_"]) == ["Example:", "  >>> a_ | b_"]
    assert convert(["codes  of", "       weights"])[-2:] == ["    codes  of", "           weights"]
    assert convert(["See `a", "b`, *c."]) == [r"See \ ``a b``\ , \*c."]


def test_the_margin_of_a_docstring_is_that_of_its_last_line():
    def function():
        pass

    function.__doc__ = "Formula.\n\n        a = b\n    "
    lines = load_tool("docstrings")._source_lines(function)
    assert [line for line in lines if line] == ["Formula.", "    a = b"]
    function.__doc__ = "Formula.\n\n    a = b\n\nThe end.\n"  # as of a module
    lines = load_tool("docstrings")._source_lines(function)
    assert [line for line in lines if line] == ["Formula.", "    a = b", "The end."]


def test_generated_pages_have_every_command_and_field():
    pages = load_tool("pages")
    commands = pages.commands()
    for name in pages.COMMANDS:
        assert f"## `python -m pqt_jax.{name}`" in commands
    assert commands.count("| exit code |") == len(pages.COMMANDS)
    assert "| `config.pqt.target_bits` |" in pages.fields()
    assert "pqt_jax.numerics.bit_width.step_size" in pages.package_page("numerics")
