# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Feed damaged files to every reader: `make fuzz`.

    intact files → a copy with one damage → a reader → refused by one line, or read rightly

A failure is a traceback, a hang, more than 500 MB, or a value that changed although a digest or a
length could have told. Each is repeated by one command, which is printed with it, and its files are
kept in `build/fuzz`. Exit code 1 if there is any.
"""

import argparse
import collections
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from support.paths import JAX_CACHE, ROOT

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(JAX_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"

from fuzz import cases, inputs, workers
from fuzz.readers import READERS

FAILURES = ("traceback", "hang", "memory", "changed", "died")
KEPT = ROOT / "build" / "fuzz"


def main(arguments=None):
    """Run the cases, and report: the exit code."""
    options = parse(arguments)
    readers = [r for r in READERS if r.name.startswith(options.reader)] if options.reader else None
    numbers = range(options.cases) if options.case is None else [options.case]
    print(f"seed {options.seed}, {len(numbers)} cases", flush=True)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        intact = make_inputs(Path(name))
        by_reader = collections.defaultdict(collections.Counter)
        seconds = collections.Counter()
        failures = 0
        outcomes = run(numbers, options, readers, intact, Path(name), end)
        for number, outcome in outcomes:
            case = cases.make_case(number, options.seed, readers)
            by_reader[case.reader.name][outcome.kind] += 1
            seconds[case.reader.name] += outcome.seconds
            if outcome.kind in FAILURES or options.case is not None:
                report(case, outcome, intact, options)
            failures += outcome.kind in FAILURES
    print_table(by_reader, seconds)
    done = sum(sum(counts.values()) for counts in by_reader.values())
    print(f"seed {options.seed}: {done} cases, {failures} failures")
    return 1 if failures else 0


def parse(arguments):
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all damage; default: 0")
    add("--cases", type=int, default=4000, help="how many; default: 4000")
    add("--case", type=int, metavar="N", help="only this one, with its traceback")
    add("--reader", default="", help="only readers whose names begin with this")
    add("--minutes", type=float, default=9, help="no case starts later; default: 9")
    add("--processes", type=int, default=2, help="that read; default: 2")
    add("--seconds", type=float, default=30, help="time limit of a case; default: 30")
    return parser.parse_args(arguments)


def make_inputs(folder):
    """Make the intact files in a process of its own: this one is forked, and must not start JAX."""
    intact, log = folder / "intact", folder / "log.txt"
    intact.mkdir()
    pid = os.fork()
    if not pid:
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY)
        os.dup2(descriptor, 1)
        inputs.make(intact)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the intact files could not be made")
    return intact


def run(numbers, options, readers, intact, folder, end):
    """Yield (number, outcome) of the cases that start before `end`."""
    values = {}  # reader → what it makes of the intact files; each process has its own

    def prepare(number):
        case = cases.make_case(number, options.seed, readers)
        here = cases.folder_of(folder / f"case-{os.getpid()}")
        if case.reader.name not in values:
            values[case.reader.name] = cases.read_intact(case.reader, intact, here)
            cases.folder_of(here)
        return case, here, cases.damage(case, intact, here)[0]

    def work(number, prepared):
        case, here, copy = prepared
        return cases.judge(case, copy, values[case.reader.name])

    def until_end():
        for number in numbers:
            if time.monotonic() > end:
                print(f"stopped after {options.minutes:g} minutes, before case {number}")
                return
            yield number

    logs = folder / "logs"
    logs.mkdir()
    limits = {"processes": options.processes, "seconds": options.seconds, "logs": logs}
    return workers.run_cases(until_end(), prepare, work, **limits)


def report(case, outcome, intact, options):
    """Print a case, and keep its files if it is a failure."""
    folder = cases.folder_of(KEPT / f"{case.seed}-{case.number}")
    copy, done = cases.damage(case, intact, folder)
    repeat = f"make fuzz FUZZ='--seed={case.seed} --case={case.number}"
    repeat += f' --reader="{options.reader}"\'' if options.reader else "'"
    print(f"\n{outcome.kind.upper()} case {case.number}: {case.reader.name}: {done}")
    print(f"  {outcome.seconds:.1f} s, {outcome.growth / 2**20:.0f} MiB; {repeat}")
    print("  " + outcome.text[-3000:].replace("\n", "\n  "), flush=True)
    if outcome.kind not in FAILURES:
        shutil.rmtree(folder)


def print_table(by_reader, seconds):
    kinds = ("refused", "accepted", *FAILURES)
    print("\n" + "reader".ljust(30) + "".join(k.rjust(10) for k in (*kinds, "seconds")))
    for name, counts in sorted(by_reader.items()):
        numbers = [str(counts[kind] or "") for kind in kinds] + [f"{seconds[name]:.1f}"]
        print(name.ljust(30) + "".join(number.rjust(10) for number in numbers))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
