# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The training step with each method, interleaved: time and memory over BF16's.

    python benchmarks/train_step.py --out benchmarks/results/train_step.json     a Llama on a CPU
    python benchmarks/train_step.py --device gpu                                 gpu.py's models

On a CPU: six layers of width 256, 8192 tokens in a step. Every round runs each method in turn; the
figure is the median of the rounds' ratios, with their quartiles.
"""

import argparse
import json
import os
import platform
import sys

import gpu_train
import jax

from pqt_jax.models.llama2 import Llama2Config

MODEL = Llama2Config(4096, d_model=256, num_layers=6, num_heads=4, d_ff=704, dtype="float32")
TINY = Llama2Config(256, d_model=32, num_layers=2, num_heads=2, d_ff=64, dtype="float32")


def main() -> int:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description="Time and memory of a training step.")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, two rounds")
    parser.add_argument("--out", metavar="FILE", help="JSON")
    given = parser.parse_args()
    if jax.devices()[0].platform != given.device:
        parser.error(f"--device={given.device}, and the default device is {jax.devices()[0]}")
    if given.device == "gpu":
        models = gpu_train.run(given.smoke)
    else:
        model, batch, length = (TINY, 2, 32) if given.smoke else (MODEL, 16, 512)
        rounds = 2 if given.smoke else given.rounds
        models = {"llama": gpu_train.measure("llama", model, batch, length, rounds, 1)}
    result = {
        "command": "python " + " ".join(sys.argv),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": str(jax.devices()[0]),
        "cores": os.cpu_count(),
        "models": models,
    }
    if given.out:
        with open(given.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
