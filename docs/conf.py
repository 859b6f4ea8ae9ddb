# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sphinx configuration: `make docs` builds the site in build/docs, without a network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "build_tools"), str(HERE.parent)]

import pages  # noqa: E402, the folder of docs/build_tools is on the path now

import pqt_jax  # noqa: E402

project = "pqt_jax"
author = "The pqt_jax Authors"
copyright = "2026 The pqt_jax Authors"
version = release = pqt_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings"]
exclude_patterns = ["build_tools", "generated/*.inc.md"]
html_theme = "furo"
html_title = "pqt_jax"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]

default_role = "code"  # single backticks in docstrings are code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

pages.write_all(HERE / "generated")


def setup(app):
    """Lead links to LOG.md and CHANGELOG.md, which lie above docs/, to the pages that hold them."""
    app.connect("source-read", _link_to_pages)


def _link_to_pages(app, name, source):
    up = "../" * name.count("/")
    for file, page in (("LOG.md", "log.md"), ("CHANGELOG.md", "changelog.md")):
        source[0] = source[0].replace(f"](../{up}{file}", f"]({up or './'}{page}")
