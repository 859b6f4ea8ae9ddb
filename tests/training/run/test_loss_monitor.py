# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Spikes and skipped steps: what is one, what is recorded, and how a run ends."""

import json
import math
import types

import numpy as np
import pytest

from pqt_jax.training.run import metrics
from pqt_jax.training.run.loss_monitor import LossMonitor, spike_score
from support.command import main

OPTIONS = types.SimpleNamespace(window=20, spike_score=6.0, skips=3)


def see(watch, losses, start=1):
    return [watch.add_step(start + i, loss, 0, 0) for i, loss in enumerate(losses)]


def test_the_score_counts_standard_deviations():
    rng = np.random.default_rng(0)
    before = 5 + 0.1 * rng.standard_normal(4000)
    assert spike_score(before, 5.7) == pytest.approx(7.0, rel=0.05)
    assert spike_score(before, 4.3) == pytest.approx(-7.0, rel=0.05)


def test_earlier_spikes_do_not_hide_a_new_one():
    calm = [3.0, 3.1] * 10
    assert spike_score([*calm[:-4], 30.0, 30.0, 30.0, 30.0], 6.0) > 6
    assert spike_score(calm, 6.0) > 6


def test_a_loss_that_hardly_moves_makes_no_spike_of_a_hundredth():
    assert spike_score([2.0] * 20, 2.1) == pytest.approx(5.0)
    assert spike_score([2.0] * 20, 2.2) == pytest.approx(10.0)


@pytest.mark.parametrize("before, loss", [([3.0] * 7, 9.0), ([3.0] * 20, math.nan)])
def test_no_score_without_losses(before, loss):
    assert math.isnan(spike_score(before, loss))


def test_spikes_are_recorded_and_a_falling_loss_has_none():
    watch = LossMonitor(OPTIONS)
    falling = [6 * 0.97**i + 0.01 * (-1) ** i for i in range(100)]
    assert see(watch, falling) == [None] * 100
    entry = watch.add_step(101, 5.0, 0, 0)
    assert entry.keys() == {"step", "spike", "spike_loss"}
    assert entry["step"] == 101 and entry["spike"] > 6 and entry["spike_loss"] == 5.0
    assert watch.add_step(102, falling[-1], 0, 0) is None


def test_skipped_steps_are_recorded_and_are_no_spikes():
    watch = LossMonitor(OPTIONS)
    see(watch, [3.0, 3.1] * 10)
    assert watch.add_step(21, math.nan, 4, 1) == {"step": 21, "skipped": 4, "in_a_row": 1}
    assert (watch.skipped, watch.in_a_row) == (4, 1)
    assert watch.add_step(22, 3.0, 4, 0) is None and watch.in_a_row == 0
    assert len(watch.losses) == 20 and not any(map(math.isnan, watch.losses))


def test_a_resumed_watch_sees_what_an_uninterrupted_one_does():
    losses = [3.0, 3.1, 3.05] * 8
    whole, first = LossMonitor(OPTIONS), LossMonitor(OPTIONS)
    see(whole, losses)
    see(first, losses)
    second = LossMonitor(OPTIONS, json.loads(json.dumps(first.state())))
    entry = whole.add_step(25, 4.0, 0, 0)
    assert entry is not None and entry == second.add_step(25, 4.0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 50])  # of log lines; a step is else seen one later
def test_a_run_that_only_skips_ends_and_keeps_what_was_good(tmp_path, capsys, every):
    """Weights do not survive the first update, and no checkpoint is made after it."""
    diverge = ["--config.optimizer.learning_rate=1e36", "--config.pqt.learning_rate=1e36"]
    diverge += ["--config.optimizer.final_learning_rate=1e30", "--config.watch.skips=4"]
    diverge += [f"--config.log.{name}={every}" for name in ("every", "validate_every")]
    diverge += [f"--config.log.checkpoint_every={every}"]
    assert main(tmp_path, *diverge) == 3
    out, err = capsys.readouterr()
    skipped, error = err.splitlines()[-2:]
    records = metrics.read(tmp_path / "run" / "metrics.jsonl")
    rows = [(r["skipped"], r["in_a_row"]) for r in records if "skipped" in r]
    assert rows == [(1, 1), (2, 2), (3, 3), (4, 4)]
    at = next(r["step"] for r in records if "skipped" in r)
    assert skipped == f"step {at} is skipped: its loss or gradient is not finite"
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ([at - 1] if every == 1 else [])
    assert error.startswith(
        f"error: loss or gradient was not finite in 4 steps in a row, up to step {at + 3}; "
        f"{'the newest checkpoint is of step 1' if saved else 'there is no checkpoint'}; "
    )
    assert "Traceback" not in out


@pytest.mark.slow
def test_a_checkpoint_that_is_due_at_a_skipped_step_is_written_after_it(tmp_path, monkeypatch):
    see = LossMonitor.add_step

    def skipped(self, step, loss, *_):
        total, row = {4: (1, 1), 5: (2, 2)}.get(step, (2 * (step > 5), 0))
        return see(self, step, loss, total, row)

    monkeypatch.setattr(LossMonitor, "add_step", skipped)
    assert main(tmp_path, "--config.steps=9", "--config.log.keep=9") == 0
    saved = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == [6, 8, 9]
    records = metrics.read(tmp_path / "run" / "metrics.jsonl")
    rates = {r["step"]: r["lr"] for r in records if "lr" in r}
    assert rates[3] != rates[4] == rates[5] == rates[6] != rates[7]  # a skipped step is tried again
