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
    assert len(tables) == 3 and all(table.strip() in page for table in tables[1:])


def test_each_arm_has_its_best_rule_in_blocks(payoff):
    losses = {"fp4/ceil": [3.0, 1.0], "fp4/mse": [1.0, 2.0], "fp4/mse/matrix": [0.0, 0.0]}
    losses = {name: np.array(values) for name, values in losses.items()}
    assert payoff.best(losses, "fp4").tolist() == [1.0, 2.0]
