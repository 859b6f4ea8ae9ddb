# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Everything that only a GPU can tell, by one command, in about ten minutes.

    pip install -e '.[cuda12]'   (or cuda13)
    python benchmarks/gpu.py --out benchmarks/results/gpu-NAME.json

    exact   every implementation against the reference on the CPU, bit for bit (`gpu_exact`)
    rates   how many of the instructions that kernels are made of it executes (`gpu_rates`)
    speed   sampling and its gradients, as shares of the bandwidth of a copy (`gpu_speed`)
    train   steps of GPT2-124M, Llama2-134M and Llama2-1B, by three methods (`gpu_train`)

What cannot be run is recorded with its reason, and the rest goes on; the file is written after
every model and size, so that an interrupted run leaves its results so far. The exit status is 1 if
bits differ. `--smoke` runs the same code anywhere, on small shapes whose figures mean nothing.
"""

import os
import sys

# Read when jax first meets the GPU; what is left is for the workers of `gpu_exact`.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.88")

import accelerator
import gpu_exact
import gpu_rates
import gpu_speed
import gpu_train

SECTIONS = {
    "exact": gpu_exact.run,
    "rates": gpu_rates.run,
    "speed": gpu_speed.run,
    "train": gpu_train.run,
}

if __name__ == "__main__":
    sys.exit(accelerator.run("gpu", SECTIONS))
