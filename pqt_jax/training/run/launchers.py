# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which processes a run has: by environment variables, or as a launcher tells JAX.

`docs/scaling.md` has a table of launchers and of what JAX reads.
"""

import os

from jax._src import clusters

from pqt_jax.errors import InputError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
NAMES = ", ".join(VARIABLES)
PORT = "JAX_COORDINATOR_PORT"  # read by JAX where a launcher tells the rest
GIVE = f"set {NAMES}, or start by srun, by mpirun or on Cloud TPUs"
_WAIT = "PQT_JAX_WAIT"  # seconds to wait for the others at the start, and for their heartbeats


def read_variables() -> tuple[str | None, int | None, int | None, int | None]:
    """Read (address, number of processes, index, seconds to wait), each None if not set."""
    values = [os.environ.get(name, "") for name in VARIABLES]
    if any(values) and not all(values):
        name = VARIABLES[values.index("")]
        raise InputError(f"--distributed: {name} is not set, and the others are; {GIVE}")
    address, *numbers = values
    if any(values) and not (all(map(str.isdecimal, numbers)) and int(numbers[1]) < int(numbers[0])):
        numbers_text = ", ".join(map("=".join, zip(VARIABLES[1:], numbers, strict=True)))
        raise InputError(
            f"--distributed: {numbers_text}; the second counts from 0 to below the first"
        )
    host, _, port = address.rpartition(":")
    if address and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"--distributed: {VARIABLES[0]}={address!r}; it must be HOST:PORT")
    chosen = os.environ.get(PORT, "")
    if chosen and not (chosen.isdecimal() and 0 < int(chosen) < 2**16):
        raise InputError(f"--distributed: {PORT}={chosen!r}; it must be from 1 to 65535")
    wait = os.environ.get(_WAIT, "")
    if wait and not (wait.isdecimal() and int(wait)):
        raise InputError(f"{_WAIT}={wait!r}; it must be a whole number of seconds, 1 or more")
    count, index = map(int, numbers) if address else (None, None)
    return address or None, count, index, int(wait) if wait else None


def detect(seconds: int) -> tuple[str | None, int | None]:
    """The address of process 0 and the index of this process as a cluster's environment has them.

    JAX uses this function itself, and documents no other way to learn the port.
    """
    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        address, _, index, _ = find(None, None, None, None, None, seconds)
    except Exception as error:  # any of a package that JAX calls, such as that of Kubernetes
        causes = [e for e in (error, error.__cause__) if e is not None]
        reason = ": ".join((str(e).strip() or type(e).__name__).splitlines()[0] for e in causes)
        raise InputError(
            f"--distributed: JAX cannot learn the processes from the cluster ({reason}); "
            f"set {NAMES}"
        ) from None
    return _separate_steps(address), index


def _separate_steps(address: str | None) -> str | None:
    """Give each step of a Slurm job a port of its own.

    JAX's port follows from the job alone. A second step would connect to the first, and end it.
    """
    job, step = (os.environ.get(f"SLURM_{name}_ID", "") for name in ("JOB", "STEP"))
    is_slurm = job.isdecimal() and step.isdecimal() and "OMPI_COMM_WORLD_SIZE" not in os.environ
    if address is None or not is_slurm or os.environ.get(PORT):
        return address
    host = address.rpartition(":")[0]
    # The first step keeps JAX's port, and the second not that of the next job.
    return f"{host}:{2**16 - 2**12 + (int(job) + 977 * int(step)) % 2**12}"


def describe(address: str) -> str:
    """The address of process 0, and where it comes from."""
    given = os.environ.get(VARIABLES[0])
    return f"{VARIABLES[0]}={address}" if given else f"the launcher's address {address}"


def finds_devices(address: str, count: int | None, index: int | None) -> bool:
    """Whether JAX can ask the cluster which devices are this process's, where all else is given.

    It asks Kubernetes, too, which does not know, and raises in a pod without an account.
    """
    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        find(address, count, index, None, None, None)
    except Exception:
        return False
    return True
