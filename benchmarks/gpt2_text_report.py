# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What `gpt2_text.py` has measured: finished runs → a record → a table in Markdown."""

import json
import statistics
from pathlib import Path
from typing import Any

from pqt_jax.training.named_formats import LABELS
from pqt_jax.training.run import metrics, workdir

BEGIN, END = "<!-- table of benchmarks/gpt2_text.py -->", "<!-- end of the table -->"


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run left: summary, tokens/s of every lap, validation losses, evaluation."""
    records = metrics.read(folder / workdir.METRICS)
    return {
        "summary": json.loads((folder / workdir.SUMMARY).read_text()),
        "laps": [record["tokens_per_s"] for record in records if "loss" in record],
        "validation": [
            [record["step"], record["validation_loss"]]
            for record in records
            if "validation_loss" in record
        ],
        "data_fingerprint": workdir.read_metadata(folder)["data_fingerprint"],
        "evaluation": json.loads((folder / "evaluation.json").read_text()),
    }


def check_paired(runs: dict[str, dict[str, Any]], steps: int) -> None:
    """Raise ValueError unless every run took these steps on the same data."""
    for method, run in runs.items():
        if run["summary"]["steps"] != steps:
            raise ValueError(f"{method} took {run['summary']['steps']} steps, not {steps}")
        if run["data_fingerprint"] != runs["bf16"]["data_fingerprint"]:
            raise ValueError(f"{method} was trained on other data than bf16")


def markdown(record: dict[str, Any]) -> str:
    """Losses, time and memory of each method, then its weights in each format."""
    runs, text = record["runs"], record["text"]
    what = "A smoke test, whose numbers mean nothing. " if record["smoke"] else ""
    together = record["together"]
    order = "all at once, so without times" if together else "one after the other"
    lines = [
        f"{what}{record['steps']:,} steps of each method on one {record['device']}, {order}; "
        f"{text['bytes']:,} bytes of text in {text['documents']:,} documents (SHA-256 "
        f"`{text['sha256'][:12]}`); pqt_jax {record['pqt_jax']}, jax {record['jax']}, Python "
        f"{record['python']}, driver {record['driver']}.",
        "",
        "| method | validation loss | tokens/s | time over bf16 | memory | over bf16 | peak |",
        "|---|---|---|---|---|---|---|",
    ]
    base = runs["bf16"]
    for method, run in runs.items():
        rate, size = _rate(run), run["memory"]["memory_bytes"]
        times = ["—", "—"] if together else [f"{rate:,.0f}", f"{_rate(base) / rate - 1:+.2%}"]
        cells = [method, f"{run['validation'][-1][1]:.4f}", *times, f"{size / 1e9:.3f} GB"]
        cells += [f"{size / base['memory']['memory_bytes'] - 1:+.2%}"]
        cells += [f"{run['memory']['peak_bytes'] / 1e9:.3f} GB"]
        lines.append(f"| {' | '.join(cells)} |")
    names = list(dict.fromkeys(n for run in runs.values() for n in run["evaluation"]["weights"]))
    names.remove("master")
    lines += [
        "",
        "Every held-out document evaluated: nats per token of the master weights, and what each "
        "format adds, with 95 % intervals over documents.",
        "",
        f"| method | {' | '.join(LABELS[name] for name in ('master', *names))} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for method, run in runs.items():
        weights = run["evaluation"]["weights"]
        cells = [_shown(weights["master"]["loss"], "")]
        cells += [_shown(weights[n]["difference"], "+") if n in weights else "" for n in names]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", "Commands:", "", "```sh", *record["commands"], "```"]
    return "\n".join(lines)


def insert(path: Path, table: str) -> None:
    """Put the table between its marks in a file, or at the end of a file that has none."""
    old = path.read_text() if path.exists() else ""
    if BEGIN not in old:
        old += f"\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")


def _rate(run: dict[str, Any]) -> float:
    return statistics.median(run["laps"][1:])  # the first has the warm-up of the device in it


def _shown(interval: dict[str, float | None], sign: str) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "—"
    ends = [] if low is None or high is None else [low, high]
    first, *bounds = (f"{round(x, 4) + 0.0:{sign}.4f}" for x in (value, *ends))  # not -0.0000
    return first + (f" [{', '.join(bounds)}]" if bounds else "")
