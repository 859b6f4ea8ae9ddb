# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Loss in few bits against tokens per parameter, from the runs in docs/payoff: tables, a picture.

    python benchmarks/payoff.py [--picture FILE.png] [--sizes FILE.png]

The runs are those of configs/lab/payoff.py with different numbers of steps, in a CSV file of each
folder of docs/payoff; those of a smaller model (`SMALL`) are in docs/payoff/small. Every difference
is that to BF16's weights as they are, of the same length and seed, in nats per byte, with Student's
interval over the seeds; a file that has BF16 runs of its own is compared with those. A format has
the loss of that scale rule which is best for the arm on average, so that each arm has its best
chance.
"""

import argparse
import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from pqt_jax.interchange.png import save_png
from pqt_jax.lab.statistics import holm, paired_difference, paired_p_value
from pqt_jax.lab.sweep_arms import load_sweep
from pqt_jax.numerics.formats import as_format
from pqt_jax.training.state import count_parameters

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "docs" / "payoff"
BASELINE = "BF16"
AGAIN = ", again"  # on another machine
FORMATS = {  # label → beginning of the columns
    "as they are": "master",
    "FP8 E4M3": "fp8_e4m3",
    "FP6 E3M2": "fp6_e3m2",
    "FP6 E2M3": "fp6_e2m3",
    "FP4 E2M1": "fp4_e2m1",
    "FP4, 32×1": "fp4_e2m1/32x1",
    "E2M0": "E2M0",
    "E1M1": "E1M1",
}
BY_RECIPE = {  # format → the arm of its recipe
    "FP4 E2M1": "STE of half at 85 %, all at 95 %",
    "FP6 E2M3": "STE E2M3 of half, all at 95 %",
    "FP8 E4M3": "STE E4M3 of half, all at 95 %",
}
DRAWN = (
    BASELINE,
    "gaussws 4",
    "STE FP4, mse",
    "BF16, STE in the last 30 %",
    BY_RECIPE["FP4 E2M1"],
)
SMALL = {"d_model": 32, "num_heads": 1, "d_ff": 96}  # sequences of 64 bytes, 16 at once
LEARNED = tuple(f"gaussws {bits}" for bits in (3, 4, 5))
SIZES_AT = 4000  # steps of the runs in the picture of sizes

# Weights → loss of each seed; "bits WEIGHTS" → bits of a weight; "baseline" → loss of BF16.
Losses = dict[str, np.ndarray]


def read(paths: Iterable[Path], arms: Sequence[str]) -> dict[int, dict[str, Losses]]:
    """Steps → arm → weights → held-out loss, float64[seeds] in the order of the seeds.

    Files of one length are one table. An arm that another file has, too, is there again by the name
    with `AGAIN`. Arms have the order of the config.
    """
    lengths: dict[int, dict[str, Losses]] = {}
    for path in sorted(paths, key=lambda path: path.stem):  # runs.csv first
        with path.open(newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
        for steps in {row["steps"] for row in rows}:
            found = lengths.setdefault(int(steps), {})
            named: dict[str, list[dict[str, str]]] = {}
            for row in rows:
                if row["steps"] == steps:
                    named.setdefault(row["arm"], []).append(row)
            own = {arm: _losses(of_arm) for arm, of_arm in named.items()}
            baseline = own.get(BASELINE, found.get(BASELINE, {}))["master"]
            for arm, losses in own.items():
                found[arm + AGAIN if arm in found else arm] = losses | {"baseline": baseline}
    for steps, found in lengths.items():
        order = sorted(found, key=lambda arm: (arms.index(arm.removesuffix(AGAIN)), arm))
        lengths[steps] = {arm: found[arm] for arm in order}
    return lengths


def _losses(rows: Sequence[dict[str, str]]) -> Losses:
    """The losses of the runs of an arm, by the columns of its rows."""
    names = [name for name in rows[0] if name.startswith(("held_out_", "bits_mixed"))]
    return {
        name.removeprefix("held_out_").replace("bits_", "bits "): np.array(
            [float(row[name]) for row in rows]
        )
        for name in names
        if rows[0][name]
    }


def best(losses: Losses, name: str) -> np.ndarray:
    """The losses of a format by the scale rule that is best on average.

    Args:
      losses: of an arm.
      name: the format, in the blocks of training; or with others, as in "fp4_e2m1/32x1".

    Returns:
      float64[seeds]; NaN if the format was not measured.
    """
    fmt, *blocks = name.split("/")
    rules = [x for x in losses if x.split("/")[0] == fmt and x.split("/")[2:] == blocks]
    if blocks:  # those of other software, whose scales are powers of two
        rules = [rule for rule in rules if "/exact/" not in rule]
    if not rules:
        return np.full_like(losses["master"], np.nan)
    return losses[min(rules, key=lambda rule: losses[rule].mean())]


def table(arms: dict[str, Losses]) -> str:
    """Markdown: a row for each arm; a star is significant by Holm's correction over the table."""
    columns = {
        label: [best(losses, name) for losses in arms.values()] for label, name in FORMATS.items()
    }
    columns = {label: cells for label, cells in columns.items() if not np.isnan(cells).all()}
    baselines = [losses["baseline"] for losses in arms.values()]
    p_values = np.array(
        [
            [paired_p_value(*pair) for pair in zip(cells, baselines, strict=True)]
            for cells in columns.values()
        ]
    ).T
    p_values[[arm.removesuffix(AGAIN) == BASELINE for arm in arms], 0] = np.nan  # itself
    stars = holm(p_values) < 0.05
    lines = [f"| trained by | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for i, arm in enumerate(arms):
        texts = []
        for cells, star in zip(columns.values(), stars[i], strict=True):
            mean, _, high = paired_difference(cells[i], baselines[i])
            text = f"{mean:+.4f}{'*' if star else ''} ± {high - mean:.4f}"
            texts.append("" if np.isnan(mean) else text)
        if arm.removesuffix(AGAIN) == BASELINE:
            texts[0] = f"{baselines[i].mean():.4f}"
        lines.append(f"| {arm} | {' | '.join(texts)} |")
    return "\n".join(lines)


def draw(
    lengths: dict[float, dict[str, Losses]],
    small: dict[float, dict[str, Losses]],
    arms: Sequence[str] = DRAWN,
) -> Figure:
    """Loss in FP4 above BF16's weights as they are, by tokens per parameter; hollow: `SMALL`."""
    figure, ax = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    for i, arm in enumerate(arms):
        for runs_of, line in ((lengths, "-"), (small, "--")):
            points = {n: runs for n, runs in sorted(runs_of.items()) if arm in runs}
            if not points:
                continue
            found = [
                paired_difference(best(runs[arm], "fp4_e2m1"), runs[arm]["baseline"])
                for runs in points.values()
            ]
            middle = np.array([x.value for x in found])
            ends = np.array([[x.value - x.low, x.high - x.value] for x in found]).T
            renamed = {BASELINE: "BF16, rounded afterwards", arms[-1]: "the recipe for FP4"}
            label = renamed.get(arm, arm)
            beside = np.array(list(points)) * 1.03**i  # so that intervals do not hide each other
            style = {"color": f"C{i}", "linestyle": line, "marker": "o", "capsize": 3}
            if line == "--":
                style["markerfacecolor"] = "white"
            ax.errorbar(beside, middle, ends, label=label if line == "-" else None, **style)
    ax.axhline(0, color="#888", linewidth=1)
    ax.set_xscale("log")
    apart = [n for n in small if all(abs(n / other - 1) > 0.1 for other in lengths)]
    ticks = sorted([*lengths, *apart])
    ax.set_xticks(ticks, [f"{length:.0f}" for length in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens per parameter (dashed and hollow: a smaller model)")
    ax.set_ylabel("loss in FP4 above that of BF16's weights, nats")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_sizes(arms: dict[str, Losses]) -> Figure:
    """Loss above BF16's weights as they are, by the bits of a stored weight."""
    figure, ax = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    stored = {name: as_format(FORMATS[name]).bits + 8 / 32**2 for name in BY_RECIPE}  # and scales

    def show(label: str, points: list[tuple[float, Losses, np.ndarray]], marker: str) -> None:
        if not points:
            return
        found = [paired_difference(loss, losses["baseline"]) for _, losses, loss in points]
        middle = [x.value for x in found]
        ends = [[x.value - x.low for x in found], [x.high - x.value for x in found]]
        size = [bits for bits, *_ in points]
        ax.errorbar(size, middle, ends, marker=marker, capsize=3, linewidth=1, label=label)

    def in_formats(arm_of: dict[str, str]) -> list[tuple[float, Losses, np.ndarray]]:
        found = [(bits, arms[arm_of[name]], FORMATS[name]) for name, bits in stored.items()]
        return [(bits, losses, best(losses, fmt)) for bits, losses, fmt in found]

    show("one format, rounded afterwards", in_formats(dict.fromkeys(stored, BASELINE)), "o")
    show("one format, by its recipe", in_formats(BY_RECIPE), "o")
    for suffix, weights, of in (("", "mixed", "block"), (" by matrix", "mixed/tensor", "matrix")):
        by_error = weights.replace("mixed", "mixed/error")
        for kind, name in (("noise", weights), ("error", by_error)):
            learned = [arms[arm + suffix] for arm in LEARNED if arm + suffix in arms]
            points = [
                (x[f"bits {name}"].mean(), x, x[name]) for x in learned if f"bits {name}" in x
            ]
            points.sort(key=lambda point: point[0])
            show(f"bits learned by {of}, matched by {kind}", points, "s")
    ax.axhline(0, color="#888", linewidth=1)
    ax.set_xlabel("bits of a stored weight")
    ax.set_ylabel("loss above that of BF16's weights, nats")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    """Print the tables and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--sizes", type=Path)
    options = parser.parse_args()
    sweep = load_sweep("lab/payoff")
    config, names = sweep.arms[0].config, [arm.name for arm in sweep.arms]
    smaller = dataclasses.replace(config, model=dataclasses.replace(config.model, **SMALL))
    tokens = config.data.batch * config.data.length
    found = {"": read(RUNS.glob("[0-9]*/runs*.csv"), names)}
    found["small"] = read(RUNS.glob("small/[0-9]*/runs*.csv"), names)
    lengths = {}
    for model, changed in (("", config), ("small", smaller)):
        parameters = count_parameters(changed)
        lengths[model] = {n * tokens / parameters: arms for n, arms in found[model].items()}
        for length, arms in sorted(lengths[model].items()):
            print(f"\n{parameters:,} parameters, {length:.1f} tokens for each\n\n{table(arms)}")
    if options.picture:
        save_png(draw(lengths[""], lengths["small"]), options.picture)
    if options.sizes:
        save_png(draw_sizes(found[""][SIZES_AT]), options.sizes)


if __name__ == "__main__":
    main()
