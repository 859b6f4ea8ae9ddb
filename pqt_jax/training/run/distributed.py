# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Several processes that train one model, each with its own devices.

All processes must take the same steps in the same order: a process that waits for one that has
ended waits forever. What only one process notices is therefore sent to all of them:

    wrong input, before training    `run_in_all`: it raises; in the others, ProcessError
    a checkpoint it cannot read     `all_gather_int`: all use the one before (`checkpoint.restore`)
    a signal                        `make_stop_signal`: all stop after the same step
    too many skipped steps          nothing to send: all see the same numbers
    a full disk, a bug              `exit_process`: it ends in seconds; the others lose it

`docs/scaling.md` has the commands that start them.
"""

import contextlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax.console import exit_now, print_line
from pqt_jax.errors import InputError, OutputError, is_out_of_memory
from pqt_jax.signals import default_signal_handling
from pqt_jax.training.run import launchers
from pqt_jax.training.run.launchers import GIVE, NAMES, PORT, VARIABLES

T = TypeVar("T")

LOST = 4  # exit code
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # read by JAX, too
_DEFAULT_WAIT = 300  # seconds, the default of JAX
_SHUTDOWN_WAIT = 5  # seconds in which all processes may end together


class ProcessError(RuntimeError):
    """Another process cannot be reached, was lost or failed, so this one cannot continue."""

    def __init__(self, message: str, exit_code: int = LOST):
        super().__init__(message)
        self.exit_code = exit_code


def initialize() -> None:
    """Connect this process with the others of the run, before any other use of JAX.

    The environment variables `JAX_COORDINATOR_ADDRESS` (host:port of process 0),
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe the processes. Without them JAX asks Slurm,
    Open MPI, Kubernetes or Cloud TPUs.

    Raises:
      InputError: if the environment does not describe the processes, the host of process 0 cannot
        be found, or this is the first one and it cannot listen at its port.
      ProcessError: if the others cannot be reached in time.
    """
    address, count, index, wait = launchers.read_variables()
    options: Any = {}
    if wait:
        options = {"initialization_timeout": wait, "heartbeat_timeout_seconds": wait}
    seconds = wait or _DEFAULT_WAIT
    jax.config.update("jax_enable_preemption_service", False)  # `signals` handles SIGTERM
    notice = threading.Timer(
        5, print_line, [f"waiting for the other processes, {seconds} s at most"]
    )
    notice.daemon = True
    notice.start()
    try:
        with warnings.catch_warnings(), default_signal_handling():
            warnings.simplefilter("ignore")  # about clusters that JAX does not find
            where, who = (address, index) if address else launchers.detect(seconds)
            if address and not launchers.finds_devices(address, count, index):
                options["cluster_detection_method"] = "deactivate"
            if where and not (_BIND in os.environ and who == 0):
                _resolve(where, seconds)
                with _listen(where) if who == 0 else contextlib.nullcontext():
                    _wait_for_listener(where, seconds)
            jax.distributed.initialize(where, count, index, **options)
    except (InputError, ProcessError):
        raise
    except ValueError as error:
        if address:  # of another variable, such as JAX_LOCAL_DEVICE_IDS
            raise InputError(f"--distributed: {str(error).splitlines()[0]}") from None
        raise InputError(f"--distributed: no other process can be found; {GIVE}") from None
    except RuntimeError as error:
        raise ProcessError(f"--distributed: {str(error).splitlines()[0]}") from None
    finally:
        notice.cancel()


def _resolve(address: str, seconds: int) -> None:
    """Check that the host of process 0 has an address; a mistyped name will never have one."""
    host, end = address.rpartition(":")[0], time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), None)
            return
        except (OSError, UnicodeError) as error:
            # On Kubernetes the name of a pod is known once it has started, and elsewhere at once.
            may_come = "KUBERNETES_SERVICE_HOST" in os.environ
            if not (may_come or error.args[0] == socket.EAI_AGAIN) or time.monotonic() >= end:
                why = getattr(error, "strerror", None) or "not a name"
                raise InputError(
                    f"--distributed: {launchers.describe(address)} names no host that can be found "
                    f"({why}); correct the name, or give the address in digits, by {NAMES}"
                ) from None
            time.sleep(0.2)


@contextlib.contextmanager
def _listen(address: str) -> Iterator[None]:
    """Listen for a moment where JAX will, in process 0; JAX aborts the process if it cannot."""
    port = int(address.rpartition(":")[2])
    options: Any = {}
    if socket.has_dualstack_ipv6():
        options = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    try:
        listener = socket.create_server(("", port), **options)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise InputError(
            f"--distributed: process 0 cannot listen at {address} ({why}); give all "
            f"processes another port, by {VARIABLES[0]}, or by {PORT} where JAX finds the address"
        ) from None
    with listener:
        yield


def _wait_for_listener(address: str, seconds: int) -> None:
    """Wait until process 0 listens. JAX itself would abort this process if it never does."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                why = error.strerror or str(error)
                raise ProcessError(
                    f"--distributed: process 0 does not answer at {launchers.describe(address)} "
                    f"({why}); start it there, or correct the address"
                ) from None
            time.sleep(0.2)


def is_distributed() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized()


def is_lost_process(error: Exception) -> bool:
    """Whether an error of JAX was caused by the loss of another process."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or is_out_of_memory(error):
        return False
    return not str(error).startswith(("INVALID_ARGUMENT", "UNIMPLEMENTED"))


def exit_process(code: int) -> int:
    """End this process after its error was printed.

    At exit JAX waits minutes for the other processes. If all of them end, they end together. If
    not, this one ends alone, which the others notice as a lost process.

    Args:
      code: the exit code.

    Returns:
      The exit code, if this is the only process.
    """
    if not is_distributed():
        return code
    shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    shutdown.start()
    shutdown.join(_SHUTDOWN_WAIT)
    exit_now(code)


def is_first_process() -> bool:
    """Whether this is the process that prints and writes files."""
    return jax.process_index() == 0


def print_on_first_process(text: str) -> None:
    """Print text on stdout, in the first process alone."""
    if is_first_process():
        print_line(text)


def all_gather_int(code: int) -> list[int]:
    """Gather a number from each process, in order of their index. All processes must call this."""
    if jax.process_count() == 1:
        return [code]
    return np.ravel(multihost_utils.process_allgather(np.int32(code))).tolist()


def broadcast_from_first(text: str) -> str:
    """Send a text from the first process to all, and return it. All processes must call this."""
    if jax.process_count() == 1:
        return text
    content = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    padded[: len(content)] = content[:length]
    return (
        np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes().decode()
    )


def run_in_all(function: Callable[[], T]) -> T:
    """Call a function in every process; if it fails in one, this raises in all.

    Args:
      function: may raise InputError or OutputError.

    Returns:
      The result of the function in this process.

    Raises:
      InputError, OutputError: raised by the function in this process.
      ProcessError: if the function raised in another process; with the exit code of that error.
    """
    failure: InputError | OutputError | None = None
    result: Any = None
    try:
        result = function()
    except (InputError, OutputError) as error:
        if not is_distributed():
            raise
        failure = error
    codes = all_gather_int(failure.exit_code if failure else 0)
    failed = [index for index, code in enumerate(codes) if code]
    if failure and failed[0] == jax.process_index():
        raise failure
    if failed:
        raise ProcessError(f"process {failed[0]} cannot go on", codes[failed[0]])
    return result


def make_stop_signal(signals: Sequence[int], mesh: Mesh | None) -> Callable[[], int]:
    """Make a function that tells all processes to stop after the same step.

    Args:
      signals: the signals that this process has received so far, from `signals.collect_signals`.
      mesh: the mesh of all devices of all processes; None for one process.

    Returns:
      A function that each process calls once a step. It returns 0, or the number of a signal. With
      several processes that is a signal that one of them had received by the step before, so that
      no step waits for the exchange.
    """

    def first_signal() -> int:
        return signals[0] if signals else 0

    if jax.process_count() == 1 or mesh is None:
        return first_signal
    sharded, replicated = NamedSharding(mesh, P(mesh.axis_names)), NamedSharding(mesh, P())
    take_largest = jax.jit(lambda codes: codes.max(), out_shardings=replicated)
    pending: list[jax.Array] = []

    def agreed_signal() -> int:
        code = np.int32(first_signal())
        codes = jax.make_array_from_callback((mesh.size,), sharded, lambda _: np.full(1, code))
        pending.append(take_largest(codes))
        return int(pending.pop(0)) if len(pending) > 1 else 0

    return agreed_signal
