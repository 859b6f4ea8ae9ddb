# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What the kernels cost on an A100 and an H100, by their machine code, with no GPU at hand.

    pip install -e '.[aot]'                                          (Python 3.12, jax 0.11, Linux)
    python benchmarks/aot_gpu.py [--size 4096] [--markdown] [--out FILE.json]     (a few minutes)

Every case is compiled for sm_80 and sm_90 by what would serve a GPU: XLA's CUDA plugin, with
Mosaic GPU and Triton in it, then ptxas. Nothing is run: these are counts, not times. Per weight:

    bytes   to and from device memory: operands and results of every kernel in the compiled module,
            once each. What a kernel reads twice, or finds in a cache, is not seen.
    ALU     instructions of the ALU pipe: LOP3, SHF, IADD3, ISETP, FSETP, FSEL, SEL, *MNMX, PRMT,
            LEA, F2FP, MOV…: all but those named next. It has half of the FMA pipe's lanes on an
            H100, and as many on an A100, and is the busier one.
    FMA     the multiplying pipe: FADD, FMUL, FFMA, IMAD (also where it only shifts or moves).
    total   these, memory (LD*, ST*, ATOM, RED), control (BRA, BAR, EXIT, …), across lanes, special
            and converting (SHFL, S2R, MUFU, F2F, I2F, …), and the uniform datapath (U*).

Instructions are those in the listing, predicated or not, times the threads launched, over the
weights, summed over the kernels of the module. A module with a loop in a kernel has no such figure.
Registers are the most that a kernel takes per thread; spills are bytes, stored and loaded.
"""

import argparse
import collections
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import aot_counts
import jax
import jax.numpy as jnp
from aot_compile import GPUS, compile_for, prepare, tools

import pqt_jax
from pqt_jax import pallas
from pqt_jax.numerics import philox
from pqt_jax.numerics.formats import BF16, E2M1, E4M3, FP32
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import launch

CASES = {  # pass, dtype of what is read, how ŵ is made
    "forward f32→bf16": ("forward", jnp.float32, Spec(dtype=BF16)),
    "forward f32→f32": ("forward", jnp.float32, Spec(dtype=FP32)),
    "forward bf16→bf16": ("forward", jnp.bfloat16, Spec(dtype=BF16)),
    "forward f32→E4M3": ("forward", jnp.float32, Spec(dtype=E4M3)),
    "forward f32→E4M3 codes": ("forward", jnp.float32, Spec(dtype=E4M3, encoded=True)),
    "forward f32→E2M1": ("forward", jnp.float32, Spec(dtype=E2M1)),
    "backward bf16": ("backward", jnp.bfloat16, Spec(dtype=BF16)),
    "backward f32": ("backward", jnp.float32, Spec(dtype=FP32)),
}
TARGETS = {  # case → implementation → the most of a figure; no spills anywhere
    "forward f32→bf16": {"mosaic": {"bytes": 6.1, "total": 16.0}, "triton": {"bytes": 6.1}},
    "forward f32→E4M3": {"mosaic": {"total": 24.0}},
    "forward f32→E4M3 codes": {"mosaic": {"total": 30.0}},
    "forward f32→E2M1": {"mosaic": {"total": 24.0}},
    "backward bf16": {
        "mosaic": {"bytes": 2.1, "total": 9.5},
        "triton": {"bytes": 2.1, "total": 15.0},
    },
    "backward f32": {"mosaic": {"total": 10.6}},
}
IMPLEMENTATIONS = ("mosaic", "triton", "xla")  # those for GPUs
MOSAIC = "anonymous_mosaic_gpu_kernel"  # its name for kernels that have none
FIGURES = ("bytes", "alu", "fma", "total", "registers", "spills")


def reason_not_to_run() -> str | None:
    """What this machine lacks to compile, in one line; None if nothing."""
    if jax.__version_info__ < (0, 11):
        return f"needs jax 0.11 or newer, for Mosaic GPU, and this is {jax.__version__}"
    missing = [x for x in ("jax_cuda12_plugin", "triton") if not importlib.util.find_spec(x)]
    if missing:
        return f"needs {' and '.join(missing)}: pip install -e '.[aot]'"
    return None


def compile_case(arch: int, case: str, implementation: Any, size: int) -> str:
    """The optimized module of one row."""
    direction, dtype, spec = CASES[case]
    forward, backward = pallas.get_functions(implementation)
    matrix = jax.ShapeDtypeStruct((1, size, size), dtype)
    b_i = jax.ShapeDtypeStruct((1, size // 32, size // 32), jnp.float32)
    key = [jax.ShapeDtypeStruct((n,), jnp.uint32) for n in (2, 3)]
    if direction == "forward":
        function, operands = forward, [matrix, b_i, *key]
    else:
        function, operands = backward, [matrix, *key]
    return compile_for(arch, lambda *stack: function(spec, stack), operands).as_text() or ""


def threads_of(kept: Path, mosaic: int) -> collections.Counter[str]:
    """Threads launched under each kernel's name, with those of Mosaic's, which XLA does not see."""
    threads = collections.Counter({MOSAIC: mosaic} if mosaic else {})
    kernel = re.compile(r"kCustomKernel .*\] (\S+) grid: \[(.*?)\] threads: \[(.*?)\]")
    for path in kept.glob("*.thunk_sequence.txt"):
        for name, *extents in kernel.findall(path.read_text()):
            threads[name] += math.prod(int(x) for x in ",".join(extents).split(","))
    return threads


def measure(arch: int, case: str, implementation: str, size: int, kept: Path) -> dict[str, Any]:
    """The figures of one row."""
    for path in kept.iterdir():
        path.unlink()
    text = compile_case(arch, case, implementation, size)
    tiles = launch.load_kernel("mosaic").choose_tiles([(1, size // philox.ROWS, size // 128)])
    per_thread = philox.ROWS * tiles
    threads = threads_of(kept, size**2 // per_thread if implementation == "mosaic" else 0)
    counts, registers, spills, loops, seen = collections.Counter(), 0, 0, False, set()
    for path in kept.glob("*.ptx"):
        ptx, cubin = path.read_text(), path.with_suffix(".cubin")
        entry, target = re.search(r"\.entry (\w+)", ptx), re.search(r"\.target (\w+)", ptx)
        assert entry and target
        command = [tools() / "bin/ptxas", "-v", f"-arch={target[1]}", path, "-o", cubin]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers = max(registers, *map(int, re.findall(r"Used (\d+) registers", log)))
        spills += sum(map(int, re.findall(r"(\d+) bytes spill", log)))
        command = [tools() / "bin/nvdisasm", "-c", cubin]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        some, loop = aot_counts.count_sass(listing)
        loops |= loop
        for pipe, n in some.items():
            counts[pipe] += n * threads[entry[1]]
        seen.add(entry[1])
    if seen != set(threads):  # else a figure would lack a part and not show it
        raise RuntimeError(f"{case}, {implementation}: {seen} compiled, {set(threads)} launched")

    def per_element(n: int) -> float | None:
        return None if loops else round(n / size**2, 2)

    return {
        "bytes": round(aot_counts.hlo_traffic(text) / size**2, 3),
        "alu": per_element(counts["alu"]),
        "fma": per_element(counts["fma"]),
        "total": per_element(counts.total()),
        "registers": registers,
        "spills": spills,
    }


def measure_all(arch: int, size: int, kept: Path) -> None:
    """Print one row as JSON on each line: what a process does for its architecture."""
    for case in CASES:
        for implementation in IMPLEMENTATIONS:
            figures = measure(arch, case, implementation, size, kept)
            row = {"arch": f"sm_{arch}", "case": case, "implementation": implementation}
            print(json.dumps(row | figures), flush=True)


def table(rows: list[dict[str, Any]], markdown: bool) -> str:
    """The rows as text; each figure that has a target is followed by it."""
    heads = ("", "case", "", "B/element", "ALU", "FMA", "total", "registers", "spills")
    lines: list[tuple[str, ...]] = [heads]
    for row in rows:
        targets = TARGETS.get(row["case"], {}).get(row["implementation"], {})
        cells = [row["arch"], row["case"], row["implementation"]]
        for figure in FIGURES:
            value, target = row[figure], targets.get(figure)
            cell = "–" if value is None else f"{value:.2f}" if figure in FIGURES[:4] else str(value)
            cells.append(cell if target is None else f"{cell} (≤ {target})")
        lines.append(tuple(cells))
    if markdown:
        lines.insert(1, ("---",) * 3 + ("---:",) * 6)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    layout = "  ".join(f"{{:{'<' if i < 3 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(layout.format(*line) for line in lines)


def ptxas_version() -> str:
    """The version that ptxas prints."""
    command = [tools() / "bin/ptxas", "--version"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text.split("release ")[1].split(",")[0]


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Machine code of the kernels, without a GPU.")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # architecture, folder
    options = parser.parse_args()
    if options.size < 512 or options.size % 512:
        parser.error(f"--size {options.size}: it must be a positive multiple of 512")
    if reason := reason_not_to_run():
        sys.exit(f"{sys.argv[0]}: {reason}")
    if options.child:
        return measure_all(int(options.child[0]), options.size, Path(options.child[1]))
    rows = []
    for arch in GPUS:
        with tempfile.TemporaryDirectory() as root:
            child = [sys.executable, __file__, f"--size={options.size}"]
            child += ["--child", str(arch), f"{root}/kept"]
            environment = os.environ | prepare(Path(root))
            done = subprocess.run(child, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{sys.argv[0]}: sm_{arch} failed\n{done.stderr[-4000:]}")
        rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(table(rows, options.markdown))
    if options.out:
        packages = ("jaxlib", "jax-cuda12-plugin", "triton")
        record = {
            "command": shlex.join(["python", "benchmarks/aot_gpu.py", *sys.argv[1:]]),
            "size": options.size,
            "jax": jax.__version__,
            **{name: metadata.version(name) for name in packages},
            "ptxas": ptxas_version(),
            "python": platform.python_version(),
            "device": "none: compiled ahead of time for " + ", ".join(n for n, _ in GPUS.values()),
            "pqt_jax": pqt_jax.__version__,
            "targets": TARGETS,
            "rows": rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
