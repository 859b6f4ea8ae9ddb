# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Packages import downwards only, modules never in a cycle, and few files lie at the root."""

import ast
import graphlib

from support.paths import ROOT

PACKAGE = ROOT / "pqt_jax"
LAYERS = """errors console signals numerics pallas transform models interchange data quantization
training analysis lab""".split()


class WithoutTypes(ast.NodeTransformer):
    """Drops the imports that only type checkers follow."""

    def visit_If(self, node):
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imports():
    """Module → the modules of the package that it imports, also inside functions."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in ast.walk(WithoutTypes().visit(ast.parse(path.read_text()))):
            if isinstance(node, ast.ImportFrom):
                targets = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            else:
                targets = {a.name for a in node.names} if isinstance(node, ast.Import) else set()
            graph[name] |= {t for t in targets & modules.keys() if not name.startswith(t)}
    return graph


def layer(module):
    name = (module.split(".") + ["pqt_jax"])[1]
    return LAYERS.index(name) if name in LAYERS else len(LAYERS)


def test_imports_go_downwards():
    upward = [f"{a} → {b}" for a, names in imports().items() for b in names if layer(a) < layer(b)]
    assert not upward
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == {
        *LAYERS[3:]
    }


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter(imports()).prepare()


def test_the_root_holds_the_public_names_the_commands_and_what_all_import():
    names = {path.stem for path in PACKAGE.glob("*.py")}
    assert names == {
        *"__init__ _start errors console signals train evaluate generate export plot".split()
    }
