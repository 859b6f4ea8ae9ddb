# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A workdir belongs to one run, and what would stop or spoil it is refused before it begins."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from pqt_jax.data.source import Text
from pqt_jax.errors import InputError
from pqt_jax.training.run import metrics, run_metadata
from pqt_jax.training.run import workdir as workdirs
from support import tiny

TEXT = Text(np.arange(256, dtype=np.uint8), np.arange(64, dtype=np.uint8), "0123", "made up")


def claim(workdir, config=None, text=TEXT):
    config = config or tiny.get_config()
    os.close(workdirs.claim(workdir, run_metadata.make_metadata(config, text)))


def test_a_workdir_is_claimed_once_and_again(tmp_path):
    workdir = tmp_path / "a" / "b"
    claim(workdir)
    meta = json.loads((workdir / "run.json").read_text())
    assert meta["config"]["steps"] == 60
    assert meta["stream_version"] == 1 and meta["data_fingerprint"] == "0123"
    assert meta["versions"]["jax"] == jax.__version__
    config = tiny.get_config()
    config.log.every = 3
    claim(workdir, config)


def test_a_workdir_of_another_run_is_refused_and_left_alone(tmp_path):
    claim(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    other = tiny.get_config()
    other.model.d_ff = 96
    with pytest.raises(InputError, match="config.model.d_ff was 64 and is 96; give another"):
        claim(tmp_path, other)
    other.seed = 9
    with pytest.raises(InputError, match=r"config.model.d_ff was 64 and is 96 \(and 1 more\)"):
        claim(tmp_path, other)
    with pytest.raises(InputError, match="another run: config.model"):
        claim(tmp_path, tiny.get_config(tiny.GPT2))
    with pytest.raises(InputError, match="data_fingerprint was 0123 and is 4567"):
        claim(tmp_path, text=TEXT._replace(fingerprint="4567"))
    message = r"was 0123 and is 333333333333 \(it is of this Python's standard library\); give"
    with pytest.raises(InputError, match=message):
        claim(tmp_path, text=TEXT._replace(fingerprint="3" * 64))
    assert (tmp_path / "run.json").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "run.lock"}


def test_another_noise_stream_is_refused(tmp_path, monkeypatch):
    claim(tmp_path)
    monkeypatch.setattr(run_metadata.philox, "STREAM_VERSION", 2)
    with pytest.raises(InputError, match="stream_version was 1 and is 2"):
        claim(tmp_path)


def test_unusable_workdirs_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run cannot be written: Not a directory"):
        claim(tmp_path / "file" / "run")
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(InputError, match="holds metrics.jsonl but no run.json"):
        claim(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"
    for damaged in ("{", "{}", "[]", '{"config": {}}', "[" * 100_000):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(InputError, match="run.json in it is damaged; put a copy back, or"):
            claim(tmp_path)
    with pytest.raises(InputError, match="file is not a directory; give a directory"):
        claim(tmp_path / "file")


def test_a_workdir_serves_one_run_at_a_time(tmp_path):
    config = tiny.get_config()
    lock = workdirs.claim(tmp_path, run_metadata.make_metadata(config, TEXT))
    with pytest.raises(InputError, match="is in use by another run"):
        claim(tmp_path)
    os.close(lock)
    claim(tmp_path)


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "metrics.jsonl.tmp", "summary.json", "loss.png"]
)
def test_a_directory_where_a_file_belongs_is_named(tmp_path, name):
    claim(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} in it is a directory; move it away"):
        claim(tmp_path)


CLAIM = """
import fcntl, json, pathlib, sys
from pqt_jax.training.run import workdir
workdir._PATIENCE = 0.2
folder, kind, meta = pathlib.Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
try:
    lock = workdir.claim(folder, meta, alone=kind == "training")
except workdir.InputError as error:
    sys.exit(str(error))
if kind == "sweep":
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + int(sys.argv[4]))  # at a part
print("claimed", flush=True)
sys.stdin.read()
"""


MIXED = [("training", "sweep"), ("sweep", "training")]
PAIRS = [("training", "training")]
PAIRS += [pytest.param(*pair, marks=pytest.mark.slow) for pair in (*MIXED, ("sweep", "sweep"))]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_training_run_is_alone_and_processes_of_a_sweep_are_not(tmp_path, first, second):
    """By locks alone, as where both come to a new folder before either can read whose it is."""
    meta = json.dumps(run_metadata.make_metadata(tiny.get_config(), TEXT))

    def start(kind, part):
        command = [sys.executable, "-c", CLAIM, tmp_path, kind, meta, part]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    with start(first, "0") as one:
        assert one.stdout.readline() == "claimed\n"
        out, error = start(second, "1").communicate()
        one.stdin.close()
    if first == second == "sweep":
        assert out == "claimed\n" and not error
    else:
        assert not out and "is in use by another run" in error


def test_a_file_where_checkpoints_belong_is_named(tmp_path):
    claim(tmp_path)
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InputError, match="checkpoints in it is no directory; move it away"):
        claim(tmp_path)


def record(workdir, *steps):
    for step in steps:
        metrics.append(workdir / "metrics.jsonl", {"step": step, "loss": 1.0})


def test_a_run_without_its_checkpoints_is_not_started_over(tmp_path):
    claim(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    record(tmp_path, 1, 8)  # killed while the first of its savings, of step 4, was not done
    claim(tmp_path)
    record(tmp_path, 9)
    more = tiny.get_config()
    more.log.checkpoint_every = 100
    claim(tmp_path, more)  # which may not have been saved yet
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for remove in (lambda: None, (tmp_path / "checkpoints").rmdir):
        remove()
        with pytest.raises(InputError, match="metrics up to step 9 but no checkpoint; put check"):
            claim(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    claim(tmp_path)


def test_skipped_steps_put_checkpoints_off(tmp_path):
    claim(tmp_path)
    record(tmp_path, 1, 8)
    metrics.append(tmp_path / "metrics.jsonl", {"step": 8, "skipped": 1, "in_a_row": 1})
    record(tmp_path, 9)
    claim(tmp_path)
    record(tmp_path, 10)
    with pytest.raises(InputError, match="metrics up to step 10 but no checkpoint"):
        claim(tmp_path)


def test_a_finished_run_without_its_checkpoints_is_refused(tmp_path):
    claim(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="but no checkpoint"):
        claim(tmp_path)


def test_paths_that_cannot_be_are_one_line(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name, message in (
        ("x" * 300, "cannot be written: File name too long; give a shorter path"),
        ("/".join(39 * ["x" * 100]), "is too long for the files in it; give a shorter path"),
        ("[new]/run", r"checkpoints cannot be kept under a path with \["),
        ("a\\b", r"checkpoints cannot be kept under a path with \\"),
        ("\udcff", "must be UTF-8 without NUL"),
        ("\0", "must be UTF-8 without NUL"),
        ("loop", "is a link to nowhere"),
        ("dangling", "is a link to nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            claim(tmp_path / name)


def test_a_users_file_is_no_probe(tmp_path):
    (tmp_path / ".run.json.probe").write_text("mine")
    claim(tmp_path)
    assert (tmp_path / ".run.json.probe").read_text() == "mine"


def test_files_that_lie_elsewhere_are_the_same_text():
    old, new = (run_metadata.make_metadata(tiny.get_config(), TEXT) for _ in range(2))
    new["config"]["data"]["files"] = "/mnt/other/*.txt"
    run_metadata.check_same_run(old, new, "it")
    new["data_fingerprint"] = "other"
    with pytest.raises(InputError, match="config.data.files was .* and is '/mnt/other/"):
        run_metadata.check_same_run(old, new, "it")


def metadata(**changes):
    config = tiny.get_config()
    config.optimizer.schedule = changes.pop("schedule", "wsd")
    config.update(changes)
    return run_metadata.make_metadata(config, TEXT)


def save_steps(workdir, *steps):
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    for step in steps:
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)


def claim_steps(workdir, **changes):
    os.close(workdirs.claim(workdir, metadata(**changes)))
    return json.loads((workdir / "run.json").read_text())["config"]["steps"]


def test_steps_may_change_while_the_taken_ones_stay_the_same(tmp_path):
    """A WSD run of 60 steps decays from 48 on, one of 50 from 40 on."""
    assert claim_steps(tmp_path, steps=60) == 60
    save_steps(tmp_path, 40, 48)
    assert claim_steps(tmp_path, steps=100) == 100
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(
        InputError,
        match="config.steps was 100 and is 50, which changes the steps after 40, and the newest "
        "checkpoint is of step 48; to go back to step 40, move the newer ones",
    ):
        claim_steps(tmp_path, steps=50)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    save_steps(tmp_path, 40)
    assert claim_steps(tmp_path, steps=50) == 50
    save_steps(tmp_path, 50)
    with pytest.raises(InputError, match="no earlier checkpoint is there, so give another --work"):
        claim_steps(tmp_path, steps=60)
    with pytest.raises(InputError, match="another run: config.seed was 0 and is 1"):
        claim_steps(tmp_path, steps=60, seed=1)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_that_always_fall_have_their_number_of_steps_for_good(tmp_path, schedule):
    assert claim_steps(tmp_path, steps=60, schedule=schedule) == 60
    assert claim_steps(tmp_path, steps=70, schedule=schedule) == 70  # no step is saved yet
    save_steps(tmp_path, 4)
    with pytest.raises(
        InputError,
        match=f"config.steps was 70 and is 80, which changes every step of config.optimizer."
        f"schedule='{schedule}'; give another --workdir, or begin with the schedule wsd or const",
    ):
        claim_steps(tmp_path, steps=80, schedule=schedule)
