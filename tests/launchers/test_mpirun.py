# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Two processes that Open MPI's mpirun starts: they are told nothing else."""

import re
import shutil
import signal
import subprocess
import time

import pytest

from support import tiny
from support.command import start

SAID = re.compile("step|config|error|Traceback")  # beside what the transport between CPUs prints
# mpirun gives processes a second after SIGTERM; with this option it waits for all of the time.
OPTIONS = ["-n", "2", "--oversubscribe", "--tag-output", "--mca", "odls_base_sigkill_timeout", "20"]


def version():
    """The number of the Open MPI whose mpirun is installed, or "" without one."""
    if shutil.which("mpirun") is None:
        return ""
    said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\(Open MPI\) (\S+)", said)
    return found[1] if found else ""


def launch(*arguments):
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    given = ["--distributed", "--config.mesh.data=0", "--config.mesh.fsdp=2", *arguments]
    options = {"JAX_NUM_CPU_DEVICES": "2", "PQT_JAX_WAIT": "60"} | root
    return start(*given, launcher=["mpirun", *OPTIONS], **options)


def end(process):
    """The exit code, and what each of the two processes has printed on stdout."""
    out, err = process.communicate(timeout=240)
    tagged = re.findall(r"^\[1,([01])\]<stdout>:(.*)$", out, re.M)
    first, second = ("\n".join(text for rank, text in tagged if rank == r) for r in "01")
    return process.returncode, first, second, out + err


@pytest.mark.jax_version
@pytest.mark.slow
@pytest.mark.skipif(
    not version().startswith("4."),
    reason=f"needs mpirun of Open MPI 4, as Debian's openmpi-bin has; found {version() or 'none'}",
)
def test_mpirun_starts_stops_and_resumes_two_processes(tmp_path):
    text = tiny.write_text(tmp_path / "text.txt")
    given = [f"--workdir={tmp_path / 'run'}", f"--config.data.files={text}", "--config.steps=60"]
    process = launch(*given)
    deadline = time.monotonic() + 240
    while "step=2 " not in (line := process.stdout.readline()):
        assert line and time.monotonic() < deadline, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    code, first, second, said = end(process)
    assert code != 0 and re.search(r"stopped at step \d+ of 60; run the command again", first), said
    assert not SAID.search(second), second
    code, first, second, said = end(launch(*given))
    assert code == 0 and "resumed from step" in first and "learned mixed bits" in first, said
    # mpirun makes a terminal for each process; this log has a line for each step even so.
    assert first.count("step=60 loss=") == 1 and "\x1b" not in said
    assert not SAID.search(second), second
