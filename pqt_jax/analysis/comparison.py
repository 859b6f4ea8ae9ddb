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

from pqt_jax.analysis import (
    difference_figure,
    differences,
    html_page,
    run_figures,
    run_reader,
    run_tables,
)
from pqt_jax.analysis.html_page import Picture
from pqt_jax.analysis.plot_style import Runs
from pqt_jax.analysis.run_reader import RecordedRun
from pqt_jax.console import print_error
from pqt_jax.errors import InputError
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
        caption="The vertical scales ignore the first fifth of each run, spikes, and runs that "
        f"diverged: the loss is not finite at the end, or {run_reader.MARGIN} nats above its "
        "least. × marks the last finite loss of such a run.",
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
DIFFERENCE = "difference.png"  # it needs a baseline, and so runs that differ by more than a seed
_WRITTEN = re.compile("|".join(map(re.escape, (PAGE, DIFFERENCE, *PICTURES))))


def compare_runs(options: Namespace) -> None:
    """Read runs, and write the folder with pictures and page.

    Args:
      options: the options of `pqt_jax.plot`.

    Raises:
      InputError: if a run cannot be read, the baseline is none of them, or the folder holds files
        of another kind.
      OutputError: if the folder cannot be written.
    """
    runs = dict(enumerate(run_reader.read_runs(options.runs)))
    baseline, reason = _choose_baseline(options, runs)
    out = options.out or str(Path(options.runs[0]) / "plot" if len(runs) == 1 else "plot")
    workdir.check_not_in_checkpoints(folders.check_destination(out, _WRITTEN, "--out="), out)
    pictures = {}
    for name, kind in PICTURES.items():
        if shown := {i: run for i, run in runs.items() if kind.shows(run)}:
            pictures[name] = Picture(kind.title, kind.caption, encode_png(kind.draw(shown)))
        if name == "loss.png" and _differ(runs):
            pictures[DIFFERENCE] = _draw_differences(runs, baseline, reason)
    page = make_page(runs, baseline, list(pictures.values()))
    if missing := _why_no_table(runs, baseline):
        print_error(f"warning: {missing}")
    with folders.atomic_folder(out, _WRITTEN) as folder:
        for name, picture in pictures.items():
            (folder / name).write_bytes(picture.content)
        (folder / PAGE).write_text(page, encoding="utf-8")
    print(f"written: {Path(out) / PAGE}")


def _choose_baseline(options: Namespace, runs: Runs) -> tuple[int, str]:
    """(number of the baseline, why it is the baseline)."""
    if options.baseline is None:
        number = differences.default_baseline(runs)
        is_bf16 = runs[number].fields.get("config.method") == "bf16"
        why = "the first run with method bf16" if is_bf16 else "the first run"
        return number, f"{why}; --baseline=RUN chooses another"
    paths = [Path(folder).resolve() for folder in options.runs]
    if (path := Path(options.baseline).resolve()) not in paths:
        raise InputError(f"--baseline={options.baseline} is not among the runs; give one of them")
    return paths.index(path), "as --baseline says"


def _differ(runs: Runs) -> bool:
    """Whether runs differ by more than their seeds."""
    return len(differences.group_by_seed(runs)) > 1


def _draw_differences(runs: Runs, baseline: int, reason: str) -> Picture:
    base, _ = differences.split(runs, baseline)
    caption = (
        f"The baseline is {differences.group_label(base)} ({reason}); below zero is better. Runs "
        "that differ by their seed alone are one curve: the mean of the differences between runs "
        "of the same seed, with Student's 95 % interval from two seeds on. The vertical scales "
        "ignore the first fifth, spikes, and curves of which a run diverged."
    )
    figure = difference_figure.draw_differences(runs, baseline)
    return Picture("Loss minus the baseline's", caption, encode_png(figure))


def make_page(runs: Runs, baseline: int, pictures: Sequence[Picture]) -> str:
    """The HTML page: tables of runs and losses, the configurations, the pictures.

    Args:
      runs: runs by their numbers.
      baseline: the number of the run with which the others are compared.
      pictures: pictures of these runs, in order.
    """
    names = ", ".join(run.name for run in runs.values())
    title = f"Run {names}" if len(runs) == 1 else f"{len(runs)} runs"
    title += f": {names}" if len(runs) > 1 and len(names) < 80 else ""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    sections = [
        html_page.section("Runs", run_tables.training_table(runs)),
        html_page.section(
            "Loss in fewer bits",
            run_tables.loss_table(runs),
            html_page.paragraph(run_tables.ABOUT_LOSSES),
        ),
        *_difference_section(runs, baseline),
        run_tables.configuration_section(runs),
    ]
    sections += map(html_page.picture, pictures)
    learning = [run for run in runs.values() if run_reader.learns_bits(run)]
    if not learning:
        sections.append(html_page.paragraph("No learned bit-widths are recorded here."))
    if without_history := [run.name for run in learning if not run.bits]:
        missing = f"Without {workdir.BIT_HISTORY}, and so without bit-widths by layer: "
        sections.append(html_page.paragraph(missing + ", ".join(without_history) + "."))
    return html_page.page(title, f"As of {now}; {_describe_state(runs)}.", sections)


def _difference_section(runs: Runs, baseline: int) -> list[str]:
    """The table of differences, or why there is none; nothing where one group has all runs."""
    if not _differ(runs):
        return []
    title = "Loss minus the baseline's"
    if missing := _why_no_table(runs, baseline):
        return [html_page.section(title, html_page.paragraph(f"There is {missing}."))]
    finished, base = _finished(runs), differences.split(runs, baseline)[0]
    table = run_tables.difference_table(finished, min(_finished(base)))
    return [html_page.section(title, table, html_page.paragraph(run_tables.ABOUT_DIFFERENCES))]


def _why_no_table(runs: Runs, baseline: int) -> str:
    """Why there is no table of differences, in one line; empty if there is one, or none is due."""
    if not _differ(runs):
        return ""
    base, _ = differences.split(runs, baseline)
    if not _finished(base):
        diverged = any(map(run_reader.gave_up, base.values()))
        ended = "has diverged" if diverged else "is not finished"
        return f"no table of differences: the baseline, {differences.group_label(base)}, {ended}"
    if not _differ(_finished(runs)):
        return "no table of differences: only the baseline is finished"
    return ""


def _finished(runs: Runs) -> Runs:
    return {i: run for i, run in runs.items() if run.summary}


def _describe_state(runs: Runs) -> str:
    finished = sum(run.summary is not None for run in runs.values())
    if len(runs) > 1:
        return f"{finished} of {len(runs)} finished"
    if run_reader.gave_up(runs[0]):
        return "diverged: too many steps in a row were not finite"
    return "finished" if finished else "still training, or stopped"
