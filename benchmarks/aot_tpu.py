# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What sampling costs on TPUs as XLA compiles it, with no TPU at hand.

    pip install -e '.[tpu-aot]'                                             (Python 3.12, Linux)
    python benchmarks/aot_tpu.py [--size 4096] [--topology v5e:2x2 …] [--out FILE.json]
    python benchmarks/aot_tpu.py --kernels [the same options]

The first has XLA's path, the second the Pallas kernels (`aot_tpu_kernels`). Each case is compiled
for one device of each topology; nothing is run. The figures are XLA's own:

    bytes       what its cost analysis says is accessed, per weight, in any memory of the device
    to VMEM     those of them that are copies of operands into VMEM, ahead of their use. XLA counts
                one twice over, at its start and at its end. An array of 4096 x 4096 fits in there,
                and one of 8192 x 8192 does not.
    of HBM      bytes per weight that are read from HBM or written to it, by the module's text
    temporary   bytes per weight that the program takes beside operands and results
    estimate    milliseconds by XLA's estimate, which has all bytes come from HBM
    compile     seconds of XLA

Of a kernel there are also:

    VMEM        bytes that it takes there
    bundles     instruction words for 256 rows and 128 columns, once around its inner loop
    slower      time of those bundles over the time in which its bytes are read and written, if no
                bundle waits. Below 1 the kernel is bound by memory.

Only one process at a time can use libtpu.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import aot_tpu_kernels
import jax
import jax.numpy as jnp
import numpy as np
from hlo_traffic import bytes_of_hbm
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

import pqt_jax
from pqt_jax.numerics import reference
from pqt_jax.numerics.formats import BF16, E2M1, E3M2, E4M3
from pqt_jax.numerics.spec import Spec

SPECS = {
    "f32→bf16": Spec(dtype=BF16),
    "f32→bf16, uniform": Spec(dtype=BF16, noise="uniform"),
    "f32→E4M3": Spec(dtype=E4M3),
    "f32→E2M1": Spec(dtype=E2M1),
    "f32→E3M2": Spec(dtype=E3M2),
}
TOPOLOGIES = ("v5e:2x2", "v6e:2x2")
FIGURES = ("bytes", "to_vmem", "of_hbm", "temporary", "estimate_ms", "compile_s")


def reason_not_to_run() -> str | None:
    """What this machine lacks to compile, in one line; None if nothing."""
    if importlib.util.find_spec("libtpu") is None:
        return "needs libtpu: pip install -e '.[tpu-aot]', or pip install --no-deps libtpu"
    return None


def make_cases(size: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Name of each row → (function, shapes of its operands)."""

    def shape(dtype: Any, *extents: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(extents, dtype)

    key = (shape(jnp.uint32, 2), shape(jnp.uint32, 3))
    w, cotangent = (shape(dtype, 1, size, size) for dtype in (jnp.float32, jnp.bfloat16))
    b_i = shape(jnp.float32, 1, size // 32, size // 32)
    cases = {}
    for name, spec in SPECS.items():
        cases[f"forward {name}"] = (functools.partial(reference.forward, spec), (w, b_i, *key))
    for name in ("f32→bf16", "f32→bf16, uniform"):
        backward = functools.partial(reference.backward, SPECS[name])
        cases[f"backward {name.removeprefix('f32→')}"] = (backward, (cotangent, *key))
    return cases


def bytes_copied_to_vmem(text: str) -> int:
    """Bytes of the copies into VMEM in a compiled module, as the cost analysis counts them."""
    total = 0
    for dtype, extents in re.findall(r"= \((\w+)\[([\d,]*)\]\{[^}]*S\(1\)\}.*? copy-start\(", text):
        size = math.prod(int(x) for x in extents.split(",")) * int(re.sub(r"\D", "", dtype)) // 8
        total += 4 * size  # read and written, at the start and at the end
    return total


def measure(device: Any, function: Any, operands: tuple[Any, ...]) -> dict[str, Any]:
    """The figures of one case, per weight."""
    placed = SingleDeviceSharding(device)
    operands = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed) for x in operands)
    mesh = Mesh(np.array([device]), ("x",)).abstract_mesh
    with jax.sharding.use_abstract_mesh(mesh):  # a kernel asks it for the kind of TPU
        lowered = jax.jit(function).lower(*operands)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text() or ""
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    estimate = cost.get("optimal_seconds", -1.0)
    weights = math.prod(operands[0].shape)
    return {
        "bytes": round(cost["bytes accessed"] / weights, 2),
        "to_vmem": round(bytes_copied_to_vmem(text) / weights, 2),
        "of_hbm": round(bytes_of_hbm(text) / weights, 2),
        "temporary": round(memory.temp_size_in_bytes / weights, 2),
        "estimate_ms": round(estimate * 1e3, 3) if estimate > 0 else None,  # it may give none
        "compile_s": round(seconds, 1),
    }


def print_row(name: str, cells: Iterable[Any]) -> None:
    """Print a row of the table."""
    texts = ("–" if x is None else f"{x:g}" if isinstance(x, int | float) else x for x in cells)
    print(f"{name:36s}" + "".join(f"{text:>12s}" for text in texts), flush=True)


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Cost of sampling on TPUs, without a TPU.")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--topology", nargs="+", metavar="NAME")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.size < 32 or options.size % 32:
        parser.error(f"--size {options.size}: it must be a positive multiple of 32")
    if reason := reason_not_to_run():
        sys.exit(f"{sys.argv[0]}: {reason}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for a cloud's machine
    jax.config.update("jax_platforms", "cpu")
    known = aot_tpu_kernels.TOPOLOGIES if options.kernels else TOPOLOGIES
    names = options.topology or list(known)
    figures = FIGURES + aot_tpu_kernels.FIGURES if options.kernels else FIGURES
    cases = (aot_tpu_kernels.make_cases if options.kernels else make_cases)(options.size)
    rows = []
    print_row("", (figure.replace("_", " ") for figure in figures))
    with aot_tpu_kernels.dump_programs() if options.kernels else contextlib.nullcontext() as dump:
        for name in names:
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
            device = topology.devices[0]
            starts_xla = (jax.ShapeDtypeStruct((8, 128), jnp.float32),)
            measure(device, jnp.negative, starts_xla)
            for case, (function, operands) in cases.items():
                row = {"topology": name, "case": case} | measure(device, function, operands)
                if dump:
                    row |= aot_tpu_kernels.count(dump, device, row["bytes"])
                rows.append(row)
                print_row(f"{name} {case}", (row[x] for x in figures))
    if options.out:
        record = {
            "command": shlex.join(["python", "benchmarks/aot_tpu.py", *sys.argv[1:]]),
            "size": options.size,
            "jax": jax.__version__,
            **{package: metadata.version(package) for package in ("jaxlib", "libtpu")},
            "python": platform.python_version(),
            "device": "none: compiled ahead of time for " + ", ".join(names),
            "pqt_jax": pqt_jax.__version__,
            "rows": rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
