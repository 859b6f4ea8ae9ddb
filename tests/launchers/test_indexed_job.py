# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The manifest of docs/scaling.md: an Indexed Job of Kubernetes, on this machine."""

import re
import socket

import pytest
import yaml

from pqt_jax.training.run import distributed
from support import tiny
from support.command import end, start
from support.paths import ROOT

INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.fixture
def manifest():
    """The service and the job."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return yaml.safe_load_all(block)


def environment(job, index):
    """What the container of a pod with this index finds, and Kubernetes itself adds."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    name = f"{job['metadata']['name']}-{index}"
    values = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    values |= {"JOB_COMPLETION_INDEX": str(index), "HOSTNAME": name}
    for variable in container["env"]:
        source = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        assert source in (None, INDEX)
        values[variable["name"]] = str(index) if source else variable["value"]
    return values


def test_the_manifest_agrees_with_itself(manifest):
    service, job = manifest
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    name = job["metadata"]["name"]
    # The name of a pod is NAME-INDEX.SUBDOMAIN where a headless service selects it.
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    values = environment(job, 1)
    address, count, index = (values[name] for name in distributed.VARIABLES)
    assert address.rpartition(":")[0] == f"{name}-0.{pod['subdomain']}"
    assert (int(count), index) == (spec["completions"], "1")
    command = pod["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "pqt_jax.train"] and "--distributed" in command
    assert (ROOT / command[command.index("--config") + 1]).exists()


@pytest.mark.slow
def test_two_processes_with_its_environment_train(tmp_path, manifest):
    _, job = manifest
    text = tiny.write_text(tmp_path / "text.txt")
    given = [f"--workdir={tmp_path / 'run'}", f"--config.data.files={text}", "--config.steps=4"]
    given += ["--distributed", "--config.mesh.data=0", "--config.mesh.fsdp=2"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"  # the name is a cluster's
    pods = [environment(job, i) | {distributed.VARIABLES[0]: address} for i in (0, 1)]
    both = [start(*given, JAX_NUM_CPU_DEVICES="2", PQT_JAX_WAIT="60", **pod) for pod in pods]
    (out, _), (other, _) = map(end, both)
    assert "2 processes" in out and "learned mixed bits" in out
    assert not re.search("step|config", other)
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
