# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Divergence, spikes and sensitivity on curves whose outcome is plain."""

import math

import numpy as np
import pytest

from pqt_jax.lab.outcomes import (
    classify_run,
    count_spikes,
    final_loss,
    find_divergence,
    rate_sensitivity,
    unigram_loss,
    usable_decades,
)

FALL = list(np.linspace(5.5, 2.0, 200))


def noisy(seed=0, sigma=0.05):
    return list(np.asarray(FALL) + np.random.default_rng(seed).normal(0, sigma, 200))


def test_a_falling_loss_is_no_divergence():
    for seed in range(20):
        assert find_divergence(noisy(seed)) is None and count_spikes(noisy(seed, 0.01)) == 0
    assert find_divergence([3.0] * 50) is None and find_divergence([]) is None


def test_a_run_that_never_learned_and_one_that_ends_badly_diverge():
    assert find_divergence([5.8, *[500.0] * 300]) == 2
    assert find_divergence([5.8, *[500.0] * 5, *FALL]) is None  # a warm-up
    assert (
        find_divergence([*FALL, *[9.0] * 10]) == 201
        and find_divergence([*FALL, *[9.0] * 9]) is None
    )
    assert find_divergence([5.0] * 15 + [1000.0] * 15) == 16


FLAT = [*FALL, *[2.0] * 20]  # long enough that the level is 2


@pytest.mark.parametrize("length, expected", [(9, None), (11, 221), (300, 221)])
def test_a_rise_must_last_for_half_the_window(length, expected):
    assert find_divergence([*FLAT, *[2.6] * length, *[2.0] * 20], margin=0.5, window=20) == expected


def test_a_slow_rise_is_measured_from_the_lowest_level():
    """No step is far above the one before it, and yet the loss ends far above the level."""
    rise = list(2.0 + 0.005 * np.arange(1, 401))
    assert find_divergence([*FLAT, *rise], margin=0.5, window=20) == 220 + 101
    assert find_divergence([*FLAT, *rise], margin=3.0, window=20) is None


def test_one_easy_or_one_hard_batch_decides_nothing():
    losses = noisy() + [2.0] * 100
    losses[120], losses[140] = 0.1, 9.0
    assert find_divergence(losses) is None
    losses[260:] = [2.6] * 40
    assert find_divergence(losses) == 261


def test_divergence_follows_its_definition_step_by_step():
    rng = np.random.default_rng(0)
    diverged = 0
    for case in range(300):
        losses, window = 5 + np.cumsum(rng.normal(0, 0.5, 30)), int(rng.integers(1, 7))
        if case % 3 == 0:
            losses[rng.integers(30)] = math.nan
        expected = None
        for i in range(30):
            whole = [losses[j : j + window] for j in range(i - window + 1)]
            level = min([losses[0], *map(np.median, whole)])
            ahead = losses[i : i + window]
            long = len(ahead) >= window / 2 and i > 0
            high = long and min(np.median(ahead), ahead[0]) > level + 1.0
            if high or math.isnan(losses[i]):
                expected = i + 1
                break
        assert find_divergence(losses, margin=1.0, window=window) == expected, (case, window)
        diverged += expected is not None
    assert 100 < diverged < 300


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergence(bad):
    assert find_divergence([*FALL, bad, 2.0]) == 201 and find_divergence([bad]) == 1
    # Before a NaN as at the end of a run, half a window is enough to detect a rise.
    high = [FALL[-1] + 2] * 15
    assert find_divergence([*FALL, *high, bad, 2.0]) == find_divergence([*FALL, *high]) == 201
    assert math.isnan(final_loss([*FALL, bad])) and math.isfinite(final_loss([bad, *FALL]))


def test_too_many_skipped_steps_are_divergence_at_the_first_of_them():
    rows = [0, 1, 2, 0, *range(1, 8)]
    assert (
        find_divergence(FALL[:11], rows, skips=3) == 5
        and find_divergence(FALL[:11], rows, skips=8) is None
    )
    assert find_divergence([1.0, math.nan, *FALL[:9]], rows, skips=3) == 2


def test_consecutive_high_steps_are_one_spike():
    losses = list(2 + np.random.default_rng(0).normal(0, 0.01, 200))
    for start, length in ((120, 1), (140, 3), (199, 1)):
        losses[start : start + length] = [losses[start] + 2.0] * length
    assert count_spikes(losses) == 3
    losses[130] = math.nan
    assert count_spikes(losses) == 3
    assert count_spikes(losses, threshold=1e9) == 0


def test_the_final_loss_is_the_mean_of_the_last_steps():
    assert final_loss([*range(96), 1.0, 2.0, 3.0, 4.0, 5.0], share=0.05) == 3.0
    assert final_loss([7.0, 8.0]) == 8.0


def test_sensitivity_by_hand():
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    assert rate_sensitivity(dict.fromkeys(rates, 2.0), 5.5) == 0
    one = rate_sensitivity(dict(zip(rates, [2.5, 2.0, 2.1, 9.0], strict=True)), 5.5)
    assert one == pytest.approx((0.5 + 0 + 0.1 + 3.5) / 4)  # 9 counts as the first loss
    assert math.isnan(rate_sensitivity({1.0: math.nan}, 5.5))
    assert rate_sensitivity({1.0: 2.0}, 5.5) == 0


def test_usable_ranges_by_hand():
    rates = [1e-3, 1e-2, 1e-1, 1.0]

    def of(*finals):
        return dict(zip(rates, finals, strict=True))

    assert usable_decades(of(3.0, 2.0, 2.0, 3.0), 2.25) == pytest.approx(1.5)
    assert usable_decades(of(2.0, 2.0, 2.0, 2.0), 2.0) == pytest.approx(3)
    assert usable_decades(of(3.0, 3.0, 3.0, 3.0), 2.25) == 0
    assert usable_decades(of(2.0, math.nan, 2.0, 2.0), 2.25) == pytest.approx(
        1
    )  # not across what diverged
    assert usable_decades(of(math.nan, 2.0, math.nan, 2.0), 2.25) == 0
    assert usable_decades({0.03: 2.0, 0.003: 2.0}, 2.0) == pytest.approx(1)  # in whatever order
    assert usable_decades({}, 2.0) == usable_decades({1.0: 1.0}, 2.0) == 0
    assert math.isnan(usable_decades(of(2.0, 2.0, 2.0, 2.0), math.nan))


def test_a_run_no_better_than_token_frequencies_is_stuck():
    tokens = np.random.default_rng(0).choice(4, 40000, p=[0.5, 0.25, 0.125, 0.125])
    entropy = unigram_loss(tokens.astype(np.uint8))
    assert entropy == pytest.approx(1.75 * math.log(2), rel=5e-3)
    assert classify_run(None, entropy - 0.01, entropy) == "learned"
    assert classify_run(None, entropy, entropy) == classify_run(None, math.nan, entropy) == "stuck"
    assert classify_run(3, 0.0, entropy) == classify_run(1, math.nan, entropy) == "diverged"
