# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command as tests run it: in this process, or in one of its own."""

import json
import os
import subprocess
import sys
import time

import jax
import orbax.checkpoint as ocp
import pytest

from pqt_jax import train
from pqt_jax.training.run import metrics
from support import tiny
from support.compilation import count_compilations
from support.paths import ROOT


def start(*arguments, launcher=(), cwd=ROOT, **variables):
    """Run the command in a process of its own, with some environment variables more.

    `launcher` is the beginning of a command line that starts it, such as mpirun with its options.
    """
    env = {
        **os.environ,
        **variables,
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
    }
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "pqt_jax.train", "--config", ROOT / "tests/support/tiny.py"]
    return subprocess.Popen(
        list(map(str, [*launcher, *command, *arguments])),
        cwd=cwd,
        env=env,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


def end(process, code=0):
    """Wait for a process to end with an exit code: (stdout, stderr)."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out, err


def wait_for(process, text):
    """Read lines until one begins with a text."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if line.startswith(text):
            return
        assert line, process.stderr.read()
    raise AssertionError(f"no {text!r} in time")


def main(tmp_path, *arguments, config="tests/support/tiny.py"):
    """Run the command in this process, with its workdir and some text under `tmp_path`."""
    text = tiny.write_text(tmp_path / "text.txt")
    given = [f"--config={ROOT / config}", f"--workdir={tmp_path / 'run'}"]
    return train.main([*given, f"--config.data.files={text}", *arguments])


def check_outputs(workdir, out, count):
    """What a run of `count` steps leaves in its workdir, and what it prints."""
    records = metrics.read(workdir / "metrics.jsonl")
    logged = [r for r in records if "loss" in r]
    assert [r["step"] for r in logged] == list(range(1, count + 1))
    names = "step loss tokens tokens_per_s lr grad_norm bits_mean bits_min bits_max"
    names += " tokens_per_s_per_device process_peak_gb hours_left"  # no MFU of a CPU
    assert all(set(r) == set(names.split()) for r in logged)
    assert all(r["tokens_per_s_per_device"] == r["tokens_per_s"] > 0 for r in logged)
    assert all(0.05 < r["process_peak_gb"] < 100 for r in logged)
    assert logged[0]["hours_left"] > logged[-1]["hours_left"] == 0
    assert [r["tokens"] for r in logged] == [64 * i for i in range(1, count + 1)]
    assert logged[0]["lr"] == pytest.approx(1e-2 / 3)
    assert max(r["lr"] for r in logged) == pytest.approx(1e-2)
    assert logged[-1]["loss"] < logged[0]["loss"] - 1
    assert logged[0]["bits_mean"] == 6.0 > logged[-1]["bits_mean"]
    validated = [r for r in records if "validation_loss" in r]
    assert [r["step"] for r in validated] == list(range(4, count + 1, 4))
    summary = json.loads((workdir / "summary.json").read_text())
    losses = "master bf16 fp8_e4m3 fp6_e3m2 fp4_e2m1 mixed mean_bits formats trained_format"
    assert set(summary) == {*losses.split(), "method", "steps", "seconds", "tokens_per_s", "config"}
    assert summary["master"] == pytest.approx(validated[-1]["validation_loss"])
    assert summary["steps"] == count and summary["tokens_per_s"] > 0
    for name in ("loss.png", "bits.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert f"config.steps={count}\n" in out
    assert "BF16" in out and f"{summary['fp4_e2m1']:.4f}" in out
    assert json.loads((workdir / "run.json").read_text())["config"]["steps"] == count


def refused(command, arguments, capsys):
    """The line of a command that refuses its arguments before anything is compiled."""
    capsys.readouterr()
    with count_compilations() as programs:
        code = command([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 2100
    assert not programs
    return err


def saved_leaves(workdir):
    """Every array and number of the newest checkpoint, read without the trainer."""
    with ocp.CheckpointManager((workdir / "checkpoints").absolute()) as manager:
        step = manager.latest_step()
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(step, args=items)["state"]
    leaves = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(state)}
    return step, leaves


def timeless(records):
    names = {"tokens_per_s", "tokens_per_s_per_device", "process_peak_gb", "hours_left"}
    return [{k: v for k, v in r.items() if k not in names} for r in records]
