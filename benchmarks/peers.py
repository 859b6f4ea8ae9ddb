# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a user would pick instead: a training step with each, over its own framework's BF16 step.

    pip install -e '.[bench,peers,diffq]'
    python benchmarks/peers.py --out benchmarks/results/peers_cpu.json      (about ten minutes)

One table of time and memory for ours, qwix, flax's FP8 products, torchao's QAT and diffq. All train
a Llama of the same shapes on as many tokens. Rows in JAX run in this process and are compared with
its BF16 step (`peers_jax`). Rows in PyTorch run in a process that this one starts, and are compared
with PyTorch's (`peers_torch`). The rows of a framework are interleaved: each round has all of them.

The default on a CPU is a Llama of 13.9 M parameters and 512 tokens in a step; on a GPU it is one of
134 M, and 8192 tokens. Few tokens make what is done to the weights a large part of the step: with
more tokens all added times are smaller, in proportion. A peer that cannot run here has a row with
the reason. The goal: a peer that changes the weights adds at least three times what gaussws adds.

Extras: `bench` has qwix; on Python 3.11 `peers` has PyTorch, transformers and torchao, and `diffq`
has diffq, which needs a C compiler and whose licence allows no commercial use.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import peers_jax
import peers_table
import peers_torch

import pqt_jax

TRANSFORMER_ENGINE = {
    "name": "TransformerEngine",
    "version": "",
    "what": "products in FP8",
    "base": "bf16",
    "is_peer": True,
    "why": "no code for it here: it needs CUDA to be installed and an NVIDIA GPU; see flax FP8",
}


def at_least_two(text: str) -> int:
    """A number of rounds, of which two make quartiles."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: it must be a whole number, 2 or more")
    return int(text)


def measure_torch(model: str, rounds: int, *, with_compiled: bool) -> list[dict[str, Any]]:
    """The rows in PyTorch, from a process of their own; if it fails, its last words for each."""
    script = Path(peers_torch.__file__)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(script), "--model", model, "--rounds", str(rounds)]
        command += ["--out", str(out)] + ([] if with_compiled else ["--no-compiled"])
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(out.read_text())
    last = (done.stderr.strip().split("\n") or [""])[-1]
    why = f"its process ended with {done.returncode}: {last[:160]}"
    rows = []
    for name, (_, what, _) in peers_torch.make_rows().items():
        row = {"name": name, "version": "", "what": what, "base": name, "is_peer": True}
        rows.append(row | {"why": why})
    return rows


def main() -> int:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description="Time and memory of a step beside its peers.")
    parser.add_argument("--model", choices=peers_table.CASES, help="134M on a GPU, else small")
    parser.add_argument("--rounds", type=at_least_two, default=15, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, no torch.compile")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON")
    options = parser.parse_args()
    # Read when jax first meets a GPU, which it shares with PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = jax.devices()[0]
    model = options.model or ("134M" if device.platform == "gpu" else "small")
    model, rounds = ("tiny", 2) if options.smoke else (model, options.rounds)
    print("rows in PyTorch …", file=sys.stderr, flush=True)
    rows = measure_torch(model, rounds, with_compiled=not options.smoke)
    rows = [*peers_jax.measure(peers_table.CASES[model], rounds), TRANSFORMER_ENGINE, *rows]
    rows = peers_table.complete(rows)
    case = peers_table.CASES[model]
    print(f"{model}: {case}, {rounds} rounds, {device.device_kind}, jax {jax.__version__}\n")
    print("\n".join(peers_table.lines(rows)))
    if options.smoke:
        print("A tiny model and two rounds: these figures mean nothing.")
    if options.out:
        record = {
            "command": "python " + " ".join(sys.argv),
            "model": {"name": model, **case._asdict()},
            "rounds": rounds,
            "device": device.device_kind,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "pqt_jax": pqt_jax.__version__,
            "verdict": peers_table.verdict(rows),
            "rows": rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
