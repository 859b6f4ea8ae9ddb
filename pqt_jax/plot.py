# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compare runs: `python -m pqt_jax.plot runs/quickstart runs/other`.

    runs, finished or still training → pictures, and one HTML page that holds them all

The folder that is written appears whole and replaces one that an earlier call has written. Runs are
read without their lock. Exit codes: 0 done; 1 the folder cannot be written; 2 the input cannot be
used (one line on stderr); 130 and 141 as of `errors.run`.
"""

import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pqt_jax import errors
from pqt_jax.analysis import html_page, run_figures, run_reader, run_tables
from pqt_jax.analysis.html_page import Picture
from pqt_jax.analysis.plot_style import Runs
from pqt_jax.analysis.run_reader import Recorded
from pqt_jax.errors import InputError
from pqt_jax.interchange import folders
from pqt_jax.training.config import command_line
from pqt_jax.training.run import run_plots, workdir

PAGE = "report.html"
# File → (title, caption, what draws it, which runs it is of).
PICTURES: dict[str, tuple[str, str, Callable[[Runs], Figure], Callable[[Recorded], bool]]] = {
    "loss.png": (
        "Loss",
        "Scales leave out the first fifth of each run, and spikes; × marks a loss that is no "
        "number from there on.",
        run_figures.losses,
        lambda run: True,
    ),
    "bits.png": (
        "Bit-widths by layer and kernel",
        "Mean over the blocks of each matrix in the newest record, and of the whole model over "
        "training.",
        run_figures.bits,
        run_reader.learns_bits,
    ),
    "bits_over_training.png": (
        "Bit-widths by layer over training",
        "Mean over the kernels of each layer; each record stands for the tokens since the last.",
        run_figures.bits_over_training,
        lambda run: bool(run.bits),
    ),
    "formats.png": (
        "Formats",
        "The smallest format that carries the learned bit-width of each block, in the newest "
        "record.",
        run_figures.formats,
        lambda run: bool(run_reader.formats(run)),
    ),
    "formats_over_training.png": (
        "Formats over training",
        "The same for every record, each of which stands for the tokens since the last.",
        run_figures.formats_over_training,
        lambda run: bool(run.bits),
    ),
}
_WRITTEN = re.compile("|".join(map(re.escape, (PAGE, *PICTURES))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read runs, and write pictures and page.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = command_line.Parser(
        prog="python -m pqt_jax.plot",
        description="Compare runs: pictures by tokens, and a page with them all, report.html.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="workdir of a run, also one at work")
    where = "default: RUN/plot of one run, and plot of several; replaces what plot has written"
    parser.add_argument("--out", metavar="DIR", help=where)
    given = parser.parse_args(arguments)
    if given.out == "":
        raise InputError("--out= is empty; give a folder")
    return given


def _run(given: Namespace) -> int:
    runs = dict(enumerate(run_reader.read(given.runs)))
    out = given.out or str(Path(given.runs[0]) / "plot" if len(runs) == 1 else "plot")
    workdir.refuse_checkpoints(folders.check(out, _WRITTEN), out)
    drawn = {
        name: Picture(title, caption, run_plots.png(draw(chosen)))
        for name, (title, caption, draw, shows) in PICTURES.items()
        if (chosen := {i: run for i, run in runs.items() if shows(run)})
    }
    content = compose(runs, list(drawn.values()))
    with folders.whole_folder(out, _WRITTEN) as folder:
        for name, picture in drawn.items():
            (folder / name).write_bytes(picture.content)
        (folder / PAGE).write_text(content, encoding="utf-8")
    print(f"written: {Path(out) / PAGE}")
    return 0


def compose(runs: Runs, drawn: Sequence[Picture]) -> str:
    """The page.

    Args:
      runs: by their numbers.
      drawn: pictures of them, in their order.

    Returns:
      HTML.
    """
    names = ", ".join(run.name for run in runs.values())
    title = f"Run {names}" if len(runs) == 1 else f"{len(runs)} runs"
    title += f": {names}" if len(runs) > 1 and len(names) < 80 else ""
    finished = sum(run.summary is not None for run in runs.values())
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    state = f"{finished} of {len(runs)} finished" if len(runs) > 1 else ""
    state = state or ("finished" if finished else "still training, or stopped")
    overview = html_page.section(
        "Results", run_tables.overview(runs), html_page.paragraph(run_tables.ABOUT)
    )
    parts = [overview, run_tables.fields(runs), *map(html_page.picture, drawn)]
    learning = [run for run in runs.values() if run_reader.learns_bits(run)]
    if not learning:
        parts.append(html_page.paragraph("No learned bit-widths are recorded here."))
    if bare := [run.name for run in learning if not run.bits]:
        missing = f"Without {workdir.HISTORY}, and so without bit-widths by layer: "
        parts.append(html_page.paragraph(missing + ", ".join(bare) + "."))
    return html_page.page(title, f"As of {now}; {state}.", parts)


if __name__ == "__main__":
    sys.exit(main())
