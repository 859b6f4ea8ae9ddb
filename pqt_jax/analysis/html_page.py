# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Make one self-contained HTML page: no script, no address, all pictures inside it."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pqt_jax.console import escaped

# The policy forbids to fetch anything, whatever text of a run is on the page.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
 max-width: 1360px; margin: 2em auto; padding: 0 1.2em; }}
h1 {{ font-size: 1.6em; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2em; margin: 2em 0 .4em; }}
p, figcaption, summary {{ color: #444; max-width: 75em; }}
.wide {{ overflow-x: auto; /* with a shadow at the right edge until it is scrolled there */
 background: linear-gradient(270deg, #fff 40%, #fff0) right/3em 100% no-repeat local,
  linear-gradient(270deg, #0003, #0000) right/1em 100% no-repeat scroll; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3em .6em; text-align: left; vertical-align: top; }}
thead th {{ border-bottom: 2px solid #888; vertical-align: bottom; }}
tbody tr {{ border-bottom: 1px solid #ddd; }}
tbody th {{ font-weight: normal; }}
.numbers td {{ text-align: right; white-space: nowrap; }}
.numbers thead th + th {{ text-align: right; }}
.numbers th:first-child {{ min-width: 11em; overflow-wrap: anywhere; }}
.fields td {{ min-width: 6em; }}
small {{ color: #666; display: block; }}
code {{ font-size: 12.5px; overflow-wrap: anywhere; }}
tbody th code {{ white-space: nowrap; }}
.note {{ border-left: 4px solid #d9731a; padding: .4em .8em; background: #fdf3e7; color: #1a1a1a; }}
i {{ display: inline-block; width: 1.6em; margin-right: .4em; vertical-align: middle; }}
figure {{ margin: 0 0 1.5em; }}
img {{ max-width: 100%; height: auto; }}
@page {{ size: landscape; margin: 1cm; }}
@media print {{ body {{ margin: 0; max-width: none; }} figure {{ break-inside: avoid; }}
 table, code {{ font-size: 8px; }} h2 {{ break-after: avoid; }} }}
</style>
"""


class Picture(NamedTuple):
    """A PNG with its title and caption."""

    title: str
    caption: str
    content: bytes


def text(value: Any) -> str:
    """A value as HTML text, with all characters escaped that a browser would act on.

    Example:
      >>> text("<b> & 'c'")
      '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(escaped(str(value)))


def page(title: str, introduction: str, sections: Sequence[str]) -> str:
    """The HTML of a page.

    Args:
      title, introduction: plain text.
      sections: HTML, from `section`, `table` and `picture`.
    """
    head = _HEAD.format(title=text(title))
    return f"{head}<h1>{text(title)}</h1>\n<p>{text(introduction)}</p>\n" + "\n".join(sections)


def section(title: str, *content: str) -> str:
    """A heading and the HTML below it."""
    return "\n".join([f"<h2>{text(title)}</h2>", *content])


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(words)}</p>"


def note(words: str) -> str:
    """A paragraph that nobody should miss: what the page cannot show."""
    return f'<p class="note">{text(words)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "fields") -> str:
    """A table, which scrolls if it is wider than the page.

    Args:
      head: the header of each column, HTML.
      rows: a cell for each column, HTML; the first cell names the row.
      kind: "fields", or "numbers" to align all but the first column to the right.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    ]
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def folded(title: str, fields: Mapping[str, Any]) -> str:
    """A table of names and values that is hidden until a reader opens it."""
    rows = [[f"<code>{text(name)}</code>", f"<code>{text(v)}</code>"] for name, v in fields.items()]
    content = table(["field", "value"], rows)
    return f"<details><summary>{text(title)}</summary>\n{content}\n</details>"


def swatch(color: str, style: str, label: str) -> str:
    """A line as in the pictures, followed by a label.

    Args:
      color: the color in CSS.
      style: the line style in CSS.
      label: plain text.
    """
    return f'<i style="border-top: 3px {style} {color}"></i>{text(label)}'


def picture(image: Picture) -> str:
    """A section with a picture, which is embedded in the page, and its caption.

    On a narrow page a wide picture scrolls, since its text could not be read in the page's width.
    """
    width = int.from_bytes(image.content[16:20]) * 2 // 3  # of the PNG, reduced to look sharp
    style = f"min-width: {min(width * 3 // 5, 660)}px"
    data = base64.b64encode(image.content).decode()
    title, caption = text(image.title), text(image.caption)
    return section(
        image.title,
        f'<figure><div class="wide"><img alt="{title}" width="{width}" '
        f'style="{style}" src="data:image/png;base64,{data}"></div>',
        f"<figcaption>{caption}</figcaption></figure>",
    )
