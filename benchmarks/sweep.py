# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Speed of a sweep's steps: tokens a second and core, here and in another checkout, in turn.

    python benchmarks/sweep.py --against CHECKOUT [--rounds 3] [--out FILE.json]

A small Llama of 139,000 parameters, four runs at once, 8 sequences of 128 bytes for each, on one
core. Each figure is of two processes of the command, of few steps and of more; the difference of
their times leaves out the start and compilation. The rows that both checkouts write must be equal.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parent.parent
STEPS = (50, 250)
RUNS, TOKENS = 4, 8 * 128
# For this version of the package, and for those in which the function was elsewhere.
CONFIG = """
try:
    from pqt_jax.lab.sweep_config import default
except ImportError:
    from pqt_jax.lab.grid import default
from pqt_jax.models import Llama2Config

def get_config():
    model = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=192, max_length=128)
    config = default(model)
    config.data.length, config.data.batch = 128, 8
    config.optimizer.warmup_steps = 20
    config.sweep.arms = (("arm", "method={method}"),)
    config.sweep.seeds = (0, 1, 2, 3)
    config.sweep.learning_rates = (5e-3,)
    config.sweep.sharpness_every = 0
    return config
"""


def run(package: Path, method: str, steps: int, folder: Path) -> tuple[float, list[Any]]:
    """Train one sweep on one core: (seconds of CPU, rows)."""
    (folder / "config.py").write_text(CONFIG.format(method=method))
    workdir = folder / f"{package.name}-{method}-{steps}-{time.monotonic_ns()}"
    command = ["taskset", "-c", "0", sys.executable, "-m", "pqt_jax.lab.sweep"]
    command += [f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
    command += [f"--config.steps={steps}"]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    process = subprocess.Popen(command, env=environment, cwd=package, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    rows = [json.loads(line) for line in (workdir / "runs.jsonl").read_text().splitlines()]
    return used.ru_utime + used.ru_stime, rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    packages = {"here": ROOT, "against": options.against.resolve()}
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for method in ("bf16", "gaussws"):
                losses = []
                for name, package in packages.items():
                    few, many = (run(package, method, n, Path(folder)) for n in STEPS)
                    rate = RUNS * TOKENS * (STEPS[1] - STEPS[0]) / (many[0] - few[0])
                    results.setdefault(method, {}).setdefault(name, []).append(rate)
                    losses.append([row["losses"] for row in many[1]])
                    print(f"{method:8} {name:8} {rate:10,.0f} tokens a second of CPU", flush=True)
                if losses[0] != losses[1]:
                    raise SystemExit(f"{method}: the losses of the two checkouts differ")
    for method, rates in results.items():
        ratios = [a / b for a, b in zip(rates["here"], rates["against"], strict=True)]
        print(f"{method}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if options.out:
        about = {"jax": jax.__version__, "steps": STEPS, "tokens_a_second": results}
        options.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
