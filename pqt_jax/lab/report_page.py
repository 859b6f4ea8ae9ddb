# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The HTML page about a sweep: which figures and tables it has, and the text around them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from pqt_jax.analysis import html_page
from pqt_jax.analysis.html_page import Picture, paragraph, section
from pqt_jax.console import format_quantity
from pqt_jax.lab import figures, prediction, tables
from pqt_jax.lab.sweep_table import SweepTable

_BAND = "median over seeds and the middle eighty percent."


@dataclass(frozen=True)
class TableFigure:
    """A figure that is drawn from the table of a sweep.

    Attributes:
      title: heading on the page.
      caption: text below the figure.
      draw: the function that draws it.
      needed_field: a field of the rows; the figure is left out if no run has it. Empty: none.
    """

    title: str
    caption: str
    draw: Callable[[SweepTable], Figure]
    needed_field: str = ""


@dataclass(frozen=True)
class _PredictionFigure:
    file: str
    title: str
    caption: str


FIGURES = {  # by file name, in the order of the page
    "finals.png": TableFigure(
        title="Final loss and divergence by learning rate",
        caption=f"Left: {_BAND} A run that diverged counts as worse than any other. Below the "
        "dotted line, if it is in view, a model has learned more than token frequencies. Right: "
        "share of the seeds that diverged, with exact 95 % intervals, the arms side by side.",
        draw=figures.draw_final_losses,
    ),
    "heat.png": TableFigure(
        title="Every run",
        caption="Final loss by seed and learning rate; × marks a run that diverged, ○ one that is "
        "stuck. The scale ends at the ninth decile of the runs that did not diverge.",
        draw=figures.draw_heat_maps,
    ),
    "losses.png": TableFigure(
        title="Loss of the training batches", caption=f"The {_BAND}", draw=figures.draw_losses
    ),
    "sharpness.png": TableFigure(
        title="Sharpness by step",
        caption="Sharpness of the loss at the logits of the last token, on fixed windows of "
        f"held-out text; runs that have diverged are included. The {_BAND}",
        draw=figures.draw_sharpness,
        needed_field="sharpness",
    ),
    "sharpness_of_weights.png": TableFigure(
        title="Sharpness by step, in the space of weights",
        caption="Sharpness of the loss on the same windows, where every array of weights may move "
        f"by a share of its norm. The {_BAND}",
        draw=figures.draw_weight_sharpness,
        needed_field="sharpness_of_weights",
    ),
}
PREDICTION_FIGURE = _PredictionFigure(
    file="warning.png",
    title="Does sharpness warn?",
    caption="Left: the area under the ROC curve when the score at a step is used to predict "
    "divergence after it, over the runs of all arms and rates that have not diverged by then, "
    "with 95 % intervals; 0.5 is chance. Middle: the same within runs of one arm and rate, and in "
    "grey the interval that chance gives for sharpness. Right: ROC curves of the first score at "
    "some steps.",
)


def compose(
    table: SweepTable, scores: Sequence[str], pictures: Sequence[Picture], usable: float
) -> str:
    """The page as HTML.

    Args:
      table: the sweep's table.
      scores: names of the scores that have predictions.
      pictures: in the order of the page.
      usable: nats above the baseline's best loss up to which a learning rate is usable.
    """
    level = tables.usable_level(table, usable)
    sections = [
        *([html_page.note(_too_short(table))] if tables.is_too_short(table) else []),
        *_result_sections(table, level),
        *map(html_page.picture, pictures),
        *_alarm_sections(table, scores),
        section("How it was made", html_page.folded("the configuration", _config_fields(table))),
    ]
    return html_page.page("Stability of training", _introduction(table, level, usable), sections)


def _introduction(table: SweepTable, level: float, usable: float) -> str:
    options, versions = table.options, table.metadata["versions"]
    planned = len(options.arms) * len(options.learning_rates) * len(options.seeds)
    missing = planned - len(table.rows)
    to_come = f" ({missing} to come)" if missing > 0 else ""
    return (
        f"{format_quantity(len(table.rows), 'run')}: "
        f"{format_quantity(len(table.arms), 'way to train')}, "
        f"{format_quantity(len(table.rates), 'learning rate')}, "
        f"{format_quantity(len(table.seeds), 'seed')} each{to_come}, "
        f"with jax {versions.get('jax')} and pqt_jax {versions.get('pqt_jax')}. "
        "A run has diverged if a loss is not finite, or if a loss and the "
        f"median of the {format_quantity(options.window, 'loss')} from it on are more than "
        f"{_format_nats(options.margin)} above the least such median before it or the first "
        "loss, or if so many steps in a row lack a finite gradient that the trainer would have "
        "ended. A run is stuck if it has not diverged and its final loss is not below the entropy "
        f"of the token frequencies. {_usable_sentence(table, level, usable)} Intervals are 95 % "
        "confidence intervals: exact binomial ones for shares, Student's for means and for "
        "differences paired by seed. * marks a difference whose interval excludes 0; there is no "
        "correction for multiple comparisons but where it is said."
    )


def _too_short(table: SweepTable) -> str:
    baseline = table.arms[0]
    steps = max(row["steps"] for row in table.rows.values())
    return (
        f"Too short to mean anything: after {format_quantity(steps, 'step')} {baseline}, the "
        f"baseline, has a final loss of {table.best_final_loss(baseline):.4f} at its best rate. "
        f'The token frequencies alone give {table.unigram_loss:.4f}. So "stuck" says '
        "here that training has hardly begun or that no rate suits, and a difference between arms "
        "is one of the first steps."
    )


def _format_nats(nats: float) -> str:
    return f"{nats:g} nat{'' if nats == 1 else 's'}"


def _usable_sentence(table: SweepTable, level: float, usable: float) -> str:
    baseline = table.arms[0]
    if math.isfinite(level) and len(table.rates) == 1:
        return "One learning rate has no range of usable rates."
    if math.isfinite(level):
        return (
            f"A rate is usable if the final loss is at most {level:.4f}, "
            f"{_format_nats(usable)} above the median of {baseline} at its best rate."
        )
    if not table.has_run(baseline).any():
        return f"{baseline}, the baseline of all comparisons, has no runs yet."
    return f"No rate of {baseline} is best: at each of them half of the runs or more diverged."


def _result_sections(table: SweepTable, level: float) -> list[str]:
    baseline = table.arms[0]
    by_rate = (
        "At each rate: the mean difference over the seeds for which neither run diverged, and "
        "their number."
    )
    sections = [section("The arms", tables.overview_table(table, level))]
    if len(table.rates) > 1:
        title = f"Against {baseline}: the range of rates, paired by seed"
        sections.append(section(title, tables.rate_range_table(table, level)))
    return [
        *sections,
        section(
            f"Against {baseline}: final loss of the training batches",
            paragraph(by_rate),
            tables.paired_loss_table(table, "final_loss"),
        ),
        section(
            f"Against {baseline}: held-out loss of the weights as they are",
            paragraph(
                f"{by_rate} Weights are not sampled; operands of products are reduced as in "
                "training."
            ),
            tables.paired_loss_table(table, "held_out_losses.master"),
        ),
        section(
            "Held-out loss in fewer bits",
            paragraph(
                "At each arm's best rate: the loss of the weights as they are, and what rounding "
                "them to each format adds."
            ),
            tables.format_loss_table(table),
        ),
        section(
            f"Against {baseline}'s weights as they are: held-out loss in fewer bits",
            paragraph(
                "At each arm's best rate, paired by seed. Here * marks a difference that is "
                "significant by Holm's correction over the whole table."
            ),
            tables.rounded_loss_table(table),
        ),
    ]


def _alarm_sections(table: SweepTable, scores: Sequence[str]) -> list[str]:
    functions = prediction.scores_of(table)
    alarms = {}
    for name in scores:
        if alarm := prediction.evaluate_alarm(table.rows.values(), functions[name]):
            alarms[name] = alarm
    if not alarms:
        return []
    explanation = (
        "The threshold is the score that one in twenty of the runs that did not diverge ever "
        "exceeds."
    )
    return [section("How early", paragraph(explanation), tables.alarm_table(alarms))]


def _config_fields(table: SweepTable) -> dict[str, Any]:
    """The fields of the sweep, arms first, and then the sections of the training config."""
    config = table.metadata["config"]
    fields = {"arms": table.options.arms, **config["sweep"]}
    fields |= {name: value for name, value in config.items() if name not in ("sweep", "simulate")}
    return fields
