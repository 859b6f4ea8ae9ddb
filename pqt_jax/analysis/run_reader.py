# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Read what runs have recorded so far, also while they train: nothing is locked or changed.

RUN/run.json, metrics.jsonl, bits.jsonl, summary.json → `RecordedRun` → curves, fields that differ
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pqt_jax.console import escaped
from pqt_jax.errors import MALFORMED, InputError, system_reason
from pqt_jax.interchange import files
from pqt_jax.training import state
from pqt_jax.training.config import saved_config
from pqt_jax.training.config.fields import flatten, from_values
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import bit_history, metrics, workdir
from pqt_jax.training.run.run_metadata import Meta

MARGIN = 0.5  # nats per token, as in the stability lab


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """The files of one run.

    Attributes:
      name: for people; unique among the runs that are read together.
      fields: `run.json` by dotted name, as "config.model.d_model".
      parameters: number of parameters; None if this version cannot build the model.
      records: the records of `metrics.jsonl`.
      bits: the records of `bits.jsonl`; empty if no bits are learned, or none are recorded yet.
      summary: `summary.json`; None if the run is not finished.
    """

    name: str
    fields: dict[str, Any]
    parameters: int | None
    records: list[metrics.Record]
    bits: list[bit_history.BitRecord]
    summary: dict[str, Any] | None


def read_runs(folders: Sequence[str]) -> list[RecordedRun]:
    """Read runs, finished or not.

    Args:
      folders: their workdirs.

    Raises:
      InputError: if one is not the workdir of a run, cannot be read, or is listed twice.
    """
    metas = [workdir.read_metadata(Path(folder), option="") for folder in folders]
    paths = [Path(folder).resolve() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise InputError(f"{folders[i]} is given twice; give each run once")
    names = _short_names(paths)
    return [
        _read(name, Path(folder), meta)
        for name, folder, meta in zip(names, folders, metas, strict=True)
    ]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path, in whole components, that no other path has."""

    def is_unique(end: str) -> bool:
        return sum(f"/{path}".endswith(f"/{end}") for path in paths) == 1

    def shorten(path: Path) -> str:
        names = [name for name in path.parts if name != path.anchor] or [str(path)]
        ends = ["/".join(names[-n:]) for n in range(1, len(names) + 1)]
        return escaped(next(filter(is_unique, ends), str(path)))

    return [shorten(path) for path in paths]


def _read(name: str, folder: Path, meta: Meta) -> RecordedRun:
    summary: Any = None
    try:
        records = metrics.read_records(folder / workdir.METRICS)
        bits = bit_history.read(folder / workdir.BIT_HISTORY)
        with contextlib.suppress(FileNotFoundError, ValueError):
            summary = files.read_json(folder / workdir.SUMMARY)
    except OSError as error:
        file = Path(error.filename or "").name
        reason = system_reason(error, "mend that, or leave the run out")
        raise InputError(f"{folder}: {file} in it cannot be read: {reason}") from None
    parameters = None
    with contextlib.suppress(*MALFORMED):
        config = from_values(RunConfig, saved_config.completed(meta["config"]))
        # "auto" would make JAX look for devices.
        model = dataclasses.replace(config.model, attention="xla")
        config = dataclasses.replace(config, model=model)
        parameters = state.count_parameters(config)
    run = RecordedRun(
        name=name,
        fields=dict(flatten(meta)),
        parameters=parameters,
        records=records,
        bits=bits,
        summary=summary if isinstance(summary, dict) else None,
    )
    if not tokens_at(run, 1) > 0:
        raise InputError(f"{folder}: {workdir.RUN} in it does not say config.data.batch and length")
    return run


def tokens_at(run: RecordedRun, step: int) -> float:
    """Tokens that a run was trained on up to a step; NaN if its config lacks batch or length."""
    sizes = (run.fields.get(f"config.data.{name}") for name in ("batch", "length"))
    try:
        return float(np.prod([int(size) for size in sizes]) * step)  # pyright: ignore
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def steps_done(run: RecordedRun) -> int:
    """The last recorded step; 0 if there is none."""
    return max((record["step"] for record in run.records), default=0)


def gave_up(run: RecordedRun) -> bool:
    """Whether the trainer ended a run since `config.watch.skips` steps in a row were skipped."""
    last = metrics.numeric_fields(run.records[-1]) if run.records else {}
    limit = run.fields.get("config.watch.skips")
    return isinstance(limit, int) and (last.get("in_a_row") or 0) >= limit


def has_diverged(run: RecordedRun) -> bool:
    """Whether a run gave up, or its newest loss is not finite, or is far above its least.

    Losses are medians of twenty parts of the run, or of fewer with three records each; far is more
    than `MARGIN`.
    """
    _, losses = read_curve(run, "loss")
    if gave_up(run) or not np.isfinite(losses[-1:]).all():
        return True
    finite = losses[np.isfinite(losses)]
    parts = np.array_split(finite, max(1, min(20, len(finite) // 3)))
    medians = [np.median(part) for part in parts if len(part)]
    return bool(medians) and bool(medians[-1] > min(medians) + MARGIN)


def read_curve(run: RecordedRun, field: str) -> tuple[np.ndarray, np.ndarray]:
    """A field of the metrics over training.

    Returns:
      (tokens, values), float64 each, of the records that have the field; a value that was not
      finite is NaN.
    """
    points = [
        (record.get("tokens") or tokens_at(run, record["step"]), record[field])
        for record in map(metrics.numeric_fields, run.records)
        if field in record
    ]
    return tuple(np.array(points, float).reshape(-1, 2).T)  # pyright: ignore


def bit_record_edges(run: RecordedRun) -> np.ndarray:
    """Tokens at which the records of bits begin and end: float64[records + 1], starting at 0."""
    ends = [record.tokens or tokens_at(run, record.step) for record in run.bits]
    return np.array([0.0, *ends])


def learns_bits(run: RecordedRun) -> bool:
    """Whether any bit-width of a run is recorded: by layer, as formats, or as a mean."""
    return bool(run.bits or latest_formats(run)) or bool(
        np.isfinite(read_curve(run, "bits_mean")[1]).any()
    )


def latest_formats(run: RecordedRun) -> dict[str, float]:
    """The share of the weights in each format, in the newest record; empty if there is none."""
    if run.bits:
        return run.bits[-1].formats
    shares = (run.summary or {}).get("formats")
    return metrics.numeric_fields(shares) if isinstance(shares, dict) else {}


def compare_fields(runs: Sequence[RecordedRun]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """(fields that differ: one value per run, fields that are the same); None for a missing one."""
    names = sorted({name for run in runs for name in run.fields})
    values = {name: [run.fields.get(name) for run in runs] for name in names}
    same = {name: first for name, (first, *rest) in values.items() if all(v == first for v in rest)}
    return {name: each for name, each in values.items() if name not in same}, same
