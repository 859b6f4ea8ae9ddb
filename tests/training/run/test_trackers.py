# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What TensorBoard and W&B have on disk is read back; what fails is said, and the run goes on."""

import importlib.util
import json
import resource
import shutil
import struct

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from wandb.proto.wandb_internal_pb2 import Record

from pqt_jax import train
from pqt_jax.errors import InputError, OutputError
from pqt_jax.training import summary
from pqt_jax.training.run import metrics, trackers
from support import tiny
from support.command import main, refused


def events(folder):
    """Every event, file by file in the order of their names, as TensorBoard reads them."""
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)  # then 4 bytes of check
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def scalars(folder):
    """(step, tag) → value, as TensorBoard shows them: what a new session makes again is purged."""
    shown = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            shown = [entry for entry in shown if entry[0][0] < event.step]
        shown += [((event.step, v.tag), v.simple_value) for v in event.summary.value]
    assert len(dict(shown)) == len(shown)
    return dict(shown)


def history(folder):
    """(step, name) → value of an offline run of W&B: a log of records in blocks of 32 KiB."""
    (path,) = folder.glob("*.wandb")
    data, at, parts, rows = path.read_bytes(), 7, b"", {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for another head
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found = Record.FromString(parts).history
            rows |= {
                (found.step.num, *(i.nested_key or [i.key])): json.loads(i.value_json)
                for i in found.item
                if not (i.key or i.nested_key[0]).startswith("_")
            }
            parts = b""
    return rows


def expected(run):
    """The same of metrics.jsonl."""
    rows = metrics.read(run / "metrics.jsonl")
    return {(r["step"], k): v for r in rows for k, v in r.items() if k != "step" and v is not None}


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_both(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    options = ("--config.steps=8", "--config.log.tensorboard=true", "--config.log.wandb=project")
    stopped = ("--config.log.checkpoint_every=6",)

    def full(*_, **__):
        raise OutputError(run, "no space")

    with monkeypatch.context() as patch:  # steps 7 and 8 are recorded, and not saved
        patch.setattr(summary, "finish", full)
        assert main(tmp_path, *options, *stopped) == 1
    shutil.rmtree(run / "checkpoints" / "8")
    assert scalars(run / "tensorboard").keys() == expected(run).keys()
    capfd.readouterr()
    assert main(tmp_path, *options, *stopped) == 0
    out, err = capfd.readouterr()
    assert (
        "resumed from step 6 of 8" in out
        and err == ""
        and "wandb" not in out.lower().replace("config.log.wandb=project", "")
    )
    found = scalars(run / "tensorboard")
    assert found.keys() == expected(run).keys() and (8, "validation_loss") in found
    for name, value in expected(run).items():
        assert found[name] == pytest.approx(value, rel=1e-6)  # float32
    assert len(list((run / "tensorboard").iterdir())) == 2
    first, second = sorted((run / "wandb").glob("offline-run-*"))
    own_id = (run / "wandb.id").read_text().strip()
    assert first.name.endswith(own_id) and second.name.endswith(own_id)
    assert {step for step, _ in history(first)} == set(range(1, 9))
    rows = history(second)
    assert rows == {name: value for name, value in expected(run).items() if name[0] > 6}


def test_nothing_is_written_unless_asked_for_nor_by_other_processes(tmp_path, monkeypatch):
    config = tiny.get_config()
    assert trackers.start(config, tmp_path, 0) == []
    config.log.tensorboard, config.log.wandb = True, "project"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert trackers.start(config, tmp_path, 0) == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option, package", [("tensorboard=true", "tensorboardX"), ("wandb=project", "wandb")]
)
def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch, capsys, option, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else find(n))
    text = tiny.write_text(tmp_path / "text.txt")
    given = [f"--config={tiny.__file__}", f"--workdir={tmp_path / 'run'}"]
    err = refused(
        train.main, [*given, f"--config.data.files={text}", f"--config.log.{option}"], capsys
    )
    assert f"it needs {package}, which is not installed: pip install 'pqt_jax[log]'" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a/b", " ", "x" * 129, "50%"])
def test_a_name_that_is_no_projects_is_refused_before_the_workdir_is_made(tmp_path, capsys, name):
    text = tiny.write_text(tmp_path / "text.txt")
    given = [f"--config={tiny.__file__}", f"--workdir={tmp_path / 'run'}"]
    given += [f"--config.data.files={text}", f"--config.log.wandb={name}"]
    assert "it must be the name of a project" in refused(train.main, given, capsys)
    assert not (tmp_path / "run").exists()


def test_what_fails_before_training_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny.get_config()
    config.log.wandb = "a/b"
    with pytest.raises(InputError, match="config.log.wandb='a/b'; W&B cannot be used: .*; fix"):
        trackers.start(config, tmp_path, 0)
    config.log.wandb, config.log.tensorboard = "", True
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(OutputError, match="cannot write .*/tensorboard: file exists"):
        trackers.start(config, tmp_path, 0)
    assert capfd.readouterr() == ("", "")


def test_a_tracker_that_fails_is_named_once_and_removed(capsys):
    sent = []

    def fail(step, values):
        raise OSError(28, "No space left\non device")

    good = trackers.Tracker("good", lambda step, values: sent.append((step, values)), lambda: None)
    some = [trackers.Tracker("TensorBoard", fail, lambda: None), good]
    for step in (1, 2):
        trackers.send(some, {"step": step, "loss": 1.5, "bits_mean": None})
    assert sent == [(1, {"loss": 1.5}), (2, {"loss": 1.5})] and some == [good]
    with trackers.close_at_end() as more:
        more += [good, trackers.Tracker("W&B", fail, lambda: fail(0, {}))]
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("warning: TensorBoard failed (OSError: [Errno 28] No space left on")
    assert err[0].endswith("); training continues without it") and len(err) == 2


def test_a_disk_that_fills_up_does_not_end_the_run(tmp_path, capsys):
    config = tiny.get_config()
    config.log.tensorboard = True
    some = trackers.start(config, tmp_path, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for step in range(1, 60):
            trackers.send(some, {"step": step, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert some == [] and capsys.readouterr().err.count("warning: TensorBoard failed (") == 1
