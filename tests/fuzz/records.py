# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What is read from records of runs and sweeps, and from configurations."""

import json

from fuzz import inputs
from pqt_jax import plot
from pqt_jax.analysis import comparison, run_reader
from pqt_jax.lab import report, sweep_table
from pqt_jax.lab.sweep_arms import load_sweep
from pqt_jax.training.config import command_line
from pqt_jax.training.run import bit_history, metrics, workdir


def read_tables(folder):
    """The page of `plot` without its pictures."""
    runs = dict(enumerate(run_reader.read_runs([str(folder / "a"), str(folder / "b")])))
    comparison.make_page(runs, 0, [])
    return None


def run_plot(folder):
    """The command, with pictures."""
    folders = [str(folder / "a"), str(folder / "b"), f"--out={folder / 'plot'}"]
    comparison.compare_runs(plot.parse(folders))


def resume_records(folder):
    """What a run that is resumed from step 30 keeps of its records."""
    kept = []
    for name in (workdir.METRICS, workdir.BIT_HISTORY):
        metrics.truncate(folder / "a" / name, 30)
        kept.append(metrics.read_records(folder / "a" / name))
    return kept, len(bit_history.read(folder / "a" / workdir.BIT_HISTORY)) >= 0


def expect_records(folder):
    kept = []
    for name in (workdir.METRICS, workdir.BIT_HISTORY):
        path = folder / "a" / name
        records = []
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                record = json.loads(line.decode(errors="replace"))
                step = record["step"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if type(step) is int and abs(step) < 2**63 and step <= 30:
                records.append(record)
        kept.append(records)
    return kept, True


def read_sweep(folder):
    table = sweep_table.read(folder)
    return sorted(json.dumps(row, sort_keys=True) for row in table.rows.values())


def expect_sweep(folder):
    """The rows that were written, of the runs that are left; the others count as to come."""
    lines = [line for p in folder.glob("parts/*.jsonl") for line in p.read_bytes().splitlines()]
    runs = {(r["arm"], r["learning_rate"], r["seed"]) for r in map(json.loads, lines)}
    return sorted(json.dumps(inputs.make_row(*run), sort_keys=True) for run in runs)


def run_report(folder):
    """The command, with figures."""
    report._run([str(folder), f"--out={folder.parent / 'report'}"])


def read_config(folder):
    command_line.load(str(folder / "file.py"))


def read_sweep_config(folder):
    load_sweep(str(folder / "sweep.py"))
