# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a sweep says, as pictures and one page: `python -m pqt_jax.lab.report runs/smoke`.

The folder `report` in the sweep's workdir appears whole and replaces one that an earlier call has
written. A sweep that is still at work is read as far as it has come. Exit codes: 0 done; 1 the
folder cannot be written; 2 the input cannot be used (one line on stderr); 130 and 141 as of
`errors.run`.
"""

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pqt_jax import cli, errors, folders, pictures, web_page
from pqt_jax.errors import InputError
from pqt_jax.intervals import Interval
from pqt_jax.lab import cells as tables
from pqt_jax.lab import outcomes, panels
from pqt_jax.lab.cells import Cells
from pqt_jax.lab.statistics import landmarks, lead_time, paired, share
from pqt_jax.web_page import Picture, text

PAGE = "report.html"
PICTURES: dict[str, tuple[str, str, Callable[[Cells], Figure]]] = {
    "finals.png": (
        "Final loss and divergence by learning rate",
        "Left: median over seeds and the middle eighty percent; a run without a finite loss "
        "counts as worse than any. Right: share of the seeds that diverged, with exact 95 % "
        "intervals, the arms side by side.",
        panels.finals,
    ),
    "heat.png": (
        "Every run",
        "Final loss by seed and learning rate; × marks a run that diverged. The scale ends at the "
        "ninth decile.",
        panels.heat,
    ),
    "losses.png": (
        "Loss of the training batches",
        "Median over seeds and the middle eighty percent.",
        panels.losses,
    ),
    "sharpness.png": (
        "Sharpness by step",
        "Of the loss at the logits of the last token, on fixed windows of held-out text; "
        "median over seeds and the middle eighty percent.",
        panels.sharpness,
    ),
    "warning.png": (
        "Does sharpness warn?",
        "Left: at each step, the area under the ROC of sharpness as a forecast of divergence, "
        "among the runs that have not diverged by then, with 95 % intervals; 0.5 is chance. "
        "Right: the ROC at some steps. Runs of all arms and rates are together, so that what "
        "a high rate does to sharpness and to divergence alike is in it.",
        panels.warning,
    ),
}
_WRITTEN = re.compile("|".join(map(re.escape, (PAGE, *PICTURES))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a sweep, and write pictures and page.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m pqt_jax.lab.report", description="Report on a sweep.")
    parser.add_argument("workdir", metavar="DIR", help="of the sweep, also one at work")
    parser.add_argument("--out", metavar="DIR", help="default: DIR/report; replaces what is there")
    given = parser.parse_args(arguments)
    if given.out == "":
        raise InputError("--out= is empty; give a folder")
    cells = tables.read(Path(given.workdir))
    out = given.out or str(Path(given.workdir) / "report")
    folders.check(out, _WRITTEN)
    measured = any(row.get("sharpness") for row in cells.rows.values())
    drawn = {}
    for name, (title, caption, draw) in PICTURES.items():
        if name in ("sharpness.png", "warning.png") and not measured:
            continue
        if name == "warning.png" and not landmarks(cells):
            continue
        drawn[name] = Picture(title, caption, pictures.png(draw(cells)))
    with folders.whole_folder(out, _WRITTEN) as folder:
        for name, picture in drawn.items():
            (folder / name).write_bytes(picture.content)
        (folder / PAGE).write_text(compose(cells, list(drawn.values())), encoding="utf-8")
    print(f"written: {Path(out) / PAGE}")
    return 0


def compose(cells: Cells, drawn: Sequence[Picture]) -> str:
    """The page."""
    sweep, versions = cells.about["config"]["sweep"], cells.about["versions"]
    words = (
        f"{len(cells.rows)} runs: {len(cells.arms)} ways to train, {len(cells.rates)} learning "
        f"rates, {len(cells.seeds)} seeds each, with jax {versions['jax']} and pqt_jax "
        f"{versions['pqt_jax']}. A run has diverged if a loss is not finite, or if "
        f"{sweep['window']} losses in a row lie more than {sweep['margin']:g} nats above the least "
        "before them, or if the trainer would have ended after steps without a finite gradient."
    )
    first = cells.arms[0]
    parts = [
        web_page.section("The arms", _overview(cells)),
        web_page.section(
            f"Final loss minus that of {first}",
            web_page.paragraph(
                "Mean over the seeds with which neither run diverged, and their number; 95 % "
                "intervals by Student's t. Differences whose interval leaves out 0 are marked *."
            ),
            _paired(cells),
        ),
        *map(web_page.picture, drawn),
    ]
    if warns := _lead(cells):
        parts.append(web_page.section("How early", web_page.paragraph(warns)))
    fields = {"arms": sweep["arms"], **{k: v for k, v in sweep.items() if k != "arms"}}
    fields |= {k: v for k, v in cells.about["config"].items() if k not in ("sweep", "simulate")}
    parts.append(web_page.section("How it was made", web_page.folded("the configuration", fields)))
    return web_page.page("Stability of training", words, parts)


def _overview(cells: Cells) -> str:
    head = ["arm", "diverged, all rates", "best rate", "final loss there", "lr sensitivity"]
    head += ["spikes per run", "usable rates"]
    rows = []
    for arm in cells.arms:
        values, diverged = cells.grid(arm, "final_loss"), cells.diverged(arm)
        medians = np.median(np.where(np.isfinite(values) & ~diverged, values, np.inf), axis=0)
        best = int(np.argmin(medians))
        there = values[:, best][~diverged[:, best]]
        usable = [
            f"{rate:g}" for rate, bad in zip(cells.rates, diverged.T, strict=True) if not bad.any()
        ]
        rows.append(
            [
                text(arm),
                _share(share(int(diverged.sum()), diverged.size)),
                f"{cells.rates[best]:g}",
                _number(paired(there, np.zeros(there.size))),
                f"{_sensitivity(cells, arm):.3f}",
                f"{np.nanmean(cells.grid(arm, 'spikes')):.2f}",
                ", ".join(usable) or "none",
            ]
        )
    return web_page.table(head, rows, "numbers")


def _sensitivity(cells: Cells, arm: str) -> float:
    """The mean over seeds."""
    found = []
    for seed in cells.seeds:
        rows = {r: cells.rows[arm, r, seed] for r in cells.rates if (arm, r, seed) in cells.rows}
        finals = {
            rate: math.nan if row["diverged_at"] or row["final_loss"] is None else row["final_loss"]
            for rate, row in rows.items()
        }
        first = max((row["first_loss"] or 0.0 for row in rows.values()), default=math.nan)
        found.append(outcomes.sensitivity(finals, first))
    known = [x for x in found if math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan


def _paired(cells: Cells) -> str:
    base = cells.arms[0]
    head = ["arm", *(f"rate {rate:g}" for rate in cells.rates)]
    rows = []
    for arm in cells.arms[1:]:
        row = [text(arm)]
        mine, theirs = (
            np.where(cells.diverged(a), np.nan, cells.grid(a, "final_loss")) for a in (arm, base)
        )
        for own, other in zip(mine.T, theirs.T, strict=True):
            pairs = int(np.isfinite(own - other).sum())
            found = paired(own, other)
            sure = found.low > 0 or found.high < 0
            shown = "—" if not pairs else f"{found.value:+.4f}{'*' if sure else ''}"
            inside = "" if pairs < 2 else f" [{found.low:+.4f}, {found.high:+.4f}]"
            row.append(f"{shown}<small>{inside} of {pairs}</small>")
        rows.append(row)
    return web_page.table(head, rows, "numbers")


def _lead(cells: Cells) -> str:
    """How long before divergence an alarm would have come that one sound run in twenty has."""
    sound, bad = [], []
    for row in cells.rows.values():
        points = [(at, value) for at, value in row.get("sharpness", []) if value is not None]
        if row["diverged_at"] is None and points:
            sound.append(max(value for _, value in points))
        elif points:
            bad.append((points, row["diverged_at"]))
    if not sound or not bad:
        return ""
    threshold = float(np.quantile(sound, 0.95))
    leads = [lead_time(points, at, threshold) for points, at in bad]
    early = [lead for lead in leads if lead is not None]
    hits = share(len(early), len(bad))
    after = f", the median alarm {np.median(early):.0f} steps before it" if early else ""
    return (
        f"At the threshold that one in twenty of the runs that did not diverge ever crosses, "
        f"{threshold:.3g} %, {len(early)} of the {len(bad)} that did are told before they do "
        f"({_share(hits)}){after}."
    )


def _share(found: Interval) -> str:
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def _number(found: Interval) -> str:
    inside = "" if math.isnan(found.low) else f" [{found.low:.4f}, {found.high:.4f}]"
    return "—" if math.isnan(found.value) else f"{found.value:.4f}{inside}"


if __name__ == "__main__":
    sys.exit(main())
