# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/payoff.py: the table in docs/payoff is that of the runs beside it."""

import numpy as np
import pytest

from support.paths import ROOT


@pytest.fixture
def payoff(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import payoff

    return payoff


def test_the_page_has_the_tables_of_its_runs(payoff, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["payoff.py"])
    payoff.main()
    tables = [text for text in capsys.readouterr().out.split("\n\n") if text.startswith("|")]
    page = (payoff.RUNS / "README.md").read_text()
    assert len(tables) == 5 and all(table.strip() in page for table in tables[1:])


def test_each_arm_has_its_best_rule_in_blocks(payoff):
    losses = {"fp4/ceil": [3.0, 1.0], "fp4/mse": [1.0, 2.0], "fp4/mse/matrix": [0.0, 0.0]}
    losses = {name: np.array(values) for name, values in losses.items()}
    assert payoff.best(losses, "fp4").tolist() == [1.0, 2.0]


def test_a_file_with_a_baseline_of_its_own_is_compared_with_that(payoff, tmp_path):
    head = "arm,steps,seed,held_out_master,held_out_fp4_e2m1/mse,held_out_fp4_e2m1/mse/32x1"
    first = [
        "BF16,10,1,2.0,3.0,",
        "BF16,10,0,1.0,2.0,",
        "gaussws 4,10,0,1.5,1.75,",
        "gaussws 4,10,1,2.5,2.75,",
    ]
    later = ["STE FP4,10,0,7,6,5", "STE FP4,10,1,7,6,5", "BF16,10,0,4,4,4", "BF16,10,1,5,5,5"]
    (tmp_path / "runs.csv").write_text("\n".join([head, *first]))
    (tmp_path / "runs-later.csv").write_text("\n".join([head, *later]))
    arms = payoff.read(tmp_path.glob("runs*.csv"), ["BF16", "gaussws 4", "STE FP4"])[10]
    assert list(arms) == ["BF16", "BF16, again", "gaussws 4", "STE FP4"]
    baselines = [losses["baseline"].tolist() for losses in arms.values()]
    assert baselines == [[1, 2], [4, 5], [1, 2], [4, 5]]
    assert "| BF16, again | 4.5000 | " in payoff.table(arms)
    assert payoff.best(arms["STE FP4"], "fp4_e2m1/32x1").tolist() == [5, 5]
    assert np.isnan(payoff.best(arms["BF16"], "fp4_e2m1/32x1")).all()
    row = payoff.table(arms).splitlines()[-2]
    assert row.startswith("| gaussws 4 | +0.5000") and row.endswith("+0.7500* ± 0.0000 |  |")


def test_the_picture_of_sizes_has_what_was_measured_at_its_size(payoff):
    losses = {
        "baseline": 1.0,
        "master": 1.0,
        "fp8_e4m3/ceil": 1.1,
        "fp6_e2m3/mse": 1.2,
        "fp4_e2m1/mse": 1.4,
    }
    lower = {name: loss - 0.05 for name, loss in losses.items()} | {"baseline": 0.9}
    learned = {
        "baseline": 1.0,
        "mixed": 1.3,
        "bits mixed": 9.0,
        "mixed/error": 1.5,
        "bits mixed/error": 5.0,
    }
    arms = {"BF16": losses, "gaussws 4": learned} | dict.fromkeys(payoff.BY_RECIPE.values(), lower)
    arms = {a: {k: v + np.zeros(3) for k, v in named.items()} for a, named in arms.items()}
    (axes,) = payoff.draw_sizes(arms).axes
    shown = {bars.get_label(): bars.lines[0].get_xydata().round(4) for bars in axes.containers}
    assert {label: points.tolist() for label, points in shown.items()} == {
        "one format, rounded afterwards": [[4.0078, 0.4], [6.0078, 0.2], [8.0078, 0.1]],
        "one format, by its recipe": [[4.0078, 0.45], [6.0078, 0.25], [8.0078, 0.15]],
        "bits learned by block, matched by noise": [[9.0, 0.3]],
        "bits learned by block, matched by error": [[5.0, 0.5]],
    }
