# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tables of runs as HTML: their results, and the fields in which their configurations differ."""

from typing import Any

import numpy as np

from pqt_jax.analysis import differences, html_page, plot_style, run_reader
from pqt_jax.analysis.html_page import text
from pqt_jax.analysis.intervals import Interval
from pqt_jax.analysis.plot_style import Runs
from pqt_jax.analysis.run_reader import RecordedRun
from pqt_jax.training import methods, named_formats
from pqt_jax.training.run import metrics

NOTHING = "–"
ABOUT_LOSSES = (
    "Validation losses in nats per token, of the weights in each format. Below each is its "
    "distance from the loss of the master weights. For a run that is not finished, the table has "
    "the newest recorded loss."
)
ABOUT_DIFFERENCES = (
    "Of finished runs: the mean difference between runs of the same seed, with Student's 95 % "
    "interval from two seeds on. Runs without a common seed, or of other numbers of tokens, have "
    "none. The loss of the baseline is the mean over its seeds."
)
EVENTS = {"spike": "spikes", "skipped": "skipped"}  # kinds of records → columns
_STROKES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}


def run_names(runs: Runs) -> list[str]:
    """Number and name of each run, with its line in the pictures."""
    swatches = []
    for i, run in runs.items():
        color, dash, _ = plot_style.run_style(i)
        swatches.append(html_page.swatch(color, _STROKES[dash], f"{i + 1} {run.name}"))
    return swatches


def training_table(runs: Runs) -> str:
    """A row for each run: model, training, speed, and spikes and skipped steps if any."""
    kinds = [kind for kind in EVENTS if any(_count_events(run, kind) for run in runs.values())]
    head = ["run", "model", "parameters", "method", "seed", "steps", "tokens"]
    head += ["mean b<sub>t</sub>", "tokens/s", *(EVENTS[kind] for kind in kinds)]
    rows = []
    for name, run in zip(run_names(runs), runs.values(), strict=True):
        events = [_count_events(run, kind) or NOTHING for kind in kinds]
        rows.append([name, *_describe_training(run), _mean_bits(run), _speed(run), *events])
    return html_page.table(head, rows, "numbers")


def loss_table(runs: Runs) -> str:
    """A row for each run: its validation loss with the weights in each format."""
    formats = _scored_formats(runs)
    rows = [
        [name, *(_loss(run, fmt) for fmt in formats)]
        for name, run in zip(run_names(runs), runs.values(), strict=True)
    ]
    head = ["run", *(named_formats.LABELS[name] for name in formats)]
    return html_page.table(head, rows, "numbers")


def difference_table(runs: Runs, baseline: int) -> str:
    """The losses of the baseline, and what those of each other group of seeds add to them.

    Args:
      runs: finished runs by their numbers, in two groups of seeds or more.
      baseline: the number of a run of the baseline.
    """
    base, groups = differences.split(runs, baseline)
    formats = [name for name in _scored_formats(runs) if name != "mixed"]
    losses = [
        float(np.mean([differences.final_loss(run, name) for run in base.values()]))
        for name in formats
    ]
    rows = [[f"{_group_name(base)}<small>baseline</small>", *map(_format_loss, losses)]]
    for group in groups:
        cells = [differences.final_difference(group, base, name) for name in formats]
        pairs = differences.describe_final_pairs(group, base)
        rows.append(
            [f"{_group_name(group)}<small>{pairs}</small>", *map(_format_difference, cells)]
        )
    head = ["runs", *(named_formats.LABELS[name] for name in formats)]
    return html_page.table(head, rows, "numbers")


def _group_name(group: Runs) -> str:
    color, dash, _ = plot_style.run_style(min(group))
    return html_page.swatch(color, _STROKES[dash], differences.group_label(group))


def _format_difference(difference: Interval) -> str:
    if np.isnan(difference.value):
        return NOTHING
    value, low, high = (f"{round(x, 4) + 0.0:+.4f}" for x in difference)  # + 0.0: not -0.0000
    return value + ("" if np.isnan(difference.low) else f"<small>[{low}, {high}]</small>")


def _scored_formats(runs: Runs) -> list[str]:
    """The master weights, and the formats that a summary has a loss of."""
    summaries = [metrics.numeric_fields(run.summary or {}) for run in runs.values()]
    return [n for n in named_formats.LABELS if n == "master" or any(n in s for s in summaries)]


def _count_events(run: RecordedRun, kind: str) -> str:
    """The number of records of an event; empty if there are none."""
    count = sum(bool(record.get(kind)) for record in run.records)
    return str(count) if count else ""


def _describe_training(run: RecordedRun) -> list[str]:
    def field(name: str) -> Any:
        return run.fields.get(f"config.{name}", NOTHING)

    done = run_reader.steps_done(run)
    shape = f"{field('model.num_layers')} layers, {field('model.d_model')} wide"
    parameters = NOTHING if run.parameters is None else plot_style.format_count(run.parameters)
    ended = "diverged" if run_reader.gave_up(run) else "not finished"
    unfinished = "" if run.summary else f"<small>{ended}</small>"
    return [
        f"{text(field('model.name'))}<small>{text(shape)}</small>",
        parameters,
        text(field("method")),
        text(field("seed")),
        f"{_format_integer(done)} of {_format_integer(field('steps'))}{unfinished}",
        plot_style.format_count(run_reader.tokens_at(run, done)),
    ]


def _format_integer(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else text(number)


def _loss(run: RecordedRun, name: str) -> str:
    """The loss of a format, with its distance from the loss of the master weights."""
    summary = metrics.numeric_fields(run.summary or {})
    if not summary and name == "master":
        steps = [record["step"] for record in run.records if "validation_loss" in record]
        _, values = run_reader.read_curve(run, "validation_loss")
        return f"{_format_loss(values[-1])}<small>at {steps[-1]:,}</small>" if steps else NOTHING
    method = run.fields.get("config.method")
    if name not in summary or (name == "mixed" and _learns_no_bits(method)):
        return NOTHING
    value, master = (differences.final_loss(run, n) for n in (name, "master"))
    distance = round(value - master, 4) + 0.0  # + 0.0: not -0.0000
    below = f"<small>{distance:+.4f}</small>" if np.isfinite(distance) else ""
    return _format_loss(value) + ("" if name == "master" else below)


def _learns_no_bits(method: Any) -> bool:
    record = methods.METHODS.get(str(method))
    return record is not None and not record.learns_bits


def _format_loss(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "not finite"


def _mean_bits(run: RecordedRun) -> str:
    _, means = run_reader.read_curve(run, "bits_mean")
    if not run_reader.learns_bits(run) or not len(means):
        return NOTHING
    return f"{means[-1]:.2f}" if np.isfinite(means[-1]) else "not finite"


def _speed(run: RecordedRun) -> str:
    """Tokens per second: of a finished run, or the median of the records so far."""
    summary = metrics.numeric_fields(run.summary or {})
    _, rates = run_reader.read_curve(run, "tokens_per_s")
    rates = rates[np.isfinite(rates)]
    rate = summary.get("tokens_per_s") or (np.median(rates) if len(rates) else None)
    return NOTHING if rate is None else f"{rate:,.0f}"


def configuration_section(runs: Runs) -> str:
    """The fields of `run.json` that differ, and those that do not, hidden until asked for."""
    different, same = run_reader.compare_fields(list(runs.values()))
    common = html_page.folded(f"{len(same)} fields that all have in common", same)
    if len(runs) == 1:
        return html_page.section("Configuration", html_page.folded(f"{len(same)} fields", same))
    if not different:
        return html_page.section("Configuration", html_page.paragraph("No field differs."), common)
    rows = [[_code(name), *map(_code, values)] for name, values in different.items()]
    table = html_page.table(["field", *run_names(runs)], rows)
    return html_page.section("Where the configurations differ", table, common)


def _code(value: Any) -> str:
    return NOTHING if value is None else f"<code>{text(value)}</code>"
