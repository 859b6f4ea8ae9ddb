# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Traces of a few steps, and runs whose output nobody reads: neither may end a training."""

import subprocess
import sys

import jax
import pytest

from pqt_jax import train
from pqt_jax.training.run import metrics, profiling
from support import tiny
from support.command import end, main, refused, start
from support.paths import ROOT


@pytest.mark.parametrize("left, steps", [(100, [11, 16]), (12, [7, 12]), (4, [3, 5]), (1, [1, 2])])
def test_a_trace_is_of_warm_steps_and_always_whole(tmp_path, monkeypatch, capsys, left, steps):
    seen, done = [], [0]
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: seen.append(done[0] + 1))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(done[0] + 1))
    with profiling.trace_steps(tmp_path, left) as before:
        for step in range(1, left + 1):
            before(step)
            done[0] = step
    assert seen == steps
    assert f"wrote a trace of {steps[1] - steps[0]} steps to {tmp_path}" in capsys.readouterr().out


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("no")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    with profiling.trace_steps(tmp_path, 3) as before:
        for step in (1, 2, 3):
            before(step)
    assert capsys.readouterr().err == f"warning: no trace is written to {tmp_path}: no\n"


@pytest.mark.jax_version
@pytest.mark.slow
def test_the_command_writes_a_trace(tmp_path):
    assert main(tmp_path, "--config.steps=3", "--profile") == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_file_in_its_place_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").touch()
    given = [
        f"--config={ROOT / 'tests/support/tiny.py'}",
        f"--workdir={tmp_path / 'run'}",
        "--profile",
    ]
    message = refused(train.main, given, capsys)
    assert message.endswith("run/profile is not a directory; move it away\n")


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_a_run(tmp_path):
    text = f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}"
    process = start(f"--workdir={tmp_path / 'run'}", text, "--config.steps=8")
    process.stdout.close()
    process.stdout = None
    _, err = end(process)
    assert err == (
        "warning: standard output cannot be written (broken pipe); going on without it\n"
    )
    logged = [r["step"] for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert logged == list(range(1, 9)) and (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_closed_output_does_not_end_a_run(tmp_path):
    text = tiny.write_text(tmp_path / "text.txt")
    given = f"--workdir={tmp_path}/run --config.data.files={text} --config.steps=4"
    shell = f"{sys.executable} -m pqt_jax.train --config tests/support/tiny.py {given} >&-"
    env = {"PYTHONPATH": "tests", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "summary.json").exists()
