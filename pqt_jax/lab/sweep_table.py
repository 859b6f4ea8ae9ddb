# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The table of a sweep as cells: arm × learning rate × seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.errors import InputError, system_reason
from pqt_jax.training.run import digests, metrics, workdir

_FIELDS = {"arm", "learning_rate", "seed", "steps", "losses", "first_loss", "final_loss", "outcome"}
_FIELDS |= {"unigram_loss", "diverged_at", "spikes", "skipped", "held_out_losses", "bits_mean"}


class Cells(NamedTuple):
    """A sweep's runs.

    Attributes:
      arms: names, in the order of the config: the first, with which the others are compared, and
        those that have runs.
      rates, seeds: from the lowest on.
      rows: (arm, rate, seed) → record of `runs.train`.
      about: `run.json` of the sweep.
    """

    arms: list[str]
    rates: list[float]
    seeds: list[int]
    rows: dict[tuple[str, float, int], metrics.Record]
    about: dict[str, Any]

    def of(self, arm: str, rate: float | None = None) -> Iterator[metrics.Record]:
        """Rows of an arm, at one rate or at all, by rate and seed."""
        for one in self.rates if rate is None else [rate]:
            for seed in self.seeds:
                if row := self.rows.get((arm, one, seed)):
                    yield row

    def grid(self, arm: str, field: str) -> np.ndarray:
        """float64[seeds, rates] of a field; NaN where it is null or there is no run.

        Args:
          arm: its name.
          field: of the rows; dotted for one inside another, such as held_out_losses.master.
        """
        *outer, name = field.split(".")

        def value(rate, seed):
            row = self.rows.get((arm, rate, seed), {})
            for part in outer:
                row = row.get(part, {})
            found = row.get(name)
            return np.nan if found is None else found

        return np.array([[value(r, s) for r in self.rates] for s in self.seeds], np.float64)

    def whole(self, arm: str, field: str) -> np.ndarray:
        """As `grid`; NaN also where the run diverged."""
        return np.where(self.diverged(arm), np.nan, self.grid(arm, field))

    def best(self, arm: str) -> int | None:
        """Which of the rates has the lowest median final loss, diverged runs above any.

        None where at every rate half of the runs or more diverged.
        """
        finals = self.whole(arm, "final_loss")
        medians = np.median(np.where(np.isnan(finals), np.inf, finals), axis=0)
        return int(np.argmin(medians)) if np.isfinite(medians).any() else None

    def diverged(self, arm: str) -> np.ndarray:
        """bool[seeds, rates]."""
        return self.became(arm, "diverged")

    def became(self, arm: str, outcome: str) -> np.ndarray:
        """bool[seeds, rates]: runs of which that became."""
        found = [
            [self.rows.get((arm, r, s), {}).get("outcome") for r in self.rates] for s in self.seeds
        ]
        return np.array(found) == outcome

    def known(self, arm: str) -> np.ndarray:
        """bool[seeds, rates]: where there is a run."""
        return np.isfinite(self.grid(arm, "seed"))

    def curves(self, arm: str, rate: float) -> np.ndarray:
        """float64[runs, points] of the losses that were kept."""
        rows = [row["losses"] for row in self.of(arm, rate)]
        values = [[np.nan if v is None else v for v in row] for row in rows]
        return np.array(values, np.float64).reshape(len(rows), len(rows[0]) if rows else 0)

    def measured(self, arm: str, rate: float, name: str) -> tuple[np.ndarray, np.ndarray]:
        """int[points] steps and float64[runs, points] of sharpness or sharpness_of_weights."""
        rows = [row.get(name, []) for row in self.of(arm, rate)]
        at = np.array([step for step, _ in rows[0]] if rows else [], int)
        values = [[np.nan if v is None else v for _, v in row] for row in rows]
        return at, np.array(values, np.float64).reshape(len(rows), at.size)


def as_line(row: metrics.Record) -> str:
    """A row as a file of a sweep holds it, with a digest of it."""
    return json.dumps({**row, "digest": digests.of_json(row)[:16]}) + "\n"


def read_part(path: Path) -> list[metrics.Record]:
    """The rows of a file of a sweep.

    Raises:
      InputError: if it cannot be read, or holds something that is no row of a sweep.
    """
    number = 0
    try:
        rows = []
        for number, line in enumerate(path.read_bytes().splitlines(), 1):  # noqa: B007
            row = json.loads(line)
            digest = row.pop("digest", None)
            if not _FIELDS <= row.keys() or digest != digests.of_json(row)[:16]:
                raise ValueError
            rows.append(row)
    except OSError as error:
        why = system_reason(error, "move it away and run the sweep again")
        raise InputError(f"{path} cannot be read: {why}") from None
    except (ValueError, AttributeError, RecursionError):
        raise InputError(
            f"{path}: line {number} is no row as a sweep has written it; delete the file and run "
            "the sweep again"
        ) from None
    return rows


def read(folder: Path) -> Cells:
    """Read what a sweep has written, also one that is not at its end.

    Raises:
      InputError: if there is nothing, or something that is no row of a sweep.
    """
    about = workdir.read(folder, "", workdir.SWEEP)
    if not isinstance(about["config"].get("sweep"), dict):
        raise InputError(f"{folder} is not of a sweep; give the workdir of one")
    rows = {}
    for path in sorted((folder / workdir.PARTS).glob("*.jsonl")):
        for row in read_part(path):
            rows[row["arm"], row["learning_rate"], row["seed"]] = row
    if not rows:
        raise InputError(f"{folder} holds no runs of a sweep yet; give the workdir of one")
    with_runs = {arm for arm, _, _ in rows}
    wanted = [arm[0] for arm in about["config"]["sweep"]["arms"]]
    arms = [arm for i, arm in enumerate(wanted) if not i or arm in with_runs]
    rates, seeds = (sorted({key[i] for key in rows}) for i in (1, 2))
    return Cells(arms, rates, seeds, rows, about)
