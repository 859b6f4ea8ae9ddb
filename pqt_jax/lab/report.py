# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Report on a sweep in figures and one page: `python -m pqt_jax.lab.report runs/smoke`.

The report is the folder `report` in the sweep's workdir. It is written whole, and replaces an
earlier report. A sweep that is still running is reported as far as it has come.

Exit codes: `errors.EXIT_CODES`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pqt_jax import console, errors
from pqt_jax.analysis.html_page import Picture
from pqt_jax.errors import InputError
from pqt_jax.interchange import folders
from pqt_jax.interchange.png import encode_png
from pqt_jax.lab import figures, prediction, report_page, sweep_table
from pqt_jax.lab.prediction import PredictionAtStep
from pqt_jax.lab.report_page import FIGURES, PREDICTION_FIGURE
from pqt_jax.lab.sweep_table import SweepTable

EXIT_CODES = errors.EXIT_CODES
PAGE, CSV = "report.html", "runs.csv"
_OWN_FILES = re.compile("|".join(map(re.escape, (PAGE, CSV, PREDICTION_FIGURE.file, *FIGURES))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program; None for `sys.argv[1:]`.

    Returns:
      One of `EXIT_CODES`.
    """
    return console.run(_run, arguments)


def parser() -> console.Parser:
    """The parser of the command line."""
    parser = console.Parser(prog="python -m pqt_jax.lab.report", description="Report on a sweep.")
    parser.add_argument(
        "workdir", metavar="DIR", help="folder of the sweep, which may still be running"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder to write; it may hold an older report, which is replaced; default: DIR/report",
    )
    parser.add_argument(
        "--usable",
        metavar="NATS",
        type=console.number(float, lambda x: 0 <= x < float("inf"), "a number from 0 on"),
        default=0.25,
        help="a learning rate counts as usable if its final loss is at most NATS above the best of "
        "the first arm; default: 0.25",
    )
    return parser


def _run(arguments: Sequence[str]) -> None:
    options = parser().parse_args(arguments)
    if options.out == "":
        raise InputError("--out= is empty; give a folder")
    table = sweep_table.read(Path(options.workdir))
    out = options.out or str(Path(options.workdir) / "report")
    folders.check_destination(out, _OWN_FILES, "--out=")
    if Path(out).is_dir() and any(Path(out).iterdir()) and not (Path(out) / PAGE).exists():
        raise InputError(f"--out={out} holds files and no {PAGE}; give another folder")
    predictions = _evaluate_scores(table)
    pictures = _draw_figures(table, predictions)
    page = report_page.compose(table, list(predictions), list(pictures.values()), options.usable)
    with folders.atomic_folder(out, _OWN_FILES) as folder:
        for name, picture in pictures.items():
            (folder / name).write_bytes(picture.content)
        (folder / CSV).write_text(sweep_table.as_csv(table), encoding="utf-8")
        (folder / PAGE).write_text(page, encoding="utf-8")
    print(f"written: {Path(out) / PAGE}")


def _evaluate_scores(table: SweepTable) -> dict[str, list[PredictionAtStep]]:
    """Name of a score → its predictions by step, for the scores that have any."""
    predictions = {
        name: prediction.evaluate_predictions(table.rows.values(), score)
        for name, score in prediction.scores_of(table).items()
    }
    return {name: by_step for name, by_step in predictions.items() if by_step}


def _draw_figures(
    table: SweepTable, predictions: dict[str, list[PredictionAtStep]]
) -> dict[str, Picture]:
    """Name of a file → its picture, for everything that was measured."""
    pictures = {}
    for file, figure in FIGURES.items():
        needed = figure.needed_field
        if needed and not any(row.get(needed) for row in table.rows.values()):
            continue
        png = encode_png(figure.draw(table))
        pictures[file] = Picture(figure.title, figure.caption, png)
    if predictions:
        png = encode_png(figures.draw_predictions(predictions))
        picture = Picture(PREDICTION_FIGURE.title, PREDICTION_FIGURE.caption, png)
        pictures[PREDICTION_FIGURE.file] = picture
    return pictures


if __name__ == "__main__":
    sys.exit(main())
