# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Several real processes on one machine: the training of one, and what ends them."""

import contextlib
import io
import json
import re
import signal
import socket
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.training.run import distributed, launchers, metrics
from support import tiny
from support.command import end, start, wait_for

SAID = re.compile("step|config|error|Traceback")  # beside what the transport between CPUs prints


@pytest.fixture
def text(tmp_path):
    return f"--config.data.files={tiny.write_text(tmp_path / 'text.txt')}"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_all(*arguments, count=2, own=None, **variables):
    """So many processes, with four devices in all."""
    port = free_port()
    given = ["--distributed", "--config.mesh.data=0", *arguments]
    return [
        start(
            *given,
            *(own or {}).get(index, ()),
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=str(count),
            JAX_PROCESS_ID=str(index),
            JAX_NUM_CPU_DEVICES=str(4 // count),
            **{"PQT_JAX_WAIT": "60"} | variables,
        )
        for index in range(count)
    ]


def losses(folder):
    records = metrics.read(folder / "metrics.jsonl")
    names = ("loss", "validation_loss", "grad_norm", "bits_mean")
    return [[r["step"], *(r[name] for name in names if name in r)] for r in records]


def same(folder, other):
    found, wanted = losses(folder), losses(other)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        # Other orders of sums, which casts to BF16 then round elsewhere: as in `test_partitioning`.
        np.testing.assert_allclose(a, b, rtol=2e-6 if a[0] <= 2 else 2e-3)
    found, wanted = (json.loads((f / "summary.json").read_text()) for f in (folder, other))
    for name in ("master", "fp8_e4m3", "fp4_e2m1", "mixed", "mean_bits"):
        assert found[name] == pytest.approx(wanted[name], rel=2e-3), name
    assert found["formats"] == wanted["formats"]


@pytest.mark.jax_version
@pytest.mark.slow
def test_two_processes_train_as_one_also_after_a_signal_to_one_of_them(tmp_path, text):
    """2 × 2 devices, weights split between the processes: stopped by a signal, ended, and read."""
    given = [f"--workdir={tmp_path / 'two'}", text, "--config.steps=12"]
    given += ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    both = start_all(*given)
    wait_for(both[0], "step=2 ")
    both[1].send_signal(signal.SIGTERM)
    (out, err), (other, other_err) = (end(p, 128 + signal.SIGTERM) for p in both)
    assert re.search(r"stopped at step \d+ of 12; run the command again", out)
    assert not SAID.search(other) and err == ""
    assert other_err.startswith("stopping after this step") and other_err.count("\n") == 1
    (out, err), (other, other_err) = (end(p) for p in start_all(*given))
    assert "resumed from step" in out and "learned mixed bits" in out
    assert not SAID.search(other) and err == other_err == ""
    names = {p.name for p in (tmp_path / "two").iterdir()}
    assert {"loss.png", "bits.png", "summary.json", "metrics.jsonl"} <= names
    alone = (f"--workdir={tmp_path / 'one'}", *given[1:3])
    end(start(*alone, JAX_NUM_CPU_DEVICES="1"))
    same(tmp_path / "two", tmp_path / "one")
    (out, err), (other, other_err) = (end(p) for p in start_all(*given))
    assert "finished: all 12 steps are done" in out and err == other_err == ""


@pytest.mark.jax_version
@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_loses_nothing(tmp_path, text, killed):
    given = [f"--workdir={tmp_path / 'run'}", text, "--config.steps=2000"]
    both = start_all(*given, PQT_JAX_WAIT="10")
    wait_for(both[0], "step=10 ")
    both[killed].kill()
    began = time.monotonic()
    left = both[1 - killed]
    out, err = left.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert left.returncode not in (0, 2, 3)
    if left.returncode == distributed.LOST:
        assert re.search("^error: another process was lost; start all of them again", err, re.M)
    both[killed].communicate()
    alone = start(*given, JAX_NUM_CPU_DEVICES="1")
    wait_for(alone, "resumed from step")
    alone.kill()
    alone.communicate()


@pytest.mark.slow
def test_what_is_wrong_in_one_process_ends_all_before_compilation(tmp_path, text):
    run = f"--workdir={tmp_path / 'run'}"
    both = start_all(run, text, own={1: [f"--config.data.files={tmp_path / 'nowhere'}"]})
    out, err = end(both[1], 2)
    assert err.startswith("error: config.data.files=") and err.count("\n") == 1
    out, err = end(both[0], 2)
    assert err == "error: process 1 cannot go on\n" and "ready" not in out
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value, message",
    [
        ("--config.seed", "1", "config.seed is 1, and 0 in the first process"),
        ("--config.data.files", "{}/other.txt", "data_fingerprint is '"),
        ("--workdir", "{}/elsewhere", "--workdir is '"),
    ],
)
def test_processes_of_different_runs_are_refused(tmp_path, text, name, value, message):
    tiny.write_text(tmp_path / "other.txt", 5000)
    own = {1: [f"{name}={value.format(tmp_path)}"]}
    both = start_all(f"--workdir={tmp_path / 'run'}", text, own=own)
    _, err = end(both[1], 2)
    assert err.startswith("error: process 1: ") and message in err and err.count("\n") == 1
    _, err = end(both[0], 2)
    assert err == "error: process 1 cannot go on\n"
    assert not (tmp_path / "run").exists() and not (tmp_path / "elsewhere").exists()


@pytest.mark.jax_version
@pytest.mark.slow
def test_a_process_without_the_others_waits_and_says_so(tmp_path, text):
    missing = start(
        f"--workdir={tmp_path / 'run'}",
        text,
        "--distributed",
        JAX_COORDINATOR_ADDRESS="127.0.0.1:1",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID="1",
        PQT_JAX_WAIT="5",
    )
    out, err = missing.communicate(timeout=120)
    assert missing.returncode == distributed.LOST and not (tmp_path / "run").exists(), out + err
    assert "process 0 does not answer at JAX_COORDINATOR_ADDRESS=127.0.0.1:1 (" in err
    assert err.count("\n") == 1


BAD = {
    "the others": (("", "2", "0"), "JAX_COORDINATOR_ADDRESS is not set, and the others are"),
    "no index": (("a:1", "2", ""), "JAX_PROCESS_ID is not set, and the others are"),
    "too large": (("a:1", "2", "2"), "JAX_NUM_PROCESSES=2, JAX_PROCESS_ID=2; the second counts"),
    "text": (("a:1", "two", "0"), "JAX_NUM_PROCESSES=two, JAX_PROCESS_ID=0; the second counts"),
    "no port": (("a", "2", "0"), "JAX_COORDINATOR_ADDRESS='a'; it must be HOST:PORT"),
    "no such port": (("a:99999", "2", "0"), "='a:99999'; it must be HOST:PORT"),
    "no host": ((":1", "2", "0"), "=':1'; it must be HOST:PORT"),
}


@pytest.mark.parametrize("values, message", BAD.values(), ids=BAD)
def test_an_environment_that_does_not_say_it_is_refused(monkeypatch, values, message):
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(message)):
        distributed.initialize()


@pytest.mark.parametrize("wait", ["-5", "0", "1.5", "abc"])
def test_a_wait_that_is_none_is_refused(monkeypatch, wait):
    for name, value in zip(distributed.VARIABLES, ("a:1", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PQT_JAX_WAIT", wait)
    with pytest.raises(InputError, match=f"PQT_JAX_WAIT='{wait}'; it must be a whole number"):
        distributed.initialize()


@pytest.mark.parametrize("port", ["0", "99999", "-3", "x"])
def test_a_port_of_launchers_that_is_none_is_refused_by_every_process(monkeypatch, port):
    monkeypatch.setenv("JAX_COORDINATOR_PORT", port)
    message = f"JAX_COORDINATOR_PORT='{port}'; it must be from 1 to 65535"
    with pytest.raises(InputError, match=message):
        distributed.initialize()


def test_what_jax_cannot_read_is_said_as_jax_says_it(monkeypatch):
    """It is not that no other process is found: all variables that say so are set."""
    for name, value in zip(
        distributed.VARIABLES, (f"localhost:{free_port()}", "2", "0"), strict=True
    ):
        monkeypatch.setenv(name, value)

    def refuse(*_, **__):
        raise ValueError("invalid literal for int() with base 10: 'x'")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(InputError, match="--distributed: invalid literal .*'x'$"):
        distributed.initialize()


@pytest.mark.parametrize("wait", ["", "7"])
def test_jax_waits_as_long_as_it_likes_unless_it_is_told(monkeypatch, wait):
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: told.append((a, k)))
    address = f"localhost:{free_port()}"
    for name, value in zip(distributed.VARIABLES, (address, "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PQT_JAX_WAIT", wait)
    distributed.initialize()
    waits = {"initialization_timeout": 7, "heartbeat_timeout_seconds": 7} if wait else {}
    assert told == [((address, 2, 0), waits)]


def environments(port):
    """By hand, and what Slurm and Open MPI set, for process 0 of two."""
    local = "127.0.0.1"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": local, "SLURM_NTASKS": "2"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    mpi = {"OMPI_MCA_orte_hnp_uri": f"4096.0;tcp://{local}:1", "OMPI_COMM_WORLD_SIZE": "2"}
    mpi |= {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    by_hand = dict(zip(distributed.VARIABLES, (f"{local}:{port}", "2", "0"), strict=True))
    cluster = {"JAX_COORDINATOR_PORT": str(port)}
    return {"by hand": by_hand, "slurm": slurm | cluster, "mpirun": mpi | cluster}


@pytest.mark.parametrize("launcher", environments(0))
def test_a_port_that_is_taken_is_named(monkeypatch, launcher):
    """JAX would abort the process, and name no port."""
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: told.append(a))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in environments(port)[launcher].items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"process 0 cannot listen at 127.0.0.1:{port} .Addr"):
            distributed.initialize()
    assert told == []
    distributed.initialize()  # now it is free
    assert len(told) == 1


@pytest.mark.parametrize(
    "changed, port",
    [
        ({}, "61447"),  # as JAX has it for job 7
        ({"SLURM_STEP_ID": "0"}, "61447"),
        ({"SLURM_STEP_ID": "1"}, "62424"),
        ({"SLURM_STEP_ID": "1", "JAX_COORDINATOR_PORT": "1234"}, "1234"),
    ],
)
def test_steps_of_a_slurm_job_have_ports_of_their_own(monkeypatch, changed, port):
    """JAX gives them one; then the second step would connect to the first and end it."""
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: told.append((a, k)))
    monkeypatch.setattr(distributed, "_listen", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(distributed, "_wait_for_listener", lambda *_: None)
    slurm = environments(0)["slurm"] | {"JAX_COORDINATOR_PORT": ""} | changed
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert told == [((f"127.0.0.1:{port}", None, None), {})]


@pytest.fixture
def silent_cluster(monkeypatch):
    """Such as Kubernetes for a pod whose account may not ask it, or Open MPI 5 without mpi4py."""

    def refuse(*_, **__):
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden\n\nIt appears") from KeyError("a")

    detected = SimpleNamespace(auto_detect_unset_distributed_params=refuse)
    monkeypatch.setattr(launchers.clusters, "ClusterEnv", detected)


@pytest.mark.usefixtures("silent_cluster")
def test_a_cluster_that_tells_nothing_is_one_line():
    message = "the cluster (Kubernetes API Error: 403 - Forbidden: 'a'); set JAX_COORDINATOR_ADDR"
    with pytest.raises(InputError, match=re.escape(message)):
        distributed.initialize()


@pytest.mark.usefixtures("silent_cluster")
def test_a_cluster_that_tells_nothing_is_not_needed_where_all_is_given(monkeypatch):
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: told.append((a, k)))
    address = f"localhost:{free_port()}"
    for variable, value in zip(distributed.VARIABLES, (address, "1", "0"), strict=True):
        monkeypatch.setenv(variable, value)
    distributed.initialize()
    assert told == [((address, 1, 0), {"cluster_detection_method": "deactivate"})]


def test_a_host_that_the_launcher_names_is_not_blamed_on_a_variable(monkeypatch):
    for name, value in environments(1234)["slurm"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node.invalid")

    def find(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find)
    message = "--distributed: the launcher's address node.invalid:1234 names no host that can be"
    with pytest.raises(InputError, match=re.escape(message)):
        distributed.initialize()


def test_the_address_of_another_machine_is_named(monkeypatch):
    """Nothing else would answer there, and process 0 itself waits for it to do so."""
    values = (f"192.0.2.1:{free_port()}", "2", "0")  # an address that is reserved for examples
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PQT_JAX_WAIT", "1")

    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(distributed.ProcessError, match="does not answer at .*192.0.2.1:.*Network"):
        distributed.initialize()


@pytest.mark.parametrize("index", ["0", "1"])
@pytest.mark.parametrize("host", ["frist.invalid", "first..second"])
def test_a_host_that_cannot_be_found_is_named_at_once(monkeypatch, host, index):
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: told.append(a))

    def find(name, *_):
        if ".." in name:
            raise UnicodeError("label empty or too long")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find)
    values = (f"{host}:{free_port()}", "2", index)
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"JAX_COORDINATOR_ADDRESS={host}:.* names no host that"):
        distributed.initialize()
    assert told == []


@pytest.mark.parametrize("is_pod", [True, False])
def test_a_name_that_may_come_is_waited_for(monkeypatch, is_pod):
    """That of a pod before its start, and any while the name server does not answer."""
    told, names = [], iter([False, True])
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: told.append(a))
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: io.BytesIO())
    find = socket.getaddrinfo

    def find_later(name, *rest):
        if not next(names):
            raise socket.gaierror(socket.EAI_NONAME if is_pod else socket.EAI_AGAIN, "not now")
        return find("localhost", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", find_later)
    if is_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    values = (f"pod-0.pods:{free_port()}", "2", "1")
    for name, value in zip(distributed.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert len(told) == 1


@pytest.mark.slow
@pytest.mark.parametrize("index", ["0", "1"])
def test_a_process_that_waits_ends_at_a_signal(tmp_path, text, index):
    waiting = start(
        f"--workdir={tmp_path / 'run'}",
        text,
        "--distributed",
        JAX_COORDINATOR_ADDRESS=f"localhost:{free_port()}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=index,
    )
    wait_for(waiting, "waiting for the other processes, 300 s at most")
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(10) == -signal.SIGTERM
    waiting.communicate()


@pytest.mark.slow
def test_no_environment_at_all_is_refused(tmp_path, text):
    out, err = end(start(f"--workdir={tmp_path / 'run'}", text, "--distributed"), 2)
    assert out == "" and err.count("\n") == 1
    assert "--distributed: no other process can be found; set JAX_COORDINATOR_ADDRESS, " in err


def test_one_process_agrees_with_itself():
    assert distributed.all_gather_int(7) == [7] and distributed.is_first_process()
    assert distributed.run_in_all(lambda: "x") == "x"
    with pytest.raises(InputError, match="mine"):
        distributed.run_in_all(lambda: (_ for _ in ()).throw(InputError("mine")))
    signals = []
    stop = distributed.make_stop_signal(signals, None)
    assert stop() == 0
    signals.append(signal.SIGINT)
    assert stop() == signal.SIGINT


@pytest.mark.jax_version
@pytest.mark.slow
def test_an_error_of_one_process_ends_all_soon(tmp_path, text):
    """Of the first, whose disk is full; without it they would wait for five minutes."""
    given = [f"--workdir={tmp_path / 'run'}", text, "--config.steps=20000"]
    both = start_all(*given)
    wait_for(both[0], "step=10 ")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    began = time.monotonic()
    (_, err), _ = (process.communicate(timeout=240) for process in both)
    assert time.monotonic() - began < 60
    assert both[0].returncode == 1 and both[1].returncode not in (0, 2, 3)
    assert re.search("^error: cannot write .*metrics.jsonl: no space left", err, re.M)


def test_an_error_of_this_process_alone_is_no_loss_of_another():
    error = jax.errors.JaxRuntimeError
    assert distributed.is_lost_process(
        error("INTERNAL: Gloo all-reduce failed: connection closed by peer")
    )
    assert not distributed.is_lost_process(
        error("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    )
    assert not distributed.is_lost_process(ValueError("UNAVAILABLE"))
    assert distributed.exit_process(3) == 3 and not distributed.is_distributed()


def test_a_platform_that_is_not_there_is_one_line(tmp_path, text):
    # JAX says it in words of its own.
    given = [f"--workdir={tmp_path / 'run'}", text]
    _, err = end(start(*given, JAX_PLATFORMS="cuda"), 2)
    assert err.splitlines()[-1].startswith("error: JAX finds no device of JAX_PLATFORMS=cuda: ")
