# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs that are interrupted, killed or damaged: real processes, and what is left on disk."""

import errno
import json
import os
import re
import resource
import shutil
import signal

import jax
import numpy as np
import pytest

from pqt_jax.data import source
from pqt_jax.errors import OutputError
from pqt_jax.training import state as states
from pqt_jax.training import step as steps
from pqt_jax.training.run import metrics, run_metadata, run_plots
from support import tiny
from support.command import check_outputs, end, main, saved_leaves, start, timeless, wait_for


@pytest.mark.slow  # five processes that train
@pytest.mark.jax_version
def test_interrupted_and_killed_runs_end_where_a_straight_run_does(tmp_path):
    text = f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}"
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    long = "--config.steps=40"
    whole = start("--workdir", straight, text, long)

    first = start("--workdir", broken, text, long)
    wait_for(first, "step=5 ")
    first.send_signal(signal.SIGTERM)
    out, _ = end(first, 128 + signal.SIGTERM)
    assert "run the command again to go on" in out
    stopped = int(out.split("stopped at step ")[1].split()[0])
    assert 5 <= stopped < 40
    assert max(r["step"] for r in metrics.read(broken / "metrics.jsonl")) == stopped

    second = start("--workdir", broken, text, long)
    wait_for(second, f"resumed from step {stopped} of 40")
    wait_for(second, f"step={min(stopped + 6, 38)} ")
    second.kill()
    second.communicate()
    killed = metrics.read(broken / "metrics.jsonl")[-1]["step"]

    third = start("--workdir", broken, text, long)
    out, _ = end(third)
    resumed = int(out.split("resumed from step ")[1].split()[0])
    assert stopped <= resumed <= killed

    whole_out, _ = end(whole)
    step, leaves = saved_leaves(straight)
    other_step, other_leaves = saved_leaves(broken)
    assert step == other_step == 40
    assert leaves.keys() == other_leaves.keys() and len(leaves) > 40
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, other_leaves[path], err_msg=path)
    records = [timeless(metrics.read(w / "metrics.jsonl")) for w in (straight, broken)]
    assert records[0] == records[1]
    check_outputs(straight, whole_out, 40)

    out, _ = end(start("--workdir", broken, text, long))
    assert "finished: all 40 steps are done" in out and "learned mixed bits" in out
    assert "step=" not in out
    _, err = end(start("--workdir", broken, text, long, "--config.seed=1"), 2)
    assert err.startswith("error: --workdir") and "config.seed was 0 and is 1" in err


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_a_finished_run_that_grows_ends_where_a_straight_run_does(tmp_path, capsys, schedule):
    """From the end with a constant rate, and from where the first decay began with WSD."""
    given = [f"--config.optimizer.schedule={schedule}", "--config.log.keep=1"]
    given += ["--config.log.checkpoint_every=7"]
    straight, grown = tmp_path / "straight", tmp_path / "run"
    assert main(tmp_path, *given, "--config.steps=40", f"--workdir={straight}") == 0
    assert main(tmp_path, *given, "--config.steps=20") == 0
    capsys.readouterr()
    if schedule == "wsd":
        assert main(tmp_path, *given, "--config.steps=40") == 2
        assert (
            "the newest checkpoint is of step 20; to go back to step 16, move the newer ones"
            in (capsys.readouterr().err)
        )
        (grown / "checkpoints" / "20").rename(tmp_path / "20")
    assert main(tmp_path, *given, "--config.steps=40") == 0
    out = capsys.readouterr().out
    assert f"resumed from step {20 if schedule == 'constant' else 16} of 40" in out
    (step, leaves), (other, wanted) = saved_leaves(grown), saved_leaves(straight)
    assert step == other == 40 and leaves.keys() == wanted.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
    found, expected = (
        [r for r in timeless(metrics.read(folder / "metrics.jsonl")) if "loss" in r]
        for folder in (grown, straight)
    )
    assert found == expected and len(found) == 40
    for name in ("run", "summary"):
        new, old = (
            json.loads((folder / f"{name}.json").read_text()) for folder in (grown, straight)
        )
        assert new["config"] == old["config"]


@pytest.mark.slow
def test_damaged_files_of_a_finished_run_are_made_again(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(tmp_path, "--config.steps=8") == 0
    before, records = json.loads((run / "summary.json").read_text()), run / "metrics.jsonl"
    (run / "summary.json").write_text("{")
    files = [p for p in (run / "checkpoints" / "8").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    records.write_text("broken\n" + records.read_text())
    capsys.readouterr()
    assert main(tmp_path, "--config.steps=8") == 0
    out, err = capsys.readouterr()
    damaged, dropped = err.splitlines()
    assert damaged.startswith("checkpoint of step 8 cannot be read (")
    assert damaged.endswith(f" and was moved to {run / 'damaged' / '8'}; resuming from step 4")
    assert dropped == f"{records}: 1 broken line was dropped"
    assert "resumed from step 4 of 8" in out
    assert [r["step"] for r in metrics.read(records) if "loss" in r] == list(range(1, 9))
    assert len(metrics.read(records)) == len(records.read_text().splitlines())
    after = json.loads((run / "summary.json").read_text())
    assert {k: v for k, v in after.items() if k not in ("seconds", "tokens_per_s")} == {
        k: v for k, v in before.items() if k not in ("seconds", "tokens_per_s")
    }

    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    (run / "summary.json").unlink()
    assert main(tmp_path, "--config.steps=8") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: no checkpoint in {run / 'checkpoints'} can be read (step 8: ")
    assert "; step 4: " in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_checkpoints_of_another_run_are_refused(tmp_path, capsys):
    """And so is its summary: nothing of it is taken for this run's."""
    run, other = tmp_path / "run", tmp_path / "other"
    assert main(tmp_path, "--config.steps=4") == 0
    assert main(tmp_path, "--config.steps=4", "--config.seed=1", f"--workdir={other}") == 0
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    shutil.copy(other / "summary.json", run)
    before = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(tmp_path, "--config.steps=4") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: checkpoint ") and err.count("\n") == 1
    assert "checkpoints/4 belongs to another run: config.seed was 1 and is 0" in err
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_disk_that_refuses_is_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")  # it writes files as well
    text = f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}"
    process = start("--workdir", tmp_path / "run", text, "--config.steps=8")
    wait_for(process, "workdir:")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    out, err = end(process, 1)
    assert re.fullmatch(
        "error: cannot write .*run/checkpoints: file too large; mend that and run .*\n", err
    )
    assert "Traceback" not in out
    assert main(tmp_path, "--config.steps=8") == 0
    logged = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in logged] == list(range(1, 9))


@pytest.mark.slow
def test_a_summary_comes_last(tmp_path, monkeypatch):
    """It says that the run is finished: what is killed before it is finished by the next run."""

    def fail(*_):
        raise OutputError(tmp_path, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_plots, "draw_bits", fail)
        assert main(tmp_path, "--config.steps=4") == 1
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(tmp_path, "--config.steps=4") == 0
    assert {"summary.json", "bits.png"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.slow
def test_other_versions_are_said(tmp_path, capsys, monkeypatch):
    assert main(tmp_path, "--config.steps=4") == 0
    (tmp_path / "run" / "summary.json").unlink()
    describe = run_metadata.make_metadata

    def newer(*arguments):
        meta = describe(*arguments)
        meta["versions"] |= {"jax": "99.0"}
        return meta

    monkeypatch.setattr(run_metadata, "make_metadata", newer)
    # Nor is a state made beside the one that is read: there may be no room for two.
    monkeypatch.setattr(states, "begin_state", None)
    capsys.readouterr()
    assert main(tmp_path, "--config.steps=4") == 0
    assert (
        f"resumed under jax 99.0; it was {jax.__version__} before, "
        "so results may differ in the last digits\n"
    ) in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on(tmp_path, capsys, monkeypatch):
    """What it saved lacks fields that exist now, and has what was the default of attention."""
    describe = run_metadata.make_metadata

    def older(*arguments):
        meta = describe(*arguments)
        config = meta["config"]
        del config["pqt"]["noise_per"], config["log"]["wandb"], config["init_from"]
        config["model"]["attention"] = "xla"
        return meta

    with monkeypatch.context() as patch:
        patch.setattr(run_metadata, "make_metadata", older)
        assert main(tmp_path, "--config.steps=6") == 0
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    capsys.readouterr()
    assert main(tmp_path, "--config.steps=6") == 0
    out, err = capsys.readouterr()
    assert "resumed from step 4 of 6" in out and err == ""
    microbatches = ("--config.data.microbatches=2", "--config.pqt.noise_per=microbatch")
    assert main(tmp_path, "--config.steps=6", *microbatches) == 2
    assert "config.data.microbatches was 1 and is 2 (and 1 more)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_during_preparation_ends_the_run_in_order(tmp_path, capsys, monkeypatch):
    def interrupt(function):
        def interrupted(*args, **options):
            signal.raise_signal(signal.SIGTERM)
            return function(*args, **options)

        return interrupted

    with monkeypatch.context() as patch:
        patch.setattr(source, "load", interrupt(source.load))
        assert main(tmp_path) == 128 + signal.SIGTERM
    assert capsys.readouterr() == ("stopped before training; run the command again to go on\n", "")
    with monkeypatch.context() as patch:
        patch.setattr(states, "begin_state", interrupt(states.begin_state))
        assert main(tmp_path) == 128 + signal.SIGTERM
    out = capsys.readouterr().out
    assert "stopped at step 0 of 60" in out and "ready" not in out
    monkeypatch.setattr(steps, "build_train_step", interrupt(steps.build_train_step))
    assert main(tmp_path) == 128 + signal.SIGTERM
    assert "stopped at step 1 of 60" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
