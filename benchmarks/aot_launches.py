# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How many kernels a training step launches, with sampling and without, with no GPU at hand.

    pip install -e '.[aot]'                              (Python 3.12, jax 0.11, Linux)
    python benchmarks/aot_launches.py [--out FILE.json]                (about a minute)

The step of a Llama2-134M of two layers is compiled for an H100 as XLA would there. A launch is a
fusion, a custom call or a copy in the optimized module: of a layer in the forward and in the
backward pass, which are loops over the layers, and of all that is done once. What each takes is not
seen; by LOG.md a launch of next to nothing takes about two microseconds on an H200. The last line
is for the twelve layers of the model. Temporaries are those of XLA for the GPU.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from aot_compile import compile_for, prepare
from aot_counts import count_launches
from aot_gpu import reason_not_to_run

from pqt_jax import pallas
from pqt_jax.models.llama2 import LLAMA2_134M
from pqt_jax.training.config.schema import default
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state
from pqt_jax.training.step import build_train_step

METHODS = ("bf16", "gaussws")
ARCHITECTURE = 90


def measure_step(method: str) -> dict[str, int]:
    """Launches of a compiled step, and the bytes of its temporaries."""
    # As if the default device were the GPU that is compiled for.
    setattr(pallas, "_unsuited_device", lambda _: None)  # noqa: B010
    config = default(dataclasses.replace(LLAMA2_134M, num_layers=2, attention="xla"))
    config.method = method
    optimizer = make_optimizer(config)
    graph, state = abstract_state(config, optimizer)
    step: Any = build_train_step(config, graph, optimizer)
    tokens = jax.ShapeDtypeStruct((8, 2049), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = compile_for(ARCHITECTURE, step.__wrapped__, (state, tokens, key))
    memory: Any = compiled.memory_analysis()
    launches = count_launches(compiled.as_text() or "")
    return launches | {"temporary_bytes": memory.temp_size_in_bytes}


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Launches of a training step, without a GPU.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if reason := reason_not_to_run():
        sys.exit(f"{sys.argv[0]}: {reason}")
    if options.child:
        print(json.dumps(measure_step(options.child)))
        return
    table: dict[str, dict[str, int]] = {}
    for method in METHODS:
        with tempfile.TemporaryDirectory() as root:
            child = [sys.executable, __file__, f"--child={method}"]
            environment = os.environ | prepare(Path(root))
            done = subprocess.run(child, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{sys.argv[0]}: {method} failed\n{done.stderr[-4000:]}")
        table[method] = json.loads(done.stdout.splitlines()[-1])
        print(f"{method:8s}", *(f"{way} {n}" for way, n in table[method].items()), flush=True)
    above = {way: table["gaussws"][way] - n for way, n in table["bf16"].items()}
    launches = LLAMA2_134M.num_layers * (above["forward"] + above["backward"]) + above["once"]
    share = above["temporary_bytes"] / table["bf16"]["temporary_bytes"]
    print(f"gaussws launches {launches} more than bf16, with {share:+.3%} of its temporaries")
    if options.out:
        record = {"jax": jax.__version__, "architecture": f"sm_{ARCHITECTURE}", "launches": table}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
