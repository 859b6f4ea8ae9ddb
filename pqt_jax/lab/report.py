# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a sweep says, as pictures and one page: `python -m pqt_jax.lab.report runs/smoke`.

The folder `report` in the sweep's workdir appears whole and replaces one that an earlier call has
written. A sweep that is still at work is read as far as it has come. Exit codes: 0 done; 1 the
folder cannot be written; 2 the input cannot be used (one line on stderr); 130 and 141 as of
`errors.run`.
"""

import csv
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pqt_jax import errors
from pqt_jax.analysis import html_page
from pqt_jax.analysis.html_page import Picture, paragraph, section
from pqt_jax.errors import InputError
from pqt_jax.interchange import folders
from pqt_jax.lab import figures, prediction, sweep_table
from pqt_jax.lab import tables as summaries
from pqt_jax.lab.prediction import Landmark
from pqt_jax.lab.sweep_table import Cells
from pqt_jax.training.config import command_line
from pqt_jax.training.run import run_plots

PAGE, RUNS, WARNING = "report.html", "runs.csv", "warning.png"
_BAND = "median over seeds and the middle eighty percent."
PICTURES: dict[str, tuple[str, str, Callable[[Cells], Figure]]] = {
    "finals.png": (
        "Final loss and divergence by learning rate",
        f"Left: {_BAND} A run that diverged counts as worse than any; below the dotted line is "
        "what token frequencies alone do not give. Right: share of the seeds that diverged, with "
        "exact 95 % intervals, the arms side by side.",
        figures.finals,
    ),
    "heat.png": (
        "Every run",
        "Final loss by seed and learning rate; × marks a run that diverged, ○ one that is stuck. "
        "The scale ends at the ninth decile of the runs that did not diverge.",
        figures.heat,
    ),
    "losses.png": ("Loss of the training batches", f"The {_BAND}", figures.losses),
    "sharpness.png": (
        "Sharpness by step",
        "Of the loss at the logits of the last token, on fixed windows of held-out text, also of "
        f"runs that have diverged; the {_BAND}",
        figures.sharpness,
    ),
    "sharpness_of_weights.png": (
        "Sharpness by step, in the space of weights",
        f"Of the loss on the same windows, where every array may move by a share of its norm; the "
        f"{_BAND}",
        figures.sharpness_of_weights,
    ),
}
_WARNING = (
    "Does sharpness warn?",
    "Left: at each step, the area under the ROC as a forecast of divergence, among the runs of all "
    "arms and rates that have not diverged by then, with 95 % intervals; 0.5 is chance. Middle: "
    "the same among runs of one arm and rate only, and in grey what chance gives sharpness there. "
    "Right: the ROC of the first of them at some steps.",
)
_USABLE = 0.25
_WRITTEN = re.compile("|".join(map(re.escape, (PAGE, RUNS, WARNING, *PICTURES))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a sweep, and write pictures and page.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = command_line.Parser(
        prog="python -m pqt_jax.lab.report", description="Report on a sweep."
    )
    parser.add_argument("workdir", metavar="DIR", help="of the sweep, also one at work")
    parser.add_argument("--out", metavar="DIR", help="default: DIR/report; replaces what is there")
    parser.add_argument(
        "--usable",
        metavar="NATS",
        type=command_line.number(float, lambda x: 0 <= x < float("inf"), "a number from 0 on"),
        default=_USABLE,
        help="above the first arm's best loss, where rates are no longer usable; default: 0.25",
    )
    given = parser.parse_args(arguments)
    if given.out == "":
        raise InputError("--out= is empty; give a folder")
    cells = sweep_table.read(Path(given.workdir))
    out = given.out or str(Path(given.workdir) / "report")
    folders.check(out, _WRITTEN)
    if Path(out).is_dir() and any(Path(out).iterdir()) and not (Path(out) / PAGE).exists():
        raise InputError(f"{out} holds files and no {PAGE}; give another folder")
    marks = _marks(cells)
    drawn = _draw(cells, marks)
    page = compose(cells, marks, list(drawn.values()), given.usable)
    with folders.whole_folder(out, _WRITTEN) as folder:
        for name, picture in drawn.items():
            (folder / name).write_bytes(picture.content)
        (folder / RUNS).write_text(table_of_runs(cells), encoding="utf-8")
        (folder / PAGE).write_text(page, encoding="utf-8")
    print(f"written: {Path(out) / PAGE}")
    return 0


def _marks(cells: Cells) -> dict[str, list[Landmark]]:
    """Name of a score → its landmarks, of those that have some."""
    found = {
        name: prediction.landmarks(cells.rows.values(), points)
        for name, points in prediction.scores(cells).items()
    }
    return {name: marks for name, marks in found.items() if marks}


def _draw(cells: Cells, marks: dict[str, list[Landmark]]) -> dict[str, Picture]:
    """Name of a file → the picture, of what was measured."""
    drawn = {}
    for name, (title, caption, draw) in PICTURES.items():
        field = Path(name).stem
        if field.startswith("sharpness") and not any(r.get(field) for r in cells.rows.values()):
            continue
        drawn[name] = Picture(title, caption, run_plots.png(draw(cells)))
    if marks:
        drawn[WARNING] = Picture(*_WARNING, run_plots.png(figures.warning(marks)))
    return drawn


def compose(
    cells: Cells, marks: dict[str, list[Landmark]], drawn: Sequence[Picture], usable: float
) -> str:
    """The page."""
    sweep, versions = cells.about["config"]["sweep"], cells.about["versions"]
    first, level = cells.arms[0], summaries.usable_level(cells, usable)
    limit = f"No rate of {first} is best: at each of them half of the runs or more diverged."
    if not cells.known(first).any():
        limit = f"Of {first}, with which the others are to be compared, no run is there yet."
    if math.isfinite(level):
        limit = f"A rate is usable if the final loss is at most {level:.4f}, {usable:g} nats above "
        limit += f"the median of {first} at its best rate."
    wanted = math.prod(len(sweep[name]) for name in ("arms", "learning_rates", "seeds"))
    to_come = f" ({wanted - len(cells.rows)} to come)" if wanted > len(cells.rows) else ""
    words = (
        f"{len(cells.rows)} runs: {len(cells.arms)} ways to train, {len(cells.rates)} learning "
        f"rates, {len(cells.seeds)} seeds each{to_come}, with jax {versions['jax']} and pqt_jax "
        f"{versions['pqt_jax']}. A run has diverged if a loss is not finite, if a loss and the "
        f"median of it and those that follow, {sweep['window']} in all, lie more than "
        f"{sweep['margin']:g} nats above the least such median before or the first loss, or if the "
        "trainer would have ended after steps without a finite gradient. "
        "It is stuck if it has not, and its final loss is not below the entropy of the tokens' "
        f"frequencies. {limit} Intervals are those of 95 %: exact ones of "
        "shares, Student's of means and differences over seeds; * marks a difference whose "
        "interval leaves out 0. Nothing is corrected for there being many."
    )
    ranges = section(
        f"Against {first}: the range of rates, seed by seed", summaries.differences(cells, level)
    )
    by_rate = "At each rate, over the seeds with which neither run diverged, and their number."
    parts = [
        section("The arms", summaries.overview(cells, level)),
        *([ranges] if len(cells.rates) > 1 else []),
        section(
            f"Against {first}: final loss of the training batches",
            paragraph(by_rate),
            summaries.paired_losses(cells, "final_loss"),
        ),
        section(
            f"Against {first}: held-out loss of the weights as they are",
            paragraph(by_rate + " Nothing is sampled; products are those of the arm."),
            summaries.paired_losses(cells, "held_out_losses.master"),
        ),
        section(
            "Held-out loss in fewer bits",
            paragraph("At each arm's best rate: of the weights, and what each format adds to it."),
            summaries.survival(cells),
        ),
        *map(html_page.picture, drawn),
    ]
    told = {
        name: prediction.alarm(cells.rows.values(), prediction.scores(cells)[name])
        for name in marks
    }
    if told := {name: own for name, own in told.items() if own}:
        what = (
            "With the threshold that one in twenty of the runs that did not diverge ever crosses."
        )
        parts.append(section("How early", paragraph(what), summaries.alarms(told)))
    fields = {"arms": sweep["arms"], **{k: v for k, v in sweep.items() if k != "arms"}}
    fields |= {k: v for k, v in cells.about["config"].items() if k not in ("sweep", "simulate")}
    parts.append(section("How it was made", html_page.folded("the configuration", fields)))
    return html_page.page("Stability of training", words, parts)


def table_of_runs(cells: Cells) -> str:
    """CSV with a line for each run, of everything in its row that is no list."""
    flat = []
    for row in cells.rows.values():
        own = {name: value for name, value in row.items() if not isinstance(value, list | dict)}
        flat.append(own | {f"held_out_{n}": v for n, v in row["held_out_losses"].items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)))
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
