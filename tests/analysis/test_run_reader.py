# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What runs have recorded: their names, and the fields that differ."""

import json

from pqt_jax.analysis import comparison, run_figures, run_reader, run_tables
from support.runs import make_run, shift_losses


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


def test_a_run_that_the_trainer_gave_up_is_known(tmp_path):
    path = make_run(tmp_path / "run", done=90)
    (run,) = run_reader.read_runs([str(path)])
    assert not run_reader.gave_up(run)
    limit = run.fields["config.watch.skips"]
    for count, expected in ((limit - 1, False), (limit, True)):
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 91, "skipped": count, "in_a_row": count}) + "\n")
        (run,) = run_reader.read_runs([str(path)])
        assert run_reader.gave_up(run) is expected
    assert "diverged" in run_tables.training_table({0: run})
    page = comparison.make_page({0: run}, 0, [])
    assert "diverged: too many steps in a row" in page
    legend = run_figures.draw_losses({0: run}).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["1  run (gave up)"]


def test_a_run_whose_loss_ends_far_above_its_least_has_diverged(tmp_path):
    paths = [make_run(tmp_path / "run"), make_run(tmp_path / "begun", done=0)]
    paths += [make_run(tmp_path / "nan", nan_from=200), make_run(tmp_path / "high")]
    shift_losses(paths[3], 2.0, 90)
    spike = shift_losses(make_run(tmp_path / "spike"), 9.0, 150)
    paths.append(shift_losses(spike, -9.0, 155))
    shift_losses(spike, -0.9, 200)  # the last loss is low by chance
    found = [run_reader.has_diverged(run) for run in run_reader.read_runs([*map(str, paths)])]
    assert found == [False, False, True, False, False]  # the fourth ends at its least
    shift_losses(paths[3], 2.0, 190)
    assert run_reader.has_diverged(run_reader.read_runs([str(paths[3])])[0])
