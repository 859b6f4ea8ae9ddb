# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tables of runs as HTML: their results, and the fields in which their configurations differ."""

from typing import Any

import numpy as np

from pqt_jax.analysis import html_page, plot_style, run_reader
from pqt_jax.analysis.html_page import text
from pqt_jax.analysis.plot_style import Runs
from pqt_jax.analysis.run_reader import RecordedRun
from pqt_jax.training import methods, named_formats
from pqt_jax.training.run import metrics

NOTHING = "–"
ABOUT = (
    "Losses are nats per token on the validation text, of the weights in each format. Below each "
    "is its distance from the loss of the master weights. For a run that is not finished, the "
    "table has the newest recorded loss."
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


def results_table(runs: Runs) -> str:
    """A row for each run: model, training, losses, speed, and spikes and skipped steps if any."""
    summaries = [metrics.numeric_fields(run.summary or {}) for run in runs.values()]
    formats = [n for n in named_formats.LABELS if n == "master" or any(n in s for s in summaries)]
    kinds = [kind for kind in EVENTS if any(_count_events(run, kind) for run in runs.values())]
    head = ["run", "model", "parameters", "method", "seed", "steps", "tokens"]
    head += [named_formats.LABELS[name] for name in formats]
    head += ["mean b<sub>t</sub>", "tokens/s", *(EVENTS[kind] for kind in kinds)]
    rows = []
    for name, run, summary in zip(run_names(runs), runs.values(), summaries, strict=True):
        events = [_count_events(run, kind) or NOTHING for kind in kinds]
        losses = [_loss(run, summary, fmt) for fmt in formats]
        rows.append(
            [
                name,
                *_describe_training(run),
                *losses,
                _mean_bits(run),
                _speed(run, summary),
                *events,
            ]
        )
    return html_page.table(head, rows, "numbers")


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
    unfinished = "" if run.summary else "<small>not finished</small>"
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


def _loss(run: RecordedRun, summary: metrics.Record, name: str) -> str:
    """The loss of a format, with its distance from the loss of the master weights."""
    if not summary and name == "master":
        steps = [record["step"] for record in run.records if "validation_loss" in record]
        _, values = run_reader.read_curve(run, "validation_loss")
        return f"{_format_loss(values[-1])}<small>at {steps[-1]:,}</small>" if steps else NOTHING
    method = run.fields.get("config.method")
    if name not in summary or (name == "mixed" and _learns_no_bits(method)):
        return NOTHING
    value, master = (np.nan if summary.get(n) is None else summary[n] for n in (name, "master"))
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


def _speed(run: RecordedRun, summary: metrics.Record) -> str:
    """Tokens per second: of a finished run, or the median of the records so far."""
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
