# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What can go wrong in a run of weeks, in real processes: nothing is lost, and one line says it.

Of several processes, and of one that is killed among them: `test_distributed`.
"""

import os
import random
import re
import shutil
import subprocess

import numpy as np
import pytest

from pqt_jax import train
from pqt_jax.training.run import metrics
from support import tiny
from support.command import end, main, saved_leaves, start, timeless, wait_for
from support.paths import ROOT

pytestmark = pytest.mark.slow
KILLS = 6
SAVING = ("--config.log.checkpoint_every=1", "--config.log.validate_every=50")


@pytest.fixture
def text(tmp_path):
    return f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}"


def test_kills_at_random_points_of_saves_lose_nothing(tmp_path, text):
    """Every step is saved, so that kills fall into saves; the end is that of a run left alone."""
    rng, killed, broken = random.Random(0), 0, tmp_path / "broken"
    given = [text, "--config.steps=60", *SAVING]
    end(start(f"--workdir={tmp_path / 'whole'}", *given))
    partial = 0
    while True:
        process = start(f"--workdir={broken}", *given)
        if killed == KILLS:
            out, err = end(process)
            break
        for _ in range(rng.randint(2, 4)):  # a save is waited for by the next
            wait_for(process, "step=")
        try:
            process.wait(rng.uniform(0, 0.15))
            raise AssertionError("ended before it was killed")
        except subprocess.TimeoutExpired:
            process.kill()
        out, err = process.communicate()
        assert err == "", err
        killed += 1
        partial += any("tmp" in p.name for p in (broken / "checkpoints").iterdir())
    assert "resumed from step" in out and err == ""
    assert partial  # some kill found a save half done
    (step, leaves), (other_step, other) = saved_leaves(broken), saved_leaves(tmp_path / "whole")
    assert step == other_step == 60 and leaves.keys() == other.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)
    found, wanted = (
        timeless(metrics.read(w / "metrics.jsonl")) for w in (broken, tmp_path / "whole")
    )
    assert found == wanted
    assert not [p for p in (broken / "checkpoints").iterdir() if not p.name.isdecimal()]


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    path = largest(folder / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda folder: [p.write_bytes(b"") for p in folder.rglob("*") if p.is_file()],
    "truncated": lambda folder: os.truncate(largest(folder / "state"), 100),
    "flipped": flip,
    "no metadata": lambda folder: shutil.rmtree(folder / "meta"),
    "no files": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_gives_way_and_its_step_is_saved_again(run_copy, kind, capsys):
    """Rolled back from step 8 to 4, and on to 8."""
    _, before = saved_leaves(run_copy)
    DAMAGE[kind](run_copy / "checkpoints" / "8")
    (run_copy / "summary.json").unlink()
    config = next(iter(run_copy.glob("run.json"))).read_text()
    text = re.search(r'"files": "(.*?)"', config)[1]
    given = [f"--config={ROOT / 'tests/support/tiny.py'}", f"--workdir={run_copy}"]
    given += [f"--config.data.files={text}", "--config.steps=8"]
    assert train.main(given) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"checkpoint of step 8 cannot be read \(.+\) and was moved to .*/damaged/8; "
        r"resuming from step 4\n",
        err,
    )
    assert "resumed from step 4 of 8" in out
    step, after = saved_leaves(run_copy)
    assert step == 8
    for path, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[path], err_msg=path)
    assert train.main(given) == 0
    out, err = capsys.readouterr()
    assert "finished: all 8 steps are done" in out and err == ""


@pytest.fixture(params=["size=3M", "size=9M,nr_inodes=60"])  # bytes, and names of files, run out
def small_disk(tmp_path, request):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", disk]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be made by root alone, where mounting is allowed")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_when_there_is_room(small_disk, text):
    """Real ENOSPC, in the background of a save; the older checkpoint stays good."""
    given = [f"--workdir={small_disk / 'run'}", text, "--config.steps=60", "--config.log.keep=99"]
    process = start(*given)
    err = process.stderr.readline()
    assert re.fullmatch(
        r"error: cannot write .*/run/.*: no space left on device; free some and run the .*\n", err
    ), err
    _, more = process.communicate(timeout=10)  # Orbax's threads would wait 300 s
    assert process.returncode == 1 and more == ""
    kept = [p.name for p in (small_disk / "run" / "checkpoints").iterdir()]
    subprocess.run(["mount", "-o", "remount,size=99M,nr_inodes=9999", small_disk], check=True)
    out, err = end(start(*given))
    resumed = int(re.search(r"resumed from step (\d+) of 60", out)[1])
    assert resumed == max(int(name) for name in kept if name.isdecimal()) and err == ""
    logged = [r["step"] for r in metrics.read(small_disk / "run" / "metrics.jsonl") if "loss" in r]
    assert logged == list(range(1, 61))


def test_a_folder_that_nobody_may_write_is_refused(tmp_path, text):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if not os.getuid():  # root may write everywhere but here
        subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=True)
    try:
        out, err = end(start(f"--workdir={folder / 'run'}", text), 2)
    finally:
        if not os.getuid():
            subprocess.run(["umount", folder], check=True)
    assert out == "" and err.startswith("error: --workdir=") and "cannot be written" in err


def test_two_processes_on_one_workdir(tmp_path, text):
    given = [f"--workdir={tmp_path / 'run'}", text, "--config.steps=4000"]
    first = start(*given)
    wait_for(first, "step=3 ")
    out, err = end(start(*given), 2)
    assert out == "" and err.endswith("is in use by another run\n") and err.count("\n") == 1
    wait_for(first, "step=")  # and it trains on
    first.kill()
    first.communicate()


OTHER = {
    "model.d_ff": ("96", "was 64 and is 96"),
    "model.dtype": ("bfloat16", "was 'float32' and is 'bfloat16'"),
    "model.param_dtype": ("bfloat16", "was 'float32' and is 'bfloat16'"),
    "optimizer.name": ("adam_mini", "was 'adamw' and is 'adam_mini'"),
    "data.length": ("8", "was 16 and is 8"),
    "data.batch": ("8", "was 4 and is 8"),
    "method": ("uniform", "was 'gaussws' and is 'uniform'"),
}


@pytest.mark.parametrize("field", OTHER)
def test_another_run_is_refused_by_the_name_of_what_differs(run_copy, field, tmp_path_factory):
    value, message = OTHER[field]
    text = re.search(r'"files": "(.*?)"', (run_copy / "run.json").read_text())[1]
    before = sorted((p, p.stat().st_mtime_ns) for p in run_copy.rglob("*"))
    out, err = end(
        start(
            f"--workdir={run_copy}",
            f"--config.data.files={text}",
            "--config.steps=8",
            f"--config.{field}={value}",
        ),
        2,
    )
    assert out == "" and err.count("\n") == 1
    assert f"belongs to another run: config.{field} {message}; give another --workdir" in err
    assert sorted((p, p.stat().st_mtime_ns) for p in run_copy.rglob("*")) == before


def test_changed_text_is_refused_by_name(tmp_path):
    assert main(tmp_path, "--config.steps=4") == 0
    text = tmp_path / "text.txt"
    text.write_text(text.read_text()[:-1] + "!")
    given = [f"--workdir={tmp_path / 'run'}", f"--config.data.files={text}", "--config.steps=4"]
    out, err = end(start(*given), 2)
    assert "belongs to another run: data_fingerprint was" in err and err.count("\n") == 1
