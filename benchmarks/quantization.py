# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What quantization costs after training with BF16, uniform noise and gaussws, over seeds.

    python benchmarks/quantization.py train --runs DIR [--jobs 2] [--steps 800] [--seeds 8]
    python benchmarks/quantization.py report --runs DIR [--out FILE.json]

`train` runs the quick start for every method, target and seed, one run a process, and may be
stopped and started again: a finished run is not repeated. A seed fixes initial values and the order
of the data, so that methods are paired by it. Each run's weights are then rounded in every way
below, and the same validation batches scored:

    regime     formats                                   scale of
    fine       FP8 E4M3, FP6 E3M2, FP4 E2M1, mixed       32×32 blocks
    coarse     FP6 E3M2, FP4 E2M1, E2M0, E1M1            a whole matrix
    few bits   E2M0, E1M1 (three bits)                   32×32 blocks

`report` gives the gap, quantized − master, in nats per byte: its mean over seeds with a 95 %
interval (Student's t), and the difference of gaps to BF16-trained weights, seed by seed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from pqt_jax import FloatFormat
from pqt_jax.analysis import load
from pqt_jax.console import format_row
from pqt_jax.data import pipeline, source
from pqt_jax.numerics.formats import E2M1, E3M2, E4M3
from pqt_jax.quantization.quantize import Plan, plan_mixed, plan_uniform
from pqt_jax.training import final_evaluation, named_formats
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.transform import bit_state

ROOT = Path(__file__).resolve().parent.parent
TARGETS = (3, 4, 5)
CELLS = [("bf16", 4), *((m, t) for m in ("uniform", "gaussws") for t in TARGETS)]
FINE = {"E4M3": E4M3, "E3M2": E3M2, "E2M1": E2M1}
THREE = {"E2M0": FloatFormat(2, 0), "E1M1": FloatFormat(1, 1)}
WHOLE = (512, 512)  # holds every matrix of the quick start
FILE = "quantization.json"


def name_of(method: str, target: int, seed: int) -> str:
    """The folder of a run."""
    return f"{method}-{target}-{seed}" if method != "bf16" else f"bf16-{seed}"


def train_all(runs: Path, jobs: int, steps: int, seeds: int) -> None:
    """Train and measure the runs that are missing, `jobs` processes at a time, one core each."""
    waiting = [(m, t, s) for s in range(seeds) for m, t in CELLS]
    waiting = [cell for cell in waiting if not (runs / name_of(*cell) / FILE).exists()]
    print(f"{len(waiting)} runs to go", flush=True)
    free, running = list(range(jobs)), {}
    while waiting or running:
        while waiting and free:
            cell, core = waiting.pop(0), free.pop()
            command = [sys.executable, __file__, "one", f"--runs={runs}", f"--steps={steps}"]
            command += ["--cell", *map(str, cell)]
            limit = ["taskset", "-c", str(core)] if jobs > 1 else []
            (runs / name_of(*cell)).mkdir(parents=True, exist_ok=True)
            log = (runs / f"{name_of(*cell)}.log").open("w")
            process = subprocess.Popen([*limit, *command], stdout=log, stderr=log)
            running[process] = (cell, core, time.time())
        time.sleep(1)
        for process in [p for p in running if p.poll() is not None]:
            cell, core, began = running.pop(process)
            free.append(core)
            print(
                f"{name_of(*cell)}: {process.returncode}, {time.time() - began:.0f} s", flush=True
            )


def train_one(runs: Path, method: str, target: int, seed: int, steps: int) -> None:
    """Train one cell by `python -m pqt_jax.train`, then measure it."""
    workdir = runs / name_of(method, target, seed)
    fields = {"method": method, "seed": seed, "steps": steps, "pqt.target_bits": target}
    fields |= {"pqt.init_bits": target + 2, "log.checkpoint_every": steps}
    command = [sys.executable, "-m", "pqt_jax.train", "--config", "configs/quickstart.py"]
    command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    (workdir / FILE).write_text(json.dumps(measure(workdir), indent=1) + "\n")


def plans(weights: Any, rules: Any, bits: Any) -> dict[str, Plan]:
    """Every way of rounding, by its name."""
    ways = {name: plan_uniform(weights, rules, fmt) for name, fmt in {**FINE, **THREE}.items()}
    for name in ("E3M2", "E2M1", "E2M0", "E1M1"):
        fmt = {**FINE, **THREE}[name]
        ways[f"{name} coarse"] = plan_uniform(weights, rules, fmt, block=WHOLE)
    return ways | ({"mixed": plan_mixed(weights, bits, rules)} if bits else {})


def measure(workdir: Path) -> dict[str, float]:
    """The validation loss of a run's weights, as they are and rounded in every way."""
    run = load.load_run(workdir)
    text, data = source.load(run.config.data.files), run.config.data
    batches = pipeline.validation_batches(
        text.validation, length=data.length, batch=data.batch, count=64
    )
    loss = final_evaluation.make_loss(run.graph, batches)
    weights = bit_state.weights(run.params)
    bits = bit_state.collect_bits(run.params)
    rules = quantization_rules(run.config)
    losses = {"master": loss(weights)}
    for name, plan in plans(weights, rules, bits).items():
        losses[name] = loss(named_formats.round_by_plan(run.params, plan))
    if bits:
        b_t = jax.tree.leaves(bit_state.bit_widths(run.params, rules))
        losses["mean_bits"] = float(np.concatenate([np.ravel(x) for x in b_t]).mean())
    return losses


def report(runs: Path, out: Path | None) -> None:
    """The table, and the figures as JSON."""
    losses: dict[str, dict[int, dict[str, float]]] = {}
    for method, target in CELLS:
        label = "bf16" if method == "bf16" else f"{method} {target}"
        paths = runs.glob(f"{name_of(method, target, 0)[:-1]}*/{FILE}")
        cells = {int(p.parent.name.rpartition("-")[2]): json.loads(p.read_text()) for p in paths}
        losses[label] = dict(sorted(cells.items()))
    content: dict[str, Any] = {"losses": losses, "gaps": {}, "differences": {}}
    ways = list(dict.fromkeys(w for c in losses.values() for v in c.values() for w in v))
    ways = [way for way in ways if way not in ("master", "mean_bits")]
    for title, base in (("gaps", None), ("differences", "bf16")):
        print(f"\n{title}, nats per byte{', minus that of bf16-trained weights' if base else ''}")
        widths = [12, *(-22 for _ in ["master", *ways])]
        print(format_row(["", "master", *ways], widths))
        for label, cells in losses.items():
            row = {}
            for way in ["master", *ways]:
                values = [_gap(cells, losses.get(base or "", {}), way, s, base) for s in cells]
                row[way] = _interval([v for v in values if v is not None])
            content[title][label] = row
            print(format_row([label, *(_shown(row[way]) for way in row)], widths))
    if out is not None:
        out.write_text(json.dumps(content, indent=1) + "\n")


def _gap(cells: Any, others: Any, way: str, seed: int, base: str | None) -> float | None:
    """Quantized − master loss (for "master" the loss itself), minus that of the base, if any."""
    losses, other = cells[seed], others.get(seed)
    if way not in losses or (base and (other is None or way not in other)):
        return None

    def gap(losses: Any) -> float:
        return losses[way] - (losses["master"] if way != "master" else 0.0)

    return gap(losses) - (gap(other) if base else 0.0)


def _interval(values: list[float]) -> list[float] | None:
    """[mean, half the width of the 95 % interval, number]."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return [float(np.mean(values)), float(half), len(values)]


def _shown(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:+.4f} ±{interval[1]:.4f} ({interval[2]})"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("action", choices=["train", "one", "report"])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--cell", nargs=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = options.runs.resolve()
    if options.action == "train":
        train_all(runs, options.jobs, options.steps, options.seeds)
    elif options.action == "one":
        method, target, seed = options.cell
        train_one(runs, method, int(target), int(seed), options.steps)
    else:
        report(runs, options.out)


if __name__ == "__main__":
    main()
