# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs against a baseline: groups of seeds, pairs, averages and the picture of them."""

import json

import numpy as np
import pytest

from pqt_jax.analysis import difference_figure, differences, intervals, run_reader
from support.runs import make_run, shift_losses


def read(*folders):
    return dict(enumerate(run_reader.read_runs([*map(str, folders)])))


@pytest.fixture
def runs(tmp_path):
    """Three seeds of gaussws, of which two are of the baseline, too: +0.2 and +0.4 above it."""
    paths = [make_run(tmp_path / f"bf16-{seed}", seed=seed, method="bf16") for seed in (0, 1)]
    paths += [make_run(tmp_path / f"gauss-{seed}", seed=seed) for seed in (0, 1, 2)]
    for path, amount in zip(paths, (0.0, 5.0, 0.2, 5.4, 9.0), strict=True):
        shift_losses(path, amount)
    return read(*paths)


def test_groups_differ_by_more_than_the_seed(tmp_path, runs):
    assert [[*group] for group in differences.group_by_seed(runs)] == [[0, 1], [2, 3, 4]]
    more = {"b": {"log__every": 7, "seed": 9}, "c": {"seed": 0}, "d": {"pqt__target_bits": 5.0}}
    paths = [make_run(tmp_path / "a"), *(make_run(tmp_path / n, **f) for n, f in more.items())]
    # How often it logs changes nothing; a second run of a seed is no other seed.
    assert [[*g] for g in differences.group_by_seed(read(*paths))] == [[0, 1], [2], [3]]


def test_a_group_may_have_been_trained_in_several_places(tmp_path):
    paths = [make_run(tmp_path / str(seed), seed=seed, data__files=str(seed)) for seed in (0, 1)]
    for path in paths:
        meta = json.loads((path / "run.json").read_text()) | {"directory": str(path)}
        (path / "run.json").write_text(json.dumps(meta))
    assert [[*g] for g in differences.group_by_seed(read(*paths))] == [[0, 1]]
    (paths[0] / "run.json").write_text(json.dumps(meta | {"data_fingerprint": "y"}))
    assert len(differences.group_by_seed(read(*paths))) == 2


def test_the_first_bf16_run_is_the_baseline_or_the_first(runs):
    assert differences.default_baseline({7: runs[2], 8: runs[1], 9: runs[0]}) == 8
    assert differences.default_baseline({3: runs[3], 4: runs[4]}) == 3


def test_differences_are_paired_by_seed_with_students_interval(runs):
    base, (group,) = differences.split(runs, 1)
    half = 12.7062 * 0.1  # t(1) · s / √2, for 0.2 and 0.4
    for field in ("loss", "validation_loss"):
        curve = differences.difference_curve(group, base, field, smoothed=field == "loss")
        assert curve.tokens[-1] == 12800 and len(curve.tokens) > 9
        np.testing.assert_allclose(curve.mean, 0.3, rtol=1e-6)
        np.testing.assert_allclose(curve.high - curve.mean, half, rtol=1e-4)
    final = differences.final_difference(group, base, "fp6_e3m2")
    assert final == pytest.approx((0.3, 0.3 - half, 0.3 + half), rel=1e-4)
    assert all(map(np.isnan, differences.final_difference(group, base, "nothing")))


def test_without_a_common_seed_there_is_a_difference_and_no_interval(runs):
    group, base = {4: runs[4]}, {0: runs[0], 1: runs[1]}
    curve = differences.difference_curve(group, base, "validation_loss")
    np.testing.assert_allclose(curve.mean, 9 - 2.5)
    assert np.isnan([curve.low, curve.high]).all()
    assert differences.describe_pairs(group, base) == "no seed in common, no interval"


def test_curves_meet_where_both_are_finite(tmp_path):
    """Also if they are recorded at other tokens, end early or diverge."""
    whole, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", data__batch=8)
    bad, early = make_run(tmp_path / "c", nan_from=90), make_run(tmp_path / "d", done=50)
    runs = read(whole, other, bad, early)

    def curve(i):
        return differences.difference_curve({i: runs[i]}, {0: runs[0]}, "loss")

    assert curve(2).tokens[-1] == 89 * 64 and curve(3).tokens[-1] == 50 * 64
    assert not np.any(curve(2).mean) and not np.any(curve(3).mean)
    # At the same tokens a run with twice the batch has taken half of the steps.
    ahead = curve(1)
    records = run_reader.read_curve(runs[1], "loss")[1]
    np.testing.assert_allclose(
        ahead.mean, records[: len(ahead.mean)] - (5 - 4 * ahead.tokens / 12800)
    )
    empty = differences.difference_curve({1: runs[1]}, {0: runs[0]}, "no_such_field")
    assert not len(empty.tokens)


def test_the_picture_has_the_baseline_at_zero_and_a_scale_that_hides_no_noise(tmp_path, runs):
    figure = difference_figure.draw_differences(runs, 0)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["1, 2  bf16 (baseline)", "3, 4, 5  gauss (2 seeds, 95 % interval)"]
    for axes in figure.axes:
        zero, curve = axes.lines
        assert set(zero.get_ydata()) == {0} and curve.get_ydata() == pytest.approx(0.3)
        (band,) = axes.collections
        assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.3 - 1.27062, rel=1e-3)
        assert axes.get_ylim()[0] < -0.97 and axes.get_ylim()[1] > 1.57
    same = read(make_run(tmp_path / "x"), make_run(tmp_path / "y", pqt__target_bits=5.0))
    for axes in difference_figure.draw_differences(same, 0).axes:
        low, high = axes.get_ylim()
        assert low < -0.009 and high > 0.009  # equal runs do not zoom in on rounding


def test_a_run_that_diverged_does_not_set_the_scale(tmp_path):
    base = make_run(tmp_path / "base", method="bf16")
    near = shift_losses(make_run(tmp_path / "near"), 0.3)
    far = make_run(tmp_path / "far", optimizer__learning_rate=1.0)
    figure = difference_figure.draw_differences(read(base, near, shift_losses(far, 60.0, 90)), 0)
    for axes in figure.axes:
        assert axes.lines[2].get_ydata()[-1] == pytest.approx(60)
        assert axes.get_ylim()[1] < 0.4
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"2  near (1 seed, no interval)", "3  far (1 seed, no interval; diverged)"} < {*texts}
    for axes in difference_figure.draw_differences(read(base, far), 0).axes:
        assert axes.get_ylim()[1] > 55  # there is nothing else to show


def test_axes_without_a_difference_have_no_scale(tmp_path):
    runs = read(make_run(tmp_path / "a", done=15), make_run(tmp_path / "b", done=15, method="bf16"))
    training, validation = difference_figure.draw_differences(runs, 0).axes
    assert len(training.get_yticks()) > 1 and not training.texts
    assert not len(validation.get_yticks()) and not len(validation.get_xticks())
    assert [text.get_text() for text in validation.texts] == ["no tokens in common"]
    assert not validation.lines


def test_means_over_seeds_have_students_interval():
    mean, low, high = intervals.mean_interval(np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert mean.tolist() == [2, 2] and (high - low)[1] == 0
    assert (high - low)[0] == pytest.approx(2 * 12.7062 * 1.41421 / 1.41421, rel=1e-4)
    assert np.isnan(intervals.mean_interval(np.empty((0, 3)))).all()


def test_runs_of_other_lengths_or_seeds_have_no_final_difference(tmp_path):
    base = read(make_run(tmp_path / "base", method="bf16", seed=0))
    longer = read(make_run(tmp_path / "longer", steps=400, done=400, seed=0))
    other_seed = read(make_run(tmp_path / "other", seed=1))
    found = {}
    for name, group in (("longer", longer), ("other_seed", other_seed)):
        assert np.isnan(differences.final_difference(group, base, "master").value)
        found[name] = differences.describe_final_pairs(group, base)
    assert found == {"longer": "another number of tokens", "other_seed": "no seed in common"}
    same = read(make_run(tmp_path / "same", seed=0))
    assert np.isfinite(differences.final_difference(same, base, "master").value)
    assert differences.describe_final_pairs(same, base) == "1 seed, no interval"


def test_an_interval_of_one_point_is_a_bar(tmp_path):
    paths = [make_run(tmp_path / f"b{s}", seed=s, method="bf16", done=20) for s in (0, 1)]
    paths += [make_run(tmp_path / f"g{s}", seed=s, done=20) for s in (0, 1)]
    _, validation = difference_figure.draw_differences(read(*paths), 0).axes
    _, bar = validation.collections  # after the band, which has no width
    ((x, low), (_, high)) = bar.get_segments()[0]
    assert x > 0 and low <= 0 <= high
