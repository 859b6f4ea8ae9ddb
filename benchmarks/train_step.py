# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The training step with each method, interleaved: time and memory over BF16's.

    python benchmarks/train_step.py --out benchmarks/results/train_step.json     a Llama on a CPU
    python benchmarks/train_step.py --device gpu                                 gpu.py's models
    python benchmarks/train_step.py --memory --out FILE      on a CPU, compiled alone: see `memory`
    python benchmarks/train_step.py --microbatches 8 --sample-once --remat --dtype bfloat16

On a CPU: six layers of width 256, 8192 tokens in a step. Every round runs each method in turn; the
figure is the median of the rounds' ratios, with their quartiles.
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
from typing import Any

import gpu_train
import jax
import numpy as np

from pqt_jax.models.llama2 import Llama2Config
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state
from pqt_jax.training.step import build_train_step

MODEL = Llama2Config(4096, d_model=256, num_layers=6, num_heads=4, d_ff=704, dtype="float32")
TINY = Llama2Config(256, d_model=32, num_layers=2, num_heads=2, d_ff=64, dtype="float32")
SCHEDULES = ("MEMORY_OPTIMIZED", "DEFAULT")  # the step's own, and XLA's


def main() -> int:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description="Time and memory of a training step.")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--microbatches", type=int, default=1, metavar="N", help="on a CPU")
    parser.add_argument("--sample-once", action="store_true", help="of those that sample")
    parser.add_argument("--remat", action="store_true", help="on a CPU")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--memory", action="store_true", help="no time; every dtype, remat or not")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, two rounds")
    parser.add_argument("--out", metavar="FILE", help="JSON")
    options = parser.parse_args()
    if jax.devices()[0].platform != options.device:
        parser.error(f"--device={options.device}, and the default device is {jax.devices()[0]}")
    if options.device == "gpu":
        models = gpu_train.run(options.smoke)
    else:
        model, batch, length = (TINY, 2, 32) if options.smoke else (MODEL, 16, 512)
        rounds = 2 if options.smoke else options.rounds
        if options.microbatches < 1 or batch % options.microbatches:
            parser.error(
                f"--microbatches={options.microbatches}: it must divide the batch, {batch}"
            )
        if options.sample_once and options.microbatches == 1:
            parser.error("--sample-once goes with two --microbatches or more")
        model = dataclasses.replace(model, dtype=options.dtype, remat=options.remat)
        split = {"microbatches": options.microbatches, "sample_once": options.sample_once}
        case = gpu_train.Case(model, batch, length, rounds, steps=1, **split)
        if options.memory:
            models = {"llama": memory(case)}
        else:
            models = {"llama": gpu_train.measure("llama", case)}
    result = {
        "command": "python " + " ".join(sys.argv),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": str(jax.devices()[0]),
        "cores": os.cpu_count(),
        "models": models,
    }
    if options.out:
        with open(options.out, "w") as file:
            file.write(json.dumps(result, indent=2) + "\n")
    return 0


def memory(case: gpu_train.Case) -> list[dict[str, Any]]:
    """What the step takes for each dtype, with and without remat, by schedule and method."""
    rows, base, shape = [], {}, (case.batch, case.length + 1)
    for dtype, remat in itertools.product(("float32", "bfloat16"), (False, True)):
        lowered = {}
        for method in gpu_train.METHODS:
            model = dataclasses.replace(case.model, dtype=dtype, remat=remat)
            config = gpu_train.make_config(case._replace(model=model), method)
            optimizer = make_optimizer(config)
            graph, state = abstract_state(config, optimizer)
            step = build_train_step(config, graph, optimizer)
            tokens = jax.ShapeDtypeStruct(shape, np.int32)
            lowered[method] = step.lower(state, tokens, jax.random.key(0))
        for schedule, method in itertools.product(SCHEDULES, gpu_train.METHODS):
            options = {"xla_cpu_scheduler_type": f"CPU_SCHEDULER_TYPE_{schedule}"}
            row = {"dtype": dtype, "remat": remat, "schedule": schedule, "method": method}
            row |= gpu_train.memory(lowered[method].compile(compiler_options=options))
            base = row if method == "bf16" else base
            row["over_bf16"] = row["memory_bytes"] / base["memory_bytes"] - 1
            print(row, flush=True)
            rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
