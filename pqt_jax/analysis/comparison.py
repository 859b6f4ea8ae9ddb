# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compare runs by pictures and one HTML page that holds them all: `pqt_jax.plot`."""

import re
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from pqt_jax.analysis import html_page, run_figures, run_reader, run_tables
from pqt_jax.analysis.html_page import Picture
from pqt_jax.analysis.plot_style import Runs
from pqt_jax.analysis.run_reader import RecordedRun
from pqt_jax.interchange import folders
from pqt_jax.interchange.png import encode_png
from pqt_jax.training.run import workdir

PAGE = "report.html"


class PictureKind(NamedTuple):
    """A kind of picture, and which runs have the data for it."""

    title: str
    caption: str
    draw: Callable[[Runs], Figure]
    shows: Callable[[RecordedRun], bool]


def _always(run: RecordedRun) -> bool:
    return True


def _has_bit_history(run: RecordedRun) -> bool:
    return bool(run.bits)


def _has_formats(run: RecordedRun) -> bool:
    return bool(run_reader.latest_formats(run))


PICTURES = {
    "loss.png": PictureKind(
        title="Loss",
        caption="The vertical scales ignore the first fifth of each run, and spikes. × marks the "
        "last finite loss of a run that diverged.",
        draw=run_figures.draw_losses,
        shows=_always,
    ),
    "bits.png": PictureKind(
        title="Bit-widths by layer and kernel",
        caption="Mean over the blocks of each matrix in the newest record, and of the whole model "
        "over training.",
        draw=run_figures.draw_bits,
        shows=run_reader.learns_bits,
    ),
    "bits_over_training.png": PictureKind(
        title="Bit-widths by layer over training",
        caption="Mean over the kernels of each layer. Each record covers the tokens since the "
        "previous one.",
        draw=run_figures.draw_bits_over_training,
        shows=_has_bit_history,
    ),
    "formats.png": PictureKind(
        title="Formats",
        caption="The smallest format that carries the learned bit-width of each block, in the "
        "newest record.",
        draw=run_figures.draw_formats,
        shows=_has_formats,
    ),
    "formats_over_training.png": PictureKind(
        title="Formats over training",
        caption="The same for all records. Each covers the tokens since the previous one.",
        draw=run_figures.draw_formats_over_training,
        shows=_has_bit_history,
    ),
}
_WRITTEN = re.compile("|".join(map(re.escape, (PAGE, *PICTURES))))


def compare_runs(options: Namespace) -> None:
    """Read runs, and write the folder with pictures and page.

    Args:
      options: the options of `pqt_jax.plot`.

    Raises:
      InputError: if a run cannot be read, or the folder holds files of another kind.
      OutputError: if the folder cannot be written.
    """
    runs = dict(enumerate(run_reader.read_runs(options.runs)))
    out = options.out or str(Path(options.runs[0]) / "plot" if len(runs) == 1 else "plot")
    workdir.check_not_in_checkpoints(folders.check_destination(out, _WRITTEN, "--out="), out)
    pictures = {
        name: Picture(kind.title, kind.caption, encode_png(kind.draw(shown)))
        for name, kind in PICTURES.items()
        if (shown := {i: run for i, run in runs.items() if kind.shows(run)})
    }
    page = make_page(runs, list(pictures.values()))
    with folders.atomic_folder(out, _WRITTEN) as folder:
        for name, picture in pictures.items():
            (folder / name).write_bytes(picture.content)
        (folder / PAGE).write_text(page, encoding="utf-8")
    print(f"written: {Path(out) / PAGE}")


def make_page(runs: Runs, pictures: Sequence[Picture]) -> str:
    """The HTML page: a table of results, the configurations, the pictures.

    Args:
      runs: runs by their numbers.
      pictures: pictures of these runs, in order.
    """
    names = ", ".join(run.name for run in runs.values())
    title = f"Run {names}" if len(runs) == 1 else f"{len(runs)} runs"
    title += f": {names}" if len(runs) > 1 and len(names) < 80 else ""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    overview = html_page.section(
        "Results", run_tables.results_table(runs), html_page.paragraph(run_tables.ABOUT)
    )
    sections = [overview, run_tables.configuration_section(runs)]
    sections += map(html_page.picture, pictures)
    learning = [run for run in runs.values() if run_reader.learns_bits(run)]
    if not learning:
        sections.append(html_page.paragraph("No learned bit-widths are recorded here."))
    if without_history := [run.name for run in learning if not run.bits]:
        missing = f"Without {workdir.BIT_HISTORY}, and so without bit-widths by layer: "
        sections.append(html_page.paragraph(missing + ", ".join(without_history) + "."))
    return html_page.page(title, f"As of {now}; {_describe_state(runs)}.", sections)


def _describe_state(runs: Runs) -> str:
    finished = sum(run.summary is not None for run in runs.values())
    if len(runs) > 1:
        return f"{finished} of {len(runs)} finished"
    return "finished" if finished else "still training, or stopped"
