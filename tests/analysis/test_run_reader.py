# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What runs have recorded: their names, and the fields that differ."""

from pqt_jax.analysis import run_reader, run_tables
from support.runs import make_run


def test_names_are_as_short_as_they_can_be(tmp_path):
    folders = [make_run(tmp_path / name, done=0) for name in ("x/run", "y/run", "y/un", "z")]
    names = [run.name for run in run_reader.read_runs([str(folder) for folder in folders])]
    assert names == ["x/run", "y/run", "un", "z"]


def test_fields_that_differ(tmp_path):
    folders = [make_run(tmp_path / f"{i}", seed=i, done=0) for i in range(2)]
    runs = run_reader.read_runs([str(folder) for folder in folders])
    different, same = run_reader.compare_fields(runs)
    assert different == {"config.seed": [0, 1]} and same["config.model.d_model"] == 32
    assert "No field differs" in run_tables.configuration_section({0: runs[0], 1: runs[0]})
