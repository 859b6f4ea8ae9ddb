# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a run reports: `metrics.jsonl`, a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Record = dict[str, Any]
Report = Callable[[Record], None]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record as one line by one write, so that a kill leaves whole lines.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> append(path, {"step": 10, "loss": float("nan")})
      >>> path.read_text()
      '{"step": 10, "loss": null}\\n'
    """
    line = json.dumps({name: finite(value) for name, value in record.items()}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def finite(value: Any) -> Any:
    """The value, or None for a float that JSON cannot hold: NaN and ±Inf."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> list[Record]:
    """The records of a file, in order; a torn last line and a missing file count as nothing."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline was not finished
    return [json.loads(line) for line in lines]


def truncate(path: Path, step: int) -> None:
    """Drop the records beyond a step, which a resumed run will write again."""
    kept = [record for record in read(path) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def format_line(record: Mapping[str, Any]) -> str:
    """One parseable line, `name=value` for each field that has a value.

    Example:
      >>> format_line({"step": 10, "loss": 2.345678, "lr": 0.001, "bits_mean": None})
      'step=10 loss=2.3457 lr=0.001'
    """
    parts = [
        f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in record.items()
        if value is not None
    ]
    return " ".join(parts)


@contextlib.contextmanager
def progress(start: int, total: int) -> Iterator[tuple[Callable[[int], None], Report]]:
    """Show how training goes.

    Args:
      start: steps already taken.
      total: steps in all.

    Yields:
      `(advance, report)`: call `advance(step)` after each step and `report(record)` with each
      record of metrics. On a terminal they move a bar; elsewhere records become plain lines.
    """
    if not sys.stdout.isatty():
        yield (lambda step: None), (lambda record: print(format_line(record), flush=True))
        return
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(compact=True),
    )
    shown: Record = {}
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task("train", total=total, completed=start, shown="")

        def report(record: Record) -> None:
            shown.update(record)
            names = ("loss", "validation_loss", "bits_mean", "tokens_per_s")
            labels = ("loss", "validation", "bits", "tokens/s")
            formats = (".3f", ".3f", ".2f", ",.0f")
            text = [
                f"{label} {shown[name]:{form}}"
                for name, label, form in zip(names, labels, formats, strict=True)
                if shown.get(name) is not None
            ]
            bar.update(task, shown="  ".join(text))

        yield (lambda step: bar.update(task, completed=step)), report
