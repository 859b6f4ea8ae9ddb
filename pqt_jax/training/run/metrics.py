# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a run reports: `metrics.jsonl`, a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from pqt_jax.console import LenientStream, print_line
from pqt_jax.interchange import files

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
    files.append(path, json.dumps(files.replace_nonfinite(dict(record))) + "\n")


def read(path: Path) -> list[Record]:
    """The records of a file, in order; what is broken or no number, or no file, is nothing."""
    return [numeric_fields(record) for record in read_records(path)]


def read_records(path: Path) -> list[Record]:
    """The lines of a file that are JSON of a step, in order, whatever else is in them."""
    return [record for line in _lines(path) if (record := _parse(line)) is not None]


def numeric_fields(record: Mapping[str, Any]) -> Record:
    """The fields of a record that are a number, or null for one that was not finite."""
    return {name: value for name, value in record.items() if value is None or _is_number(value)}


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(errors="replace").split("\n") if line]


def _parse(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if type(step) is int and _is_number(step) else None


def _is_number(value: Any) -> bool:
    whole = type(value) is int and abs(value) < 2**63
    return whole or (isinstance(value, float) and math.isfinite(value))


def truncate(path: Path, step: int) -> int:
    """Drop the records beyond a step, which a resumed run will write again, and broken lines.

    Args:
      path: of metrics, or of any file with a JSON record of a step on each line.
      step: the last to keep.

    Returns:
      How many lines were broken.
    """
    if not path.exists():
        return 0
    records = [(line, _parse(line)) for line in _lines(path)]
    kept = [line for line, record in records if record and record["step"] <= step]
    files.write(path, "".join(f"{line}\n" for line in kept))
    return sum(record is None for _, record in records)


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
    if sys.stdout is None or not sys.stdout.isatty():
        yield (lambda step: None), (lambda record: print_line(format_line(record)))
        return
    digits, console = len(str(total)), Console(file=cast(Any, LenientStream(sys.stdout)))
    counter = (
        TextColumn("step", table_column=Column(no_wrap=True, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * digits + 1)),
    )
    numbers = TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True))
    left = TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True))
    wide = console.width >= 60  # else the bar gives way to the loss
    columns = (*counter, BarColumn(bar_width=None), numbers, left) if wide else (*counter, numbers)
    taken = 2 * digits + (30 if wide else 7)  # by all but the text, the bar being eight wide
    last: Record = {}
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("train", total=total, completed=start, shown="")

        def report(record: Record) -> None:
            last.update(record)
            names = ("loss", "validation_loss", "bits_mean", "tokens_per_s")
            labels = ("loss", "validation", "bits", "tokens/s")
            formats = (".3f", ".3f", ".2f", ",.0f")
            text = [
                f"{label} {last[name]:{form}}"
                for name, label, form in zip(names, labels, formats, strict=True)
                if last.get(name) is not None
            ]
            while text and len("  ".join(text)) > console.width - taken:
                text.pop()  # the last is the least important
            bar.update(task, completed=record["step"], shown="  ".join(text))

        yield (lambda step: bar.update(task, completed=step)), report


def peak_memory(devices: Sequence[Any]) -> dict[str, float]:
    """The most memory that was ever in use, in GB of 10⁹ bytes, as a field of a record.

    Args:
      devices: of this process.

    Returns:
      `device_peak_gb`, of the fullest device; where devices do not say, as CPUs, `process_peak_gb`,
      what the operating system counts for this process.
    """
    stats = [device.memory_stats() or {} for device in devices]
    if all("peak_bytes_in_use" in own for own in stats):
        return {"device_peak_gb": round(max(s["peak_bytes_in_use"] for s in stats) / 1e9, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_peak_gb": round(peak * unit / 1e9, 3)}


class Timer:
    """Seconds of the whole run and tokens per second of its steps, over all its parts.

    Args:
      before: seconds that earlier parts of the run took.
      stepping: seconds of those in steps, and so without compilation, validation and saving.
      tokens: that those steps predicted.
    """

    def __init__(self, before: float = 0.0, stepping: float = 0.0, tokens: int = 0):
        self.began, self.before = time.perf_counter(), before
        self.stepping, self.tokens = stepping, tokens
        self.lapped = self.part = (stepping, tokens)

    def start(self) -> None:
        """A step begins."""
        self.started = time.perf_counter()

    def stop(self, tokens: int) -> None:
        """It ends, having predicted so many tokens."""
        self.stepping += time.perf_counter() - self.started
        self.tokens += tokens

    def seconds(self) -> float:
        """Seconds since the run began, pauses between its parts left out."""
        return self.before + time.perf_counter() - self.began

    def rate(self) -> float:
        """Tokens per second over the whole run."""
        return self.tokens / self.stepping if self.tokens else 0.0

    def lap(self) -> float:
        """Tokens per second since the last call."""
        seconds, tokens = self.lapped
        self.lapped = (self.stepping, self.tokens)
        return (self.tokens - tokens) / (self.stepping - seconds)

    def hours(self, tokens: int) -> float:
        """Hours that so many tokens take at the rate of this part of the run, in steps alone."""
        seconds, before = self.part
        return tokens * (self.stepping - seconds) / (self.tokens - before) / 3600

    def state(self) -> dict[str, float]:
        """What a later part needs to go on counting: arguments of a new timer."""
        return {"before": self.seconds(), "stepping": self.stepping, "tokens": self.tokens}
