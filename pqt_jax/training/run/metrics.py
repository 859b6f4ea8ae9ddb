# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Metrics of a run: the file `metrics.jsonl`, and a progress bar or plain lines on stdout."""

import contextlib
import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from pqt_jax.console import LenientStream, is_terminal, print_line
from pqt_jax.interchange import files

Record = dict[str, Any]
Report = Callable[[Record], None]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line by one write, so that a kill leaves only complete lines.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> append(path, {"step": 10, "loss": float("nan")})
      >>> path.read_text()
      '{"step": 10, "loss": null}\\n'
    """
    files.append(path, json.dumps(files.replace_nonfinite(dict(record))) + "\n")


def read(path: Path) -> list[Record]:
    """Read the numeric fields of the records of a file, in order; empty if there is no file."""
    return [numeric_fields(record) for record in read_records(path)]


def read_records(path: Path) -> list[Record]:
    """Read the lines of a file that are JSON objects with a step, in order; others are skipped."""
    return [record for line in _lines(path) if (record := _parse(line)) is not None]


def numeric_fields(record: Mapping[str, Any]) -> Record:
    """The fields of a record that are numbers, or null for numbers that were not finite."""
    return {name: value for name, value in record.items() if value is None or _is_number(value)}


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = files.read_bytes(path).decode(errors="replace")
    return [line for line in text.split("\n") if line]


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
    """Drop the records after a step, which a resumed run will write again, and broken lines.

    Args:
      path: a file with the JSON record of a step on each line.
      step: the last step to keep.

    Returns:
      The number of broken lines.
    """
    if not path.exists():
        return 0
    broken = 0

    def kept() -> Iterator[bytes]:
        nonlocal broken
        for lines in _blocks(path):
            # Almost every block has whole lines of steps that stay; it is not parsed.
            steps = _START.findall(lines)
            is_whole = len(steps) == lines.count(b"}\n") == lines.count(b"\n")
            if is_whole and max(map(int, steps)) <= step:
                yield lines
                continue
            for line in filter(None, lines.decode(errors="replace").split("\n")):
                record = _parse(line)
                broken += record is None
                if record and record["step"] <= step:
                    yield f"{line}\n".encode()

    files.write_chunks(path, kept())
    return broken


# The start of a line as `append` writes it. A line that was cut off has no end "}".
_START = re.compile(rb'\{"step": (\d{1,18})[,}]')


def _blocks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield the whole lines of a file, about `size` bytes at a time."""
    rest = b""
    with files.open_file(path) as file:
        while block := file.read(size):
            lines, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield lines + newline
    if rest:
        yield rest + b"\n"


def format_line(record: Mapping[str, Any]) -> str:
    """Format a record as one line, `name=value` for each field that says something.

    None says nothing, nor does the speed of the only device, or that no time is left.

    Example:
      >>> format_line({"step": 10, "loss": 2.345678, "hours_left": 0.0, "bits_mean": None})
      'step=10 loss=2.3457'
      >>> format_line({"step": 10, "tokens_per_s": 99.5, "tokens_per_s_per_device": 99.5})
      'step=10 tokens_per_s=99.5'
    """
    idle = {"hours_left": 0, "tokens_per_s_per_device": record.get("tokens_per_s")}
    parts = [
        f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in record.items()
        if value is not None and value != idle.get(name)
    ]
    return " ".join(parts)


@contextlib.contextmanager
def progress(start: int, total: int) -> Iterator[tuple[Callable[[int], None], Report]]:
    """Show the progress of training.

    Args:
      start: number of steps already taken.
      total: number of steps of the run.

    Yields:
      `(advance, report)`: call `advance(step)` after each step and `report(record)` with each
      record. On a terminal they update a progress bar; elsewhere each record is printed as a line.
    """
    if not is_terminal():
        yield (lambda step: None), (lambda record: print_line(format_line(record)))
        return
    digits, console = len(str(total)), Console(file=cast(Any, LenientStream(sys.stdout)))
    counter = (
        TextColumn("step", table_column=Column(no_wrap=True, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * digits + 1)),
    )
    numbers = TextColumn("{task.fields[shown]}", table_column=Column(no_wrap=True))
    left = TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True))
    wide = console.width >= 60  # in a narrow terminal the loss is shown instead of the bar
    columns = (*counter, BarColumn(bar_width=None), numbers, left) if wide else (*counter, numbers)
    taken = 2 * digits + (30 if wide else 7)  # columns of all but the text, with a bar of eight
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
                text.pop()  # the least important
            bar.update(task, completed=record["step"], shown="  ".join(text))

        yield (lambda step: bar.update(task, completed=step)), report


def peak_memory(devices: Sequence[Any]) -> dict[str, float]:
    """The peak memory so far in GB (10⁹ bytes), as a field of a record.

    Args:
      devices: the devices of this process.

    Returns:
      `device_peak_gb`, the largest of all devices. Devices without this count, such as CPUs, give
      `process_peak_gb`, the peak memory of this process by the operating system.
    """
    stats = [device.memory_stats() or {} for device in devices]
    if all("peak_bytes_in_use" in stat for stat in stats):
        return {"device_peak_gb": round(max(stat["peak_bytes_in_use"] for stat in stats) / 1e9, 3)}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_peak_gb": round(peak * unit / 1e9, 3)}


class Timer:
    """Measures the duration of a run and its tokens per second, across resumes.

    The parameter names are keys in saved checkpoints.

    Args:
      before: seconds that the run took before it was resumed.
      stepping: seconds of these that were spent in steps: not compiling, validating or saving.
      tokens: number of tokens predicted in these steps.
    """

    def __init__(self, before: float = 0.0, stepping: float = 0.0, tokens: int = 0):
        self.began, self.before = time.perf_counter(), before
        self.stepping, self.tokens = stepping, tokens
        self.lap_start = self.resumed_at = (stepping, tokens)

    def start(self) -> None:
        """Mark the begin of a step."""
        self.started = time.perf_counter()

    def stop(self, tokens: int) -> None:
        """Mark the end of a step in which so many tokens were predicted."""
        self.stepping += time.perf_counter() - self.started
        self.tokens += tokens

    def seconds(self) -> float:
        """Seconds that the run has taken, without the time between a stop and a resume."""
        return self.before + self.seconds_since_resume()

    def seconds_since_resume(self) -> float:
        """Seconds that this process has taken."""
        return time.perf_counter() - self.began

    def rate(self) -> float:
        """Tokens per second over the whole run."""
        return self.tokens / self.stepping if self.tokens else 0.0

    def lap(self) -> float:
        """Tokens per second since the last call."""
        seconds, tokens = self.lap_start
        self.lap_start = (self.stepping, self.tokens)
        return (self.tokens - tokens) / (self.stepping - seconds)

    def hours(self, tokens: int) -> float:
        """Hours that so many tokens take in steps, at the rate since the run was resumed."""
        seconds, before = self.resumed_at
        return tokens * (self.stepping - seconds) / (self.tokens - before) / 3600

    def state(self) -> dict[str, float]:
        """The arguments of a new `Timer` with which a resumed run continues."""
        return {"before": self.seconds(), "stepping": self.stepping, "tokens": self.tokens}
