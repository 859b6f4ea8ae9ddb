# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What runs have recorded so far, read beside their trainers: nothing is locked or changed.

RUN/run.json, metrics.jsonl, bits.jsonl, summary.json → `Recorded` → curves, fields that differ
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pqt_jax.errors import InputError, escaped, system_reason
from pqt_jax.training import state
from pqt_jax.training.config import schema
from pqt_jax.training.run import bit_history, metrics, workdir


class Recorded(NamedTuple):
    """One run.

    Attributes:
      name: for people; no other run of the same reading has it.
      fields: of `run.json` by dotted name, as "config.model.d_model".
      parameters: number of weights; None where this version cannot say.
      records: of `metrics.jsonl`, all of them.
      bits: of `bits.jsonl`; empty where no bits are learned, or were not yet recorded.
      summary: of a finished run; None before that.
    """

    name: str
    fields: dict[str, Any]
    parameters: int | None
    records: list[metrics.Record]
    bits: list[bit_history.Bits]
    summary: dict[str, Any] | None


def read(folders: Sequence[str]) -> list[Recorded]:
    """Read runs, finished or not.

    Args:
      folders: their workdirs.

    Raises:
      InputError: if one is not a run's, cannot be read, or is given twice.
    """
    metas = [workdir.read(Path(folder), option="") for folder in folders]
    paths = [Path(folder).resolve() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise InputError(f"{folders[i]} is given twice; give each run once")
    named = zip(_names(paths), folders, metas, strict=True)
    return [_read(name, Path(folder), meta) for name, folder, meta in named]


def _names(paths: Sequence[Path]) -> list[str]:
    """As few of the last parts of each path as tell it from the others."""

    def name(path: Path) -> str:
        parts = [p for p in path.parts if p != path.anchor] or [str(path)]
        own = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alike = lambda end: sum(f"/{p}".endswith(f"/{end}") for p in paths) > 1  # noqa: E731
        return escaped(next((end for end in own if not alike(end)), str(path)))

    return [name(path) for path in paths]


def _read(name: str, folder: Path, meta: workdir.Meta) -> Recorded:
    summary: Any = None
    try:
        records = metrics.read_json(folder / workdir.METRICS)
        bits = bit_history.read(folder / workdir.HISTORY)
        with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
            summary = json.loads((folder / workdir.SUMMARY).read_text())
    except OSError as error:
        file = Path(error.filename or "").name
        why = system_reason(error, "mend that, or leave the run out")
        raise InputError(f"{folder}: {file} in it cannot be read: {why}") from None
    parameters = None
    with contextlib.suppress(
        InputError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError
    ):
        config: Any = ConfigDict(meta["config"])
        config.model.attention = "xla"  # else JAX would look for devices
        parameters = state.count_parameters(config)
    run = Recorded(
        name,
        dict(schema.fields(meta)),
        parameters,
        records,
        bits,
        summary if isinstance(summary, dict) else None,
    )
    if not tokens_at(run, 1) > 0:
        raise InputError(f"{folder}: {workdir.RUN} in it does not say config.data.batch and length")
    return run


def tokens_at(run: Recorded, step: int) -> float:
    """Tokens that a run has been trained on after a step; NaN where its config does not say."""
    sizes = (run.fields.get(f"config.data.{name}") for name in ("batch", "length"))
    try:
        return float(np.prod([int(size) for size in sizes]) * step)  # pyright: ignore
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def steps_done(run: Recorded) -> int:
    """The last step that is recorded; 0 before the first."""
    return max((record["step"] for record in run.records), default=0)


def curve(run: Recorded, field: str) -> tuple[np.ndarray, np.ndarray]:
    """A field of the metrics over training.

    Returns:
      (tokens, values), float64 each, where the field is recorded; NaN where it was not finite.
    """
    own = [metrics.numbers(record) for record in run.records]
    at = lambda record: record.get("tokens") or tokens_at(run, record["step"])  # noqa: E731
    chosen = [(at(record), record[field]) for record in own if field in record]
    return tuple(np.array(chosen, float).reshape(-1, 2).T)  # pyright: ignore


def stretches(run: Recorded) -> np.ndarray:
    """Tokens between which each record of bits holds: float64, one more than there are records."""
    ends = [record.tokens or tokens_at(run, record.step) for record in run.bits]
    return np.array([0.0, *ends])


def learns_bits(run: Recorded) -> bool:
    """Whether any bit-width of a run is recorded, in whatever way."""
    return bool(run.bits or formats(run)) or bool(np.isfinite(curve(run, "bits_mean")[1]).any())


def formats(run: Recorded) -> dict[str, float]:
    """The newest share of the weights in each format; empty where there is none."""
    if run.bits:
        return run.bits[-1].formats
    shares = (run.summary or {}).get("formats")
    return metrics.numbers(shares) if isinstance(shares, dict) else {}


def compare(runs: Sequence[Recorded]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """(fields that differ: one value per run, fields that are the same), None where missing."""
    names = sorted({name for run in runs for name in run.fields})
    values = {name: [run.fields.get(name) for run in runs] for name in names}
    same = {name: own[0] for name, own in values.items() if all(v == own[0] for v in own)}
    return {name: own for name, own in values.items() if name not in same}, same
