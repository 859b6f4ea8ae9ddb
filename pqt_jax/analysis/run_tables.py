# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tables about runs, as HTML: what they are and what they have reached, and how they differ."""

from typing import Any

import numpy as np

from pqt_jax.analysis import html_page, load, plot_style, run_reader
from pqt_jax.analysis.html_page import text
from pqt_jax.analysis.plot_style import Runs
from pqt_jax.analysis.run_reader import Recorded
from pqt_jax.training.config import schema
from pqt_jax.training.run import metrics

NOTHING = "–"
ABOUT = (
    "Losses are nats per token on the validation text, of the weights in each format; below each, "
    "its distance from the master weights. Of a run that is not finished, the newest is shown."
)
EVENTS = {"spike": "spikes", "skipped": "skipped"}  # kinds of records → columns
_STROKES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}


def names(runs: Runs) -> list[str]:
    """Number and name of each run, with its stroke in the pictures."""
    swatches = []
    for i, run in runs.items():
        color, dash, _ = plot_style.look(i)
        swatches.append(html_page.swatch(color, _STROKES[dash], f"{i + 1} {run.name}"))
    return swatches


def overview(runs: Runs) -> str:
    """A row for each run: model, training, losses, speed, and what went wrong, if anything did."""
    summaries = [metrics.numbers(run.summary or {}) for run in runs.values()]
    formats = [n for n in load.LABELS if n == "master" or any(n in s for s in summaries)]
    kinds = [kind for kind in EVENTS if any(_happened(run, kind) for run in runs.values())]
    head = ["run", "model", "parameters", "method", "seed", "steps", "tokens"]
    head += [load.LABELS[name] for name in formats]
    head += ["mean b<sub>t</sub>", "tokens/s", *(EVENTS[kind] for kind in kinds)]
    rows = []
    for name, run, summary in zip(names(runs), runs.values(), summaries, strict=True):
        events = [_happened(run, kind) or NOTHING for kind in kinds]
        losses = [_loss(run, summary, fmt) for fmt in formats]
        rows.append([name, *_about(run), *losses, _mean_bits(run), _speed(run, summary), *events])
    return html_page.table(head, rows, "numbers")


def _happened(run: Recorded, kind: str) -> str:
    """How many records say that something happened, as `spike`."""
    found = sum(bool(record.get(kind)) for record in run.records)
    return str(found) if found else ""


def _about(run: Recorded) -> list[str]:
    field = lambda name: run.fields.get(f"config.{name}", NOTHING)  # noqa: E731
    done = run_reader.steps_done(run)
    sides = f"{field('model.num_layers')} layers, {field('model.d_model')} wide"
    parameters = NOTHING if run.parameters is None else plot_style.count(run.parameters)
    unfinished = "" if run.summary else "<small>not finished</small>"
    return [
        f"{text(field('model.name'))}<small>{text(sides)}</small>",
        parameters,
        text(field("method")),
        text(field("seed")),
        f"{_whole(done)} of {_whole(field('steps'))}{unfinished}",
        plot_style.count(run_reader.tokens_at(run, done)),
    ]


def _whole(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else text(number)


def _loss(run: Recorded, summary: metrics.Record, name: str) -> str:
    """The loss of a format, with its distance from that of the master weights."""
    if not summary and name == "master":
        steps = [record["step"] for record in run.records if "validation_loss" in record]
        _, values = run_reader.curve(run, "validation_loss")
        return f"{_number(values[-1])}<small>at {steps[-1]:,}</small>" if steps else NOTHING
    method = run.fields.get("config.method")
    if name not in summary or (name == "mixed" and schema.METHODS.get(str(method)) == "none"):
        return NOTHING
    value, master = (np.nan if summary.get(n) is None else summary[n] for n in (name, "master"))
    distance = round(value - master, 4) + 0.0  # no -0.0000
    below = f"<small>{distance:+.4f}</small>" if np.isfinite(distance) else ""
    return _number(value) + ("" if name == "master" else below)


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "not finite"


def _mean_bits(run: Recorded) -> str:
    _, means = run_reader.curve(run, "bits_mean")
    if not run_reader.learns_bits(run) or not len(means):
        return NOTHING
    return f"{means[-1]:.2f}" if np.isfinite(means[-1]) else "not finite"


def _speed(run: Recorded, summary: metrics.Record) -> str:
    """Tokens per second: of the whole run, or the median of what is recorded so far."""
    _, rates = run_reader.curve(run, "tokens_per_s")
    rates = rates[np.isfinite(rates)]
    rate = summary.get("tokens_per_s") or (np.median(rates) if len(rates) else None)
    return NOTHING if rate is None else f"{rate:,.0f}"


def fields(runs: Runs) -> str:
    """The fields of `run.json` that differ, and those that do not, folded."""
    different, same = run_reader.compare(list(runs.values()))
    folded = html_page.folded(f"{len(same)} fields that all have in common", same)
    if len(runs) == 1:
        return html_page.section("Configuration", html_page.folded(f"{len(same)} fields", same))
    if not different:
        return html_page.section("Configuration", html_page.paragraph("No field differs."), folded)
    rows = [[_code(name), *map(_code, values)] for name, values in different.items()]
    own = html_page.table(["field", *names(runs)], rows)
    return html_page.section("Where the configurations differ", own, folded)


def _code(value: Any) -> str:
    return NOTHING if value is None else f"<code>{text(value)}</code>"
