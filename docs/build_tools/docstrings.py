# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A Sphinx extension: the plain docstrings of the package → reStructuredText.

Docstrings are written for readers of the source. They differ from reStructuredText in three ways:

    `code` in single backticks          → ``code``
    an indented block after a blank line → a literal block (formulas, layouts, listings)
    |w|, b_, *args in running text       → the same characters, escaped

Sections such as `Args:` and `Example:` are left to napoleon, doctests to docutils.
"""

import itertools
import re

SECTION = re.compile(
    r"(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note|Warning|Source):$"
)
_CODE = re.compile(r"(``.+?``|`[^`\n]+`)")
_LIST_ITEM = re.compile(r"[-*] |\d+\. ")


def setup(app):
    """Register the conversion; it runs before napoleon's, whose priority is 500."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}


def _process(app, what, name, obj, options, lines):
    lines[:] = convert(_source_lines(obj) or lines)


def _source_lines(obj) -> list[str]:
    """The docstring without the margin of its source, which the line of the closing quotes has.

    Sphinx takes the least indentation for the margin, and so that of a formula where nothing but
    the formula follows the summary.
    """
    docstring = getattr(obj, "__doc__", None)
    if not isinstance(docstring, str) or "\n" not in docstring:
        return []
    first, *rest = docstring.expandtabs().split("\n")
    margin = "" if rest[-1].strip() else rest[-1]
    if any(line.strip() and not line.startswith(margin) for line in rest):
        return []
    return [first.strip(), *(line[len(margin) :] for line in rest), ""]


def _skip(app, what, name, obj, skip, options):
    """Skip the fields of a NamedTuple: its docstring describes them under `Attributes:`."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText that napoleon can read.

    Example:
      >>> convert(["Maximum of |w| as in `absmax`.", "", "    y = |w|"])
      ['Maximum of \\\\|w\\\\| as in ``absmax``.', '', '.. code-block:: text', '', '    y = |w|']
    """
    joined = _join_code(_indent_tables(lines))
    result: list[str] = []
    section = literal = doctest = False
    for line in joined:
        indent = len(line) - len(line.lstrip())
        after_blank = not result or not result[-1].strip()
        if not line.strip():
            doctest = False
            result.append(line)
            continue
        if indent == 0:
            section, literal = bool(SECTION.match(line)), False
        doctest = doctest or line.lstrip().startswith(">>>")
        if not section and not literal and indent >= 2 and after_blank and not _in_list(result):
            literal = True
            result += [".. code-block:: text", ""]
        result.append(line if literal or doctest else _escape(line))
    return result


def _indent_tables(lines: list[str]) -> list[str]:
    """Lines where a table of words and meanings is indented, as other listings are.

    Such a paragraph begins at the margin, and lines inside it are indented.
    """
    result: list[str] = []
    for is_blank, group in itertools.groupby(lines, lambda line: not line.strip()):
        paragraph = list(group)
        first = paragraph[0]
        is_text = is_blank or first[0] == " " or _LIST_ITEM.match(first) or SECTION.match(first)
        is_table = not is_text and any(line.startswith("  ") for line in paragraph)
        result += [f"    {line}" for line in paragraph] if is_table else paragraph
    return result


def _in_list(lines: list[str]) -> bool:
    """Whether the last line that is not blank belongs to a list item."""
    previous = next((line for line in reversed(lines) if line.strip()), "")
    return bool(_LIST_ITEM.match(previous.lstrip()))


def _join_code(lines: list[str]) -> list[str]:
    """Lines where no pair of backticks spans a line break."""
    result: list[str] = []
    for line in lines:
        if result and result[-1].count("`") % 2 and line.strip():
            result[-1] += " " + line.strip()
        else:
            result.append(line)
    return result


def _escape(line: str) -> str:
    parts = _CODE.split(line)
    return "".join(_escape_part(part, i % 2 == 1) for i, part in enumerate(parts))


def _escape_part(part: str, is_code: bool) -> str:
    if is_code:
        return f"\\ ``{part.strip('`')}``\\ "  # the escaped blanks end the code before a letter
    part = re.sub(r"([|*`])", r"\\\1", part) if not part.lstrip().startswith("* ") else part
    return re.sub(r"(\w)_(?!\w)", r"\1\\_", part)
