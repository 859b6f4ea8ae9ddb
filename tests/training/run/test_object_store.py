# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checkpoints in a bucket of Google Cloud Storage, and the claim of a folder in it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

from pqt_jax.errors import InputError
from pqt_jax.training.run import object_store
from support import gcs_server, tiny
from support.command import end, start, wait_for
from support.paths import ROOT

FOLDER = "gs://bucket/runs/one"


@pytest.fixture(scope="module")
def environment():
    with gcs_server.serve() as variables:
        yield variables


@pytest.fixture
def bucket(environment, monkeypatch):
    """An empty bucket for this process, in which claims become void after a second."""
    from google.cloud import storage

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "REFRESH", 0.1)
    monkeypatch.setattr(object_store, "STALE", 1.0)
    bucket = storage.Client().bucket("bucket")
    for blob in bucket.list_blobs():
        blob.delete()
    return bucket


def claim_or_none():
    with contextlib.suppress(InputError):
        return object_store.claim(FOLDER)


def test_a_folder_is_claimed_by_one_run_until_it_gives_it_up(bucket, capsys):
    release = object_store.claim(FOLDER)
    message = f"config.log.store='{FOLDER}' is in use by another run: process {os.getpid()} on "
    with pytest.raises(InputError, match=message):
        object_store.claim(FOLDER)
    object_store.claim(f"{FOLDER}-2")()
    release()
    assert capsys.readouterr().out.count("\n") == 1  # the second run says what it waits for
    object_store.claim(FOLDER)()
    assert capsys.readouterr().out == ""


def test_of_runs_that_begin_at_once_one_gets_the_folder(bucket):
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(claim_or_none())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (release,) = filter(None, taken)
    release()


def test_the_claim_of_a_killed_run_is_taken_over_and_ends_it_if_it_lives(
    bucket, monkeypatch, capsys
):
    monkeypatch.setattr(object_store, "REFRESH", 3.0)  # as a process that was stopped for a while
    ended = threading.Event()
    monkeypatch.setattr(object_store, "exit_now", lambda code, flush: ended.set())
    first = object_store.claim(FOLDER)
    second = object_store.claim(FOLDER)
    assert ended.wait(10)
    assert "error: cannot write gs://bucket/runs/one: another run has" in capsys.readouterr().err
    first()  # leaves the claim of the other
    assert bucket.blob("runs/one/claim.txt").download_as_bytes()
    second()
    assert not bucket.blob("runs/one/claim.txt").download_as_bytes()


def test_a_write_whose_answer_was_lost_counts(bucket):
    blob = bucket.blob("runs/one/claim.txt")
    generation = object_store._write(blob, "mine", 0)
    assert object_store._write(blob, "mine", 0) == generation > 0
    assert object_store._write(blob, "another", 0) == 0
    assert object_store._read(blob) == ("mine", generation)


def test_steps_are_those_that_were_written_to_the_end(bucket):
    folder = object_store.open_folder(FOLDER) / "checkpoints"
    assert object_store.saved_steps(folder) == set()
    for name in ("4/commit_success.txt", "8/state/d/x", "12/commit_success.txt", "x/commit.txt"):
        bucket.blob(f"runs/one/checkpoints/{name}").upload_from_string("")
    assert object_store.saved_steps(folder) == {4, 12}


def test_a_bucket_that_is_not_there_is_refused_by_name(bucket):
    with pytest.raises(InputError, match="config.log.store: gs://gone/run cannot be used"):
        object_store.check("gs://gone/run")
    object_store.check(FOLDER)


def test_packages_that_are_missing_are_named(monkeypatch):
    for package, module in (("gcsfs", "gcsfs"), ("google-cloud-storage", "google.cloud.storage")):
        monkeypatch.setattr(
            object_store, "_is_installed", lambda name, module=module: name != module
        )
        with pytest.raises(InputError, match=f"needs {package}, which is not installed: pip inst"):
            object_store.check(FOLDER)


def damage(prefix):
    """Cut each object whose name begins so to its half."""
    from google.cloud import storage

    for blob in list(storage.Client().bucket("bucket").list_blobs(prefix=prefix)):
        content = blob.download_as_bytes()
        blob.upload_from_string(content[: len(content) // 2])


def evaluate(run, **variables):
    command = [sys.executable, "-m", "pqt_jax.evaluate", f"--workdir={run}", "--weights=bf16"]
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=240
    )


@pytest.mark.slow
def test_a_run_goes_on_from_the_bucket_on_another_disk(bucket, environment, tmp_path):
    """One run at a time: stopped, resumed without its folder, read, damaged and resumed."""
    given = [f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}"]
    given += ["--config.optimizer.schedule=constant", f"--config.log.store={FOLDER}"]
    long = [*given, "--config.steps=1000000", "--config.log.validate_every=1000000"]
    run = start(*long, f"--workdir={tmp_path / 'a'}", **environment)
    wait_for(run, "step=9 ")
    other = start(*long, f"--workdir={tmp_path / 'b'}", **environment)
    _, err = end(other, 2)
    assert err.splitlines()[-1].startswith(f"error: config.log.store='{FOLDER}' is in use by anot")
    run.send_signal(signal.SIGTERM)
    out, _ = end(run, 128 + signal.SIGTERM)
    stopped = int(out.split("stopped at step ")[1].split()[0])
    assert not (tmp_path / "a" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "a")

    steps = stopped + 4
    short = [*given, f"--config.steps={steps}"]
    out, _ = end(start(*short, f"--workdir={tmp_path / 'b'}", **environment))
    assert f"\nresumed from step {stopped} of {steps}\n" in out
    end(start(*short[:2], f"--config.steps={steps}", f"--workdir={tmp_path / 'disk'}"))
    summaries = [tmp_path / name / "summary.json" for name in ("b", "disk")]
    losses = [json.loads(path.read_text())["master"] for path in summaries]
    assert losses[0] == losses[1]

    before = (steps - 1) // 4 * 4  # the checkpoint before the last one
    damage(f"runs/one/checkpoints/{steps}/state/")
    reading = evaluate(tmp_path / "b", **environment)
    assert f"checkpoint of step {steps} is damaged (" in reading.stderr
    assert f"{tmp_path / 'b'}, step {before}" in reading.stdout
    more = [*given, f"--config.steps={steps + 4}", f"--workdir={tmp_path / 'b'}"]
    out, err = end(start(*more, **environment))
    assert f"was moved to {FOLDER}/damaged/{steps}; resuming from step {before}" in err
    assert f"\nresumed from step {before} of {steps + 4}\n" in out
    assert max(object_store.saved_steps(f"{FOLDER}/checkpoints")) == steps + 4
    assert list(bucket.list_blobs(prefix=f"runs/one/damaged/{steps}/state/"))

    _, err = end(start(*more, "--config.log.store=", **environment), 2)
    assert (
        f"config.log.store='': the newest checkpoint is in {FOLDER}/checkpoints and not in" in err
    )


@pytest.mark.slow
def test_processes_share_the_bucket_and_no_disk(bucket, environment, tmp_path):
    """The same path of the workdir is another folder for the second process."""
    given = [f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}", "--distributed"]
    given += ["--config.mesh.data=0", "--config.mesh.fsdp=2", "--workdir=/proc/self/cwd/run"]
    given += ["--config.optimizer.schedule=constant", f"--config.log.store={FOLDER}"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"

    def train(steps):
        """What the first of two processes prints, which take so many steps together."""
        both = []
        for index in range(2):
            (folder := tmp_path / str(index)).mkdir(exist_ok=True)
            places = {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(index)}
            places |= {"JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "2", "PQT_JAX_WAIT": "60"}
            arguments = [*given, f"--config.steps={steps}"]
            both.append(start(*arguments, cwd=folder, **environment, **places))
        return [end(process) for process in both][0][0]

    train(8)
    written = bucket.list_blobs(prefix="runs/one/checkpoints/8/state/ocdbt.process_")
    assert {blob.name.split("process_")[1].split("/")[0] for blob in written} == {"0", "1"}
    assert "finished: all 8 steps are done" in train(8)
    assert "\nresumed from step 8 of 12\n" in train(12)
    assert os.listdir(tmp_path / "1") == []
    assert object_store.saved_steps(f"{FOLDER}/checkpoints") == {8, 12}
