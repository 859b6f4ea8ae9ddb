# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Loss in few bits against tokens per parameter, from the runs in docs/payoff: tables, a picture.

    python benchmarks/payoff.py [--picture docs/images/payoff.png]

The runs are those of configs/lab/payoff.py with different numbers of steps, in a CSV file of each
folder of docs/payoff. Every difference is that to BF16's weights as they are, of the same length
and seed, in nats per byte, with Student's interval over the seeds. A format has the loss of that
scale rule which is best for the arm on average, so that each arm has its best chance.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pqt_jax.interchange.png import save_png
from pqt_jax.lab.statistics import holm, paired_difference, paired_p_value
from pqt_jax.lab.sweep_arms import load_sweep
from pqt_jax.training.state import count_parameters

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "docs" / "payoff"
BASELINE = "BF16"
FORMATS = {  # label → beginning of the columns
    "as they are": "master",
    "FP8 E4M3": "fp8_e4m3",
    "FP6 E3M2": "fp6_e3m2",
    "FP6 E2M3": "fp6_e2m3",
    "FP4 E2M1": "fp4_e2m1",
    "E2M0": "E2M0",
    "E1M1": "E1M1",
}
DRAWN = (BASELINE, "STE FP4, mse", "BF16, STE in the last 10 %", "gaussws fixed 4.9")

Losses = dict[str, np.ndarray]  # weights → loss of each seed


def read(path: Path) -> dict[str, Losses]:
    """Arm → weights → held-out loss, float64[seeds] in the order of the seeds."""
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
    arms: dict[str, Losses] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        names = [name for name in own[0] if name.startswith("held_out_") and own[0][name]]
        arms[arm] = {
            name.removeprefix("held_out_"): np.array([float(row[name]) for row in own])
            for name in names
        }
    return arms


def best(losses: Losses, name: str) -> np.ndarray:
    """The losses of a format in 32×32 blocks, by the scale rule that is best on average."""
    rules = [x for x in losses if x.split("/")[0] == name and not x.endswith("matrix")]
    return losses[min(rules, key=lambda rule: losses[rule].mean())]


def table(arms: dict[str, Losses]) -> str:
    """Markdown: a row for each arm; a star is significant by Holm's correction over the table."""
    baseline = arms[BASELINE]["master"]
    cells = [[best(losses, name) for name in FORMATS.values()] for losses in arms.values()]
    p_values = np.array([[paired_p_value(cell, baseline) for cell in row] for row in cells])
    p_values[0, 0] = np.nan  # the baseline itself
    stars = holm(p_values) < 0.05
    lines = [f"| trained by | {' | '.join(FORMATS)} |", "|---|" + "--:|" * len(FORMATS)]
    for i, arm in enumerate(arms):
        texts = []
        for cell, star in zip(cells[i], stars[i], strict=True):
            mean, _, high = paired_difference(cell, baseline)
            texts.append(f"{mean:+.4f}{'*' if star else ''} ± {high - mean:.4f}")
        if arm == BASELINE:
            texts[0] = f"{baseline.mean():.4f}"
        lines.append(f"| {arm} | {' | '.join(texts)} |")
    return "\n".join(lines)


def draw(lengths: dict[float, dict[str, Losses]], arms: Sequence[str] = DRAWN) -> Figure:
    """Loss in FP4 above BF16's weights as they are, by tokens per parameter."""
    figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for arm in arms:
        points = {n: runs for n, runs in sorted(lengths.items()) if arm in runs}
        found = [
            paired_difference(best(runs[arm], "fp4_e2m1"), runs[BASELINE]["master"])
            for runs in points.values()
        ]
        middle = np.array([x.value for x in found])
        ends = np.array([[x.value - x.low, x.high - x.value] for x in found]).reshape(-1, 2).T
        label = f"{arm}, rounded afterwards" if arm == BASELINE else arm
        ax.errorbar(list(points), middle, ends, marker="o", capsize=3, label=label)
    ax.axhline(0, color="#888", linewidth=1)
    ax.set_xscale("log")
    ax.set_xlabel("tokens per parameter")
    ax.set_ylabel("loss in FP4 above that of BF16's weights, nats")
    ax.legend()
    return figure


def main() -> None:
    """Print the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    config = load_sweep("lab/payoff").arms[0].config
    tokens, parameters = config.data.batch * config.data.length, count_parameters(config)
    lengths = {}
    for path in sorted(RUNS.glob("*/runs.csv")):
        with path.open(newline="") as file:
            steps = int(next(csv.DictReader(file))["steps"])
        lengths[steps * tokens / parameters] = read(path)
    for length, arms in sorted(lengths.items()):
        print(f"\n{length:.1f} tokens per parameter\n\n{table(arms)}")
    if options.picture:
        save_png(draw(lengths), options.picture)


if __name__ == "__main__":
    main()
