# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Processes with limits that work on cases: forked after the imports, and replaced when they die.

A process takes a case by its number, and answers with an outcome. Its memory is limited. One that
dies, or takes too long, is an outcome, too.
"""

import contextlib
import faulthandler
import multiprocessing.connection
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

MEMORY = 500 * 2**20  # bytes by which a case may grow
ADDRESSES = 4 * 2**30  # bytes of address space that a process may add to those after its imports
GRACE = 120  # seconds to start JAX and to read the intact files, which is not part of a case


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
      kind: "refused", "accepted", or the kind of failure: "traceback", "hang", "memory", "changed"
        or "died".
      text: the message, or what was wrong.
      growth: bytes by which the process grew.
      seconds: how long it took.
    """

    kind: str
    text: str
    growth: int = 0
    seconds: float = 0.0


def run_cases(numbers, prepare, work, *, processes, seconds, logs):
    """Yield (number, outcome) of each case, as they are done.

    Args:
      numbers: the numbers of the cases.
      prepare: number → what `work` needs, outside of its limits.
      work: (number, what was prepared) → (kind, text); may do anything.
      processes: how many processes work at the same time.
      seconds: time limit of a case.
      logs: folder for what the processes print.
    """
    waiting, busy, idle = iter(numbers), {}, []
    number = next(waiting, None)
    try:
        while number is not None or busy:
            while number is not None and len(busy) < processes:
                connection, pid = idle.pop() if idle else _fork(prepare, work, seconds, logs)
                connection.send(number)
                busy[connection] = pid, number, time.monotonic() + GRACE + seconds
                number = next(waiting, None)
            ready = multiprocessing.connection.wait(list(busy), 1.0)
            for connection, (pid, started, deadline) in list(busy.items()):
                outcome = None
                if connection in ready:
                    try:
                        outcome = connection.recv()
                        idle.append((connection, pid))
                    except (EOFError, ConnectionError):
                        outcome = _describe_death(pid, logs)
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    outcome = Outcome("hang", "it did not even start to read", seconds=seconds)
                if outcome is not None:
                    del busy[connection]
                    yield started, outcome
    finally:
        for connection, pid in [*idle, *((c, pid) for c, (pid, *_) in busy.items())]:
            connection.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _describe_death(pid, logs):
    _, status = os.waitpid(pid, 0)
    said = (logs / f"{pid}.txt").read_text(errors="replace")
    if "Timeout (" in said:
        return Outcome("hang", said[:3000])
    code = os.waitstatus_to_exitcode(status)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Outcome("died", f"{how}: {said[:3000]}")


def _fork(prepare, work, seconds, logs):
    here, there = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX is imported, and has not started its threads
        pid = os.fork()
    if pid:
        there.close()
        return here, pid
    try:
        here.close()
        log = (logs / f"{os.getpid()}.txt").open("w+b", buffering=0)
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        faulthandler.enable(log)
        limit = _read_status("VmSize") + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while True:
            number = there.recv()
            there.send(_measure(work, (number, prepare(number)), seconds, log))
    except EOFError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _measure(work, arguments, seconds, log):
    """Call a function, and judge its time, its memory, and what it prints."""
    log.truncate(0)
    log.seek(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before, start = _read_status("VmRSS"), time.monotonic()
    faulthandler.dump_traceback_later(seconds, exit=True, file=log)
    try:
        kind, text = work(*arguments)
    except BaseException:
        kind, text = "traceback", traceback.format_exc()
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    growth = _read_status("VmHWM") - before
    log.seek(0)
    said = log.read().decode(errors="replace")
    if kind != "traceback" and "Traceback (most recent call last)" in said:
        kind, text = "traceback", said
    elif kind != "traceback" and growth > MEMORY:
        kind, text = "memory", f"{growth / 2**20:.0f} MiB; {text}"
    return Outcome(kind, text, growth, time.monotonic() - start)


def _read_status(name):
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(name)
