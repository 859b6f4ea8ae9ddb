# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a training step of Llama2-1B takes on each device, compiled ahead for many, on a CPU.

    python benchmarks/aot_memory.py --out benchmarks/results/aot_memory.json

The step of each method is traced, partitioned by XLA over fake CPU devices, and compiled; nothing
runs. Arguments (weights, moments, bits) are exact and the same on any device. Temporaries are those
of XLA's CPU compiler, which has its own order of instructions and holds products of bfloat16 in
float32: only the ratio of the methods means something for a GPU.
"""

import argparse
import json
import platform
import sys
import time
from typing import Any

import jax
import numpy as np

from pqt_jax.models import partitioning
from pqt_jax.models.llama2 import LLAMA2_1B, Llama2Config
from pqt_jax.training import flops
from pqt_jax.training.config import schema
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state
from pqt_jax.training.step import build_train_step

METHODS = ("bf16", "gaussws")
LENGTH = 2048
TINY = Llama2Config(
    256, d_model=256, num_layers=2, num_heads=4, d_ff=512, max_length=64, remat=True
)


def main() -> int:
    """Compile, print a table, and write it if asked."""
    parser = argparse.ArgumentParser(description="Memory of a training step on each device.")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 256], metavar="N")
    parser.add_argument("--sequences", type=int, default=4, metavar="N", help="on each device")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on eight devices")
    parser.add_argument("--out", metavar="FILE", help="JSON")
    options = parser.parse_args()
    if options.smoke:
        options.devices = [8]
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    model, length = (TINY, 64) if options.smoke else (LLAMA2_1B, LENGTH)
    rows = [
        measure(model, method, count, options.sequences, length)
        for count in options.devices
        for method in METHODS
    ]
    for row in rows:
        print(row)
    result = {
        "command": "python " + " ".join(sys.argv),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }
    if options.out:
        with open(options.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")
    return 0


def measure(
    model: Llama2Config, method: str, count: int, sequences: int, length: int
) -> dict[str, Any]:
    """Bytes on each device, and seconds, of one method on a mesh of fsdp=count."""
    config = schema.default(model)
    config.method, config.data.length, config.data.batch = method, length, sequences * count
    config.data.loss_chunk = length // 4
    config.mesh.update(data=1, fsdp=count, tensor=1)
    mesh = partitioning.make_mesh(**config.mesh)
    assert mesh is not None, "two devices at least"
    with partitioning.use_mesh(mesh):
        start = time.perf_counter()
        optimizer = make_optimizer(config)
        graph, state = abstract_state(config, optimizer)
        step = build_train_step(config, graph, optimizer)
        batch = jax.ShapeDtypeStruct(
            (config.data.batch, length + 1), np.uint16, sharding=partitioning.batch_sharding(mesh)
        )
        lowered = step.lower(state, batch, jax.random.key(0))
        traced = time.perf_counter()
        memory = lowered.compile().memory_analysis()
        compiled = time.perf_counter()
    return {
        "devices": count,
        "method": method,
        "state_bytes": flops.device_bytes(state),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "trace_and_lower_s": round(traced - start, 1),
        "compile_s": round(compiled - traced, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
