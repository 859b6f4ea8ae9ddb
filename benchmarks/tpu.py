# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Everything that only a TPU can tell, by one command, in about ten minutes. Nobody has run it yet.

    pip install -e '.[tpu]'
    python benchmarks/tpu.py --out benchmarks/results/tpu-NAME.json

    exact   the kernel and XLA against the reference on the CPU, bit for bit (`gpu_exact`)
    speed   sampling and its gradients, as shares of the bandwidth of a copy (`gpu_speed`)
    train   steps of GPT2-124M, Llama2-134M and Llama2-1B, by three methods (`gpu_train`)

It uses one chip, also where there are more. What cannot be run is recorded with its reason, such as
a model that does not fit, and the rest goes on; the file is written after every model and size. The
exit status is 1 if bits differ. `--smoke` runs the same code anywhere, on small shapes whose
figures mean nothing.
"""

import sys

import accelerator
import gpu_exact
import gpu_speed
import gpu_train
import jax
from jax.sharding import AxisType

SECTIONS = {"exact": gpu_exact.run, "speed": gpu_speed.run, "train": gpu_train.run}


def main() -> int:
    """Run the sections on the first chip."""
    one = jax.make_mesh((1,), ("chip",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    with jax.set_mesh(one):  # so that the kernels know that no program is for several chips
        return accelerator.run("tpu", SECTIONS)


if __name__ == "__main__":
    sys.exit(main())
