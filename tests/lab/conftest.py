# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The smoke sweep, trained once for all tests of the lab."""

import functools
import shutil

import pytest

from pqt_jax.data import source
from pqt_jax.lab import runs, sweep, sweep_table
from pqt_jax.training.run.workdir import WORK_UNITS
from support.paths import ROOT
from support.session import shared_folder

SMOKE = str(ROOT / "configs" / "lab" / "smoke.py")


@pytest.fixture(scope="module", autouse=True)
def text_is_read_once():
    """The standard library's source, the text of every sweep here, is read once and kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load", _load_text_once)
        yield


_load_text_once = functools.cache(source.load)


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """The workdir of the finished smoke sweep; tests must not change it."""

    def train(folder):
        assert sweep.main(["--config", SMOKE, f"--workdir={folder / 'run'}"]) == 0

    return shared_folder(tmp_path_factory, "sweep", train) / "run"


@pytest.fixture
def sweep_copy(swept, tmp_path):
    """A copy of the smoke sweep that a test may change."""
    return shutil.copytree(swept, tmp_path / "run")


@pytest.fixture
def train_by_lookup(swept, monkeypatch):
    """Replace training: the rows of a unit are those that the smoke sweep has for its runs."""
    rows = {}
    for path in (swept / WORK_UNITS).iterdir():
        for row in sweep_table.read_rows(path):
            rows[row["arm"], row["learning_rate"], row["seed"]] = row

    def make_train(arm, programs, text, options):
        def train(rates_and_seeds, saved, advance):
            return [rows[arm.name, rate, seed] for rate, seed in rates_and_seeds]

        return train

    monkeypatch.setattr(runs, "make_train", make_train)
