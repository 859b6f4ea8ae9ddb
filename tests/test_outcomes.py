# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Divergence, spikes, sensitivity: on curves of which one can say what they are."""

import math

import numpy as np
import pytest

from pqt_jax.lab import outcomes
from pqt_jax.lab.outcomes import diverged_at, final, sensitivity, spikes

FALL = list(np.linspace(5.5, 2.0, 200))


def noisy(seed=0, sigma=0.05):
    return list(np.asarray(FALL) + np.random.default_rng(seed).normal(0, sigma, 200))


def test_a_run_that_falls_does_not_diverge():
    for seed in range(20):
        assert diverged_at(noisy(seed)) is None and spikes(noisy(seed, 0.01)) == 0
    assert diverged_at([3.0] * 50) is None and diverged_at([]) is None


@pytest.mark.parametrize("length, expected", [(19, None), (20, 201), (300, 201)])
def test_a_rise_must_last(length, expected):
    assert diverged_at([*FALL, *[2.6] * length, *[2.0] * 5], margin=0.5, window=20) == expected


def test_a_rise_is_counted_from_the_least_loss_before_it():
    """Slowly upwards: no step is far above the one before, and yet far above the least."""
    rise = list(np.linspace(2.0, 4.0, 400))
    assert diverged_at([*FALL, *rise], margin=0.5, window=20) == 200 + 101
    assert diverged_at([*FALL, *rise], margin=3.0, window=20) is None


def test_what_returns_below_in_between_does_not_count():
    saw = [2.7, 2.7, 2.0] * 30
    assert (
        diverged_at([*FALL, *saw], window=3) is None and diverged_at([*FALL, *saw], window=2) == 201
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergence(bad):
    assert diverged_at([*FALL, bad, 2.0]) == 201 and diverged_at([bad]) == 1
    assert math.isnan(final([*FALL, bad])) and math.isfinite(final([bad, *FALL]))


def test_a_row_of_skipped_steps_is_divergence_from_its_first():
    rows = [0, 1, 2, 0, *range(1, 8)]
    assert (
        diverged_at(FALL[:11], rows, skips=3) == 5 and diverged_at(FALL[:11], rows, skips=8) is None
    )
    assert diverged_at([1.0, math.nan, *FALL[:9]], rows, skips=3) == 2


def test_rows_of_high_steps_are_one_spike():
    losses = list(2 + np.random.default_rng(0).normal(0, 0.01, 200))
    for start, length in ((120, 1), (140, 3), (199, 1)):
        losses[start : start + length] = [losses[start] + 2.0] * length
    assert spikes(losses) == 3
    losses[130] = math.nan
    assert spikes(losses) == 3
    assert spikes(losses, threshold=1e9) == 0


def test_the_final_loss_is_a_mean_of_the_last():
    assert final([*range(96), 1.0, 2.0, 3.0, 4.0, 5.0], share=0.05) == 3.0
    assert final([7.0, 8.0]) == 8.0


def test_sensitivity_by_hand():
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    assert sensitivity(dict.fromkeys(rates, 2.0), 5.5) == 0
    one = sensitivity(dict(zip(rates, [2.5, 2.0, 2.1, 9.0], strict=True)), 5.5)
    assert one == pytest.approx((0.5 + 0 + 0.1 + 3.5) / 4)  # 9 is no worse than learning nothing
    assert math.isnan(sensitivity({1.0: math.nan}, 5.5))
    assert outcomes.sensitivity({1.0: 2.0}, 5.5) == 0
