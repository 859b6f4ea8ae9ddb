# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a training step takes on TPUs that are not at hand, by libtpu's own compiler.

    pip install -e '.[tpu-aot]'                                             (Python 3.12, Linux)
    python benchmarks/aot_tpu_step.py [--only llama2_134m …] [--attention xla] [--out FILE.json]

The step of each plan is compiled for a real topology, in BF16 and with sampling, whose kernels are
those for TPUs. Nothing runs. The figures, of one device:

    state       bytes of weights, moments and bits
    temporary   bytes that the program takes beside them
    traffic     number and bytes of the collectives in the program, by kind. Each counts once, also
                where a loop executes it often.

XLA's own estimate of the time (`optimal_seconds`) is negative for these programs, and left out.
Only one process at a time can use libtpu. Each step takes minutes to compile.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from aot_tpu import reason_not_to_run
from hlo_traffic import count_traffic
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from pqt_jax import pallas
from pqt_jax.models import partitioning
from pqt_jax.models.gpt2 import GPT2_124M
from pqt_jax.models.llama2 import LLAMA2_1B, LLAMA2_134M
from pqt_jax.training import flops
from pqt_jax.training.config import schema
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state
from pqt_jax.training.step import build_train_step

METHODS = ("bf16", "gaussws")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model on a topology.

    Attributes:
      model: its configuration.
      topology: its name for libtpu.
      mesh: sizes of the axes data, fsdp and tensor.
      sequences: on each device.
      length: tokens of a sequence.
    """

    model: Any
    topology: str
    mesh: tuple[int, int, int] = (1, 1, 1)
    sequences: int = 1
    length: int = 2048


PLANS = {
    "gpt2_124m v5e": Plan(GPT2_124M, "v5e:1x1", sequences=4, length=1024),
    "llama2_134m v5e": Plan(LLAMA2_134M, "v5e:1x1", sequences=2),
    "llama2_1b v5e-16 fsdp": Plan(LLAMA2_1B, "v5e:4x4", (1, 16, 1)),
    "llama2_1b v5e-16 fsdp×tensor": Plan(LLAMA2_1B, "v5e:4x4", (1, 8, 2)),
    "llama2_1b v5p-8 fsdp": Plan(LLAMA2_1B, "v5p:2x2x1", (1, 4, 1), sequences=4),
    "llama2_1b v6e-8 fsdp": Plan(LLAMA2_1B, "v6e:2x4", (1, 8, 1), sequences=2),
    "llama2_1b v6e-8 fsdp×tensor": Plan(LLAMA2_1B, "v6e:2x4", (1, 4, 2), sequences=2),
    "llama2_1b v6e-64 fsdp": Plan(LLAMA2_1B, "v6e:8x8", (1, 64, 1), sequences=2),
    "llama2_1b v6e-64 data×fsdp": Plan(LLAMA2_1B, "v6e:8x8", (8, 8, 1), sequences=2),
}


def measure(plan: Plan, method: str, attention: str = "splash") -> dict[str, Any]:
    """The figures of the step of a plan by one method."""
    config = schema.default(dataclasses.replace(plan.model, attention=attention, remat=True))
    config.method, config.data.length = method, plan.length
    config.data.batch = plan.sequences * plan.mesh[0] * plan.mesh[1] * plan.mesh[2]
    config.data.loss_chunk = plan.length // 4
    topology = topologies.get_topology_desc(platform="tpu", topology_name=plan.topology)
    devices = np.array(topology.devices).reshape(plan.mesh)
    mesh = Mesh(devices, partitioning.AXES, axis_types=(AxisType.Auto,) * 3)
    with partitioning.use_mesh(mesh):
        optimizer = make_optimizer(config)
        graph, state = abstract_state(config, optimizer)
        step: Any = build_train_step(config, graph, optimizer)
        batch = jax.ShapeDtypeStruct(
            (config.data.batch, plan.length + 1),
            np.uint16,
            sharding=partitioning.batch_sharding(mesh),
        )
        lowered = step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0)))
        start = time.perf_counter()
        compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    return {
        "method": method,
        "state_bytes": flops.device_bytes(state),
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "traffic": count_traffic(compiled.as_text() or ""),
        "compile_s": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Compile, print a line for each step, and write the JSON."""
    parser = argparse.ArgumentParser(description="Training steps on TPUs, without a TPU.")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PREFIX")
    parser.add_argument("--attention", choices=("splash", "xla"), default="splash")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    plans = {name: x for name, x in PLANS.items() if name.startswith(tuple(options.only))}
    if not plans:
        parser.error(f"--only {' '.join(options.only)}: no plan begins so: {', '.join(PLANS)}")
    if reason := reason_not_to_run():
        sys.exit(f"{sys.argv[0]}: {reason}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for a cloud's machine
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)  # as where there are several
    # As if the default device were the TPU that is compiled for.
    setattr(pallas, "_unsuited_device", lambda _: None)  # noqa: B010
    setattr(pallas, "KERNELS", ("mosaic_tpu",))  # noqa: B010
    rows = []
    for name, plan in plans.items():
        for method in METHODS:
            row = {"plan": name, "topology": plan.topology, "mesh": plan.mesh}
            row |= {"sequences": plan.sequences} | measure(plan, method, options.attention)
            rows.append(row)
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
            if options.out:
                write(options.out, rows)


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write the JSON of the steps that are compiled so far."""
    record = {
        "command": shlex.join(["python", "benchmarks/aot_tpu_step.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        **{package: metadata.version(package) for package in ("jaxlib", "libtpu")},
        "python": platform.python_version(),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
