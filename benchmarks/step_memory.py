# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Memory of the compiled training step by method, and of validation, as the trainer compiles them.

    python benchmarks/step_memory.py --out FILE --config FILE --config.field=value …

Nothing is allocated and nothing runs; the compiler is that of the default device.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import accelerator
import gpu_train
import jax
import numpy as np

from pqt_jax.training.config import command_line
from pqt_jax.training.final_evaluation import mean_loss
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state
from pqt_jax.training.step import build_train_step, step_split


def main() -> int:
    """Compile, and write the compiler's figures."""
    parser = argparse.ArgumentParser(description="Memory of the compiled training step.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    options, rest = parser.parse_known_args()
    config = command_line.parse(rest).config
    batch = jax.ShapeDtypeStruct((config.data.batch, config.data.length + 1), np.uint16)
    methods = {}
    for method in gpu_train.METHODS:
        config = dataclasses.replace(config, method=method)
        optimizer = make_optimizer(config)
        graph, state = abstract_state(config, optimizer)
        step = build_train_step(config, graph, optimizer)
        compiled = step.lower(state, batch, jax.random.key(0)).compile()
        methods[method] = gpu_train.memory(compiled)
    some = jax.ShapeDtypeStruct((config.log.validation_batches, *batch.shape), batch.dtype)
    loss = mean_loss(graph, None, step_split(config)).lower(state.params, some).compile()
    record = {**accelerator.versions(), "methods": methods, "validation": gpu_train.memory(loss)}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
