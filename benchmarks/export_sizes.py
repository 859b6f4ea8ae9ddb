# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Size of each export of a run against the loss of its weights, as a table and a picture.

    python benchmarks/export_sizes.py --workdir runs/quickstart --picture FILE.png [--out FILE.json]

Losses are those of `pqt_jax.evaluate` on the run's validation text. Sizes are those of the files
with the weights; embeddings, head and norms are in bfloat16.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from pqt_jax import evaluate, export
from pqt_jax.interchange.png import save_png
from pqt_jax.training.named_formats import LABELS

SUFFIXES = (".safetensors", ".gguf")
CASES = [  # layout, format
    ("huggingface", "bf16"),
    *(("compressed-tensors", name) for name in ("fp8_e4m3", "fp6_e2m3", "fp4_e2m1")),
    *(("gguf", name) for name in ("bf16", "fp6_e2m3", "fp4_e2m1")),
    *(("mlx", name) for name in ("fp8_e4m3", "fp4_e2m1")),
    *(("quark", name) for name in ("fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1")),
    *(("packed", name) for name in ("fp8_e4m3", "fp6_e3m2", "fp4_e2m1")),
]
_MARKERS = dict(zip(dict.fromkeys(layout for layout, _ in CASES), "osD^vP", strict=True))


def measure_sizes(workdir: Path) -> list[dict[str, Any]]:
    """Export in every layout and format; returns rows of layout, format and bytes."""
    rows = []
    for layout, name in CASES:
        with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
            out = Path(temporary, "out")
            options = [f"--workdir={workdir}", f"--layout={layout}", f"--format={name}"]
            code = export.main([*options, f"--out={out}", "--rest=bfloat16"])
            assert code == 0, f"{layout} {name}"
            size = sum(p.stat().st_size for p in out.iterdir() if p.suffix in SUFFIXES)
        rows.append({"layout": layout, "format": name, "bytes": size})
    return rows


def measure_losses(workdir: Path) -> dict[str, Any]:
    """Format → its difference to the master weights in nats, with its interval."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        out = Path(temporary, "losses.json")
        code = evaluate.main([f"--workdir={workdir}", "--weights=all", f"--json={out}"])
        assert code == 0
        weights = json.loads(out.read_text())["weights"]
    return {name: measured["difference"] for name, measured in weights.items()}


def draw(rows: list[dict[str, Any]], losses: dict[str, Any]) -> Figure:
    """One point for each export: megabytes, and nats more than the master weights."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    present = {row["format"] for row in rows}
    colors = {name: f"C{i}" for i, name in enumerate(LABELS) if name in present}
    for row in rows:
        loss, x = losses[row["format"]], row["bytes"] / 1e6
        bars = [[loss["value"] - loss["low"]], [loss["high"] - loss["value"]]]
        marker, color = _MARKERS[row["layout"]], colors[row["format"]]
        axes.errorbar(x, loss["value"], yerr=bars, marker=marker, color=color, elinewidth=0.8)
    for layout, marker in _MARKERS.items():
        axes.plot([], [], marker, color="0.4", label=layout)
    for name, color in colors.items():
        axes.plot([], [], "s", color=color, label=LABELS[name])
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="megabytes of weights", ylabel="nats per byte more than the master weights")
    axes.set_xlim(left=0)
    axes.legend(fontsize=8, ncols=2)
    return figure


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows, losses = measure_sizes(options.workdir), measure_losses(options.workdir)
    for row in rows:
        loss = losses[row["format"]]
        print(
            f"{row['layout']:20}{row['format']:10}{row['bytes']:12,} bytes {loss['value']:+.4f} "
            f"[{loss['low']:+.4f}, {loss['high']:+.4f}]"
        )
    save_png(draw(rows, losses), options.picture)
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
