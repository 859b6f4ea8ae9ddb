# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The results of a sweep as a table: one row for each arm, learning rate and seed.

On disk a row is one line of JSON with a digest of its content. Rows lie in the files of the work
units (`work_units`), and in `runs.jsonl` when the sweep is finished.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pqt_jax.errors import MALFORMED, InputError, system_reason
from pqt_jax.interchange import files
from pqt_jax.lab.sweep_arms import read_options
from pqt_jax.lab.sweep_config import SweepOptions
from pqt_jax.training.run import digests, metrics, workdir

_FIELDS = {"arm", "learning_rate", "seed", "steps", "losses", "first_loss", "final_loss", "outcome"}
_FIELDS |= {"unigram_loss", "diverged_at", "spikes", "skipped", "held_out_losses", "bits_mean"}


@dataclass(frozen=True)
class SweepTable:
    """The runs of a sweep. Methods return arrays by seed and learning rate.

    Attributes:
      arms: names in the order of the config. The first arm, which is the baseline, is always
        included; other arms are included if they have runs.
      rates: learning rates in ascending order.
      seeds: seeds in ascending order.
      rows: (arm, rate, seed) → the record of that run, as `runs.make_train` describes it.
      options: the options of the sweep.
      metadata: the content of the sweep's `run.json`.
    """

    arms: list[str]
    rates: list[float]
    seeds: list[int]
    rows: dict[tuple[str, float, int], metrics.Record]
    options: SweepOptions
    metadata: dict[str, Any]

    @property
    def unigram_loss(self) -> float:
        """The entropy of the token frequencies of the sweep's text, in nats per token."""
        return next(iter(self.rows.values()))["unigram_loss"]

    def rows_of(self, arm: str, rate: float | None = None) -> Iterator[metrics.Record]:
        """Rows of an arm at one learning rate, or at all of them, ordered by rate and seed."""
        for one_rate in self.rates if rate is None else [rate]:
            for seed in self.seeds:
                if row := self.rows.get((arm, one_rate, seed)):
                    yield row

    def values(self, arm: str, field: str) -> np.ndarray:
        """A field of every run of an arm.

        Args:
          arm: its name.
          field: name of a field. A dotted name reads a nested field, such as
            `held_out_losses.master`.

        Returns:
          float64[seeds, rates]; NaN where the field is null or the run is missing.
        """
        *outer_names, name = field.split(".")

        def value(rate: float, seed: int) -> float:
            record = self.rows.get((arm, rate, seed), {})
            for outer_name in outer_names:
                record = record.get(outer_name, {})
            number = record.get(name)
            return np.nan if number is None else number

        return np.array(
            [[value(rate, seed) for rate in self.rates] for seed in self.seeds], np.float64
        )

    def stable_values(self, arm: str, field: str) -> np.ndarray:
        """The same as `values`, with NaN also for every run that diverged."""
        return np.where(self.diverged(arm), np.nan, self.values(arm, field))

    def best_rate_index(self, arm: str) -> int | None:
        """Index of the learning rate with the lowest median final loss over the seeds.

        A run that diverged counts as infinitely bad. The result is None if at every rate half of
        the runs or more diverged.
        """
        finals = self.stable_values(arm, "final_loss")
        medians = np.median(np.where(np.isnan(finals), np.inf, finals), axis=0)
        return int(np.argmin(medians)) if np.isfinite(medians).any() else None

    def best_final_loss(self, arm: str) -> float:
        """The mean final loss at the best learning rate, over the seeds that did not diverge.

        The result is NaN if there is no best rate.
        """
        best = self.best_rate_index(arm)
        return float(
            "nan" if best is None else np.nanmean(self.stable_values(arm, "final_loss")[:, best])
        )

    def diverged(self, arm: str) -> np.ndarray:
        """bool[seeds, rates]: whether the run diverged."""
        return self.has_outcome(arm, "diverged")

    def has_outcome(self, arm: str, outcome: str) -> np.ndarray:
        """bool[seeds, rates]: whether the run has this outcome (learned, stuck or diverged)."""
        outcomes = [
            [self.rows.get((arm, rate, seed), {}).get("outcome") for rate in self.rates]
            for seed in self.seeds
        ]
        return np.array(outcomes) == outcome

    def has_run(self, arm: str) -> np.ndarray:
        """bool[seeds, rates]: whether the run has been trained."""
        return np.isfinite(self.values(arm, "seed"))

    def loss_curves(self, arm: str, rate: float) -> np.ndarray:
        """float64[runs, points]: the recorded training losses at one learning rate."""
        curves = [row["losses"] for row in self.rows_of(arm, rate)]
        values = [[np.nan if loss is None else loss for loss in curve] for curve in curves]
        return np.array(values, np.float64).reshape(len(curves), len(curves[0]) if curves else 0)

    def sharpness_curves(self, arm: str, rate: float, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Measurements of sharpness at one learning rate.

        Args:
          arm: its name.
          rate: the learning rate.
          name: `sharpness` or `sharpness_of_weights`.

        Returns:
          int[points], the steps, and float64[runs, points], the values in percent.
        """
        curves = [row.get(name, []) for row in self.rows_of(arm, rate)]
        steps = np.array([step for step, _ in curves[0]] if curves else [], int)
        values = [[np.nan if value is None else value for _, value in curve] for curve in curves]
        return steps, np.array(values, np.float64).reshape(len(curves), steps.size)


def encode_row(row: metrics.Record) -> str:
    """One line of a file of rows: the row as JSON, with a digest of its content."""
    return json.dumps({**row, "digest": digests.json_digest(row)[:16]}) + "\n"


def read_rows(path: Path) -> list[metrics.Record]:
    """The rows in one file.

    Raises:
      InputError: if the file cannot be read, or a line is not a row that a sweep has written.
    """
    number = 0
    try:
        rows = []
        for number, line in enumerate(files.read_bytes(path).splitlines(), 1):  # noqa: B007
            row = files.parse_json(line)
            digest = row.pop("digest", None)
            if not _FIELDS <= row.keys() or digest != digests.json_digest(row)[:16]:
                raise ValueError
            rows.append(row)
    except OSError as error:
        why = system_reason(error, "move it away and run the sweep again")
        raise InputError(f"{path} cannot be read: {why}") from None
    except MALFORMED:
        raise InputError(
            f"{path}: line {number} is not a row as a sweep writes it; delete the file and run "
            "the sweep again"
        ) from None
    return rows


def read(folder: Path) -> SweepTable:
    """Read the results of a sweep. The sweep may still be running.

    Args:
      folder: the workdir of the sweep.

    Raises:
      InputError: if the folder holds no results of a sweep, or a file of rows is damaged.
    """
    metadata = workdir.read_metadata(folder, "", workdir.SWEEP)
    try:
        options = read_options(metadata["config"]["sweep"])
    except MALFORMED as error:
        raise InputError(
            f"{folder}: {workdir.RUN} in it is damaged or of another version: {error}"
        ) from None
    paths = sorted((folder / workdir.WORK_UNITS).glob("*.jsonl"))
    rows = [row for path in paths for row in read_rows(path)]
    if not rows:
        raise InputError(f"{folder} holds no runs of a sweep yet; give the workdir of one")
    return from_rows(rows, [arm[0] for arm in options.arms], options, metadata)


def from_rows(
    rows: Iterable[metrics.Record],
    planned: Sequence[str],
    options: SweepOptions,
    metadata: dict[str, Any],
) -> SweepTable:
    """The table of some rows.

    Args:
      rows: the records of runs.
      planned: names of the arms in the order of the config.
      options: the options of the sweep.
      metadata: the content of the sweep's `run.json`.
    """
    by_run = {(row["arm"], row["learning_rate"], row["seed"]): row for row in rows}
    with_runs = {arm for arm, _, _ in by_run}
    return SweepTable(
        arms=[arm for i, arm in enumerate(planned) if i == 0 or arm in with_runs],
        rates=sorted({rate for _, rate, _ in by_run}),
        seeds=sorted({seed for _, _, seed in by_run}),
        rows=by_run,
        options=options,
        metadata=metadata,
    )


def as_csv(table: SweepTable) -> str:
    """The table as CSV: one line for each run, without the fields that hold lists."""
    flat_rows = []
    for row in table.rows.values():
        flat = {name: value for name, value in row.items() if not isinstance(value, list | dict)}
        flat |= {f"held_out_{name}": loss for name, loss in row["held_out_losses"].items()}
        flat |= {f"bits_{name}": bits for name, bits in row.get("stored_bits", {}).items()}
        flat_rows.append(flat)
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in flat_rows for name in row))
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(flat_rows)
    return text.getvalue()
