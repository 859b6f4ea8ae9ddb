# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Several processes that apply one function: items → results, in the order of the items.

    items → pipes → processes, each with an item ahead → pipes → results

No process outlives the one that started it, however that ends. A thread of each reads the items; it
sees the pipe close, and ends the process. Signals are left to the process that started the others,
which ends them: a terminal sends Ctrl-C to all.
"""

import contextlib
import functools
import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple

from pqt_jax import signals
from pqt_jax.console import exit_now

_AHEAD = 4  # number of items, for each process, that may be done before their turn
_QUEUED = 2  # number of items that a process holds: one to work on, and the next

Function = Callable[[Any], Any]


class LostError(Exception):
    """A process ended by itself, or was killed. Its argument is the item that it worked on."""


class _Process(NamedTuple):
    process: Any
    pipe: connection.Connection
    items: deque[tuple[int, Any]]  # that it holds, and their numbers


@contextlib.contextmanager
def start_pool(
    make: Callable[[], Function], count: int
) -> Iterator[Callable[[Iterable[Any]], Iterator[tuple[Any, Any]]]]:
    """Yield a function from items to pairs (item, result) in order, which starts the processes.

    Args:
      make: is called once in each process and returns the function to apply. It, items and results
        are pickled.
      count: number of processes; fewer are started for fewer items.

    Raises:
      LostError: in the body, if a process is lost.
    """
    pool: list[_Process] = []
    try:
        yield functools.partial(_apply, pool, make, count)
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _apply(
    pool: list[_Process], make: Callable[[], Function], count: int, items: Iterable[Any]
) -> Iterator[tuple[Any, Any]]:
    results: dict[int, tuple[Any, Any]] = {}
    numbered, due = enumerate(items), 0
    entry = next(numbered, None)
    while entry is not None or any(worker.items for worker in pool):
        is_near = entry is not None and entry[0] < due + _AHEAD * count
        if entry is not None and is_near and (worker := _find_free(pool, make, count)):
            _send(worker, entry)
            entry = next(numbered, None)
            continue
        results |= _receive(pool)
        while due in results:
            yield results.pop(due)
            due += 1


def _find_free(pool: list[_Process], make: Callable[[], Function], count: int) -> _Process | None:
    """A process that can take an item; one is started if all others have work."""
    least = min(pool, key=lambda worker: len(worker.items), default=None)
    if len(pool) < count and (least is None or least.items):
        pool.append(_start(make))
        return pool[-1]
    return least if least is not None and len(least.items) < _QUEUED else None


def _send(worker: _Process, entry: tuple[int, Any]) -> None:
    worker.items.append(entry)
    try:
        worker.pipe.send(entry[1])
    except OSError:
        raise LostError(worker.items[0][1]) from None


def _receive(pool: list[_Process]) -> dict[int, tuple[Any, Any]]:
    """Wait for results: the number of each → (item, result)."""
    busy: dict[Any, _Process] = {worker.pipe: worker for worker in pool if worker.items}
    results = {}
    for pipe in connection.wait(list(busy)):
        number, item = busy[pipe].items[0]
        try:
            results[number] = item, busy[pipe].pipe.recv()
        except (EOFError, OSError):
            raise LostError(item) from None
        busy[pipe].items.popleft()
    return results


def _start(make: Callable[[], Function]) -> _Process:
    context = multiprocessing.get_context("spawn")  # a forked process with JAX's threads could hang
    here, there = context.Pipe()
    resource_tracker.ensure_running()  # else it starts in `blocked`, and unblocks signals
    with signals.blocked(), there:
        process = context.Process(target=_work, args=(there, make))
        process.start()
    return _Process(process, here, deque())


def _work(pipe: connection.Connection, make: Callable[[], Function]) -> None:
    items = queue.SimpleQueue()
    threading.Thread(target=_read_items, args=(pipe, items), daemon=True).start()
    function = make()
    while True:
        result = function(items.get())
        with contextlib.suppress(OSError):  # nobody waits for it: the thread ends the process
            pipe.send(result)


def _read_items(pipe: connection.Connection, items: queue.SimpleQueue) -> None:
    try:
        while True:
            items.put(pipe.recv())
    finally:
        exit_now(0, flush=False)
