# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Memory and time of an export of Llama2-1B: random weights, from a checkpoint.

    python benchmarks/export.py [--layers 18] [--against CHECKOUT] [--rounds 3] [--out FILE.json]

Each export is a process of its own; its largest resident size and its time are taken from the
system. In each round, in turn:

    floor        read the bytes of the checkpoint once and write as many as the FP4 folder has
    fp4          --layout=compressed-tensors --format=fp4_e2m1
    bf16         --layout=huggingface --format=bf16
    against      the same as bf16 by the package of another checkout

The bound of memory is four times the largest parameter, all layers of it, plus 300 MB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.data.source import Text
from pqt_jax.models.llama2 import LLAMA2_1B
from pqt_jax.training import methods
from pqt_jax.training.config import default
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import checkpoint, run_metadata, workdir

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = {
    "fp4": ["--layout=compressed-tensors", "--format=fp4_e2m1"],
    "bf16": ["--layout=huggingface", "--format=bf16"],
}
_CHUNK = 1 << 24


class Weights(NamedTuple):
    """What is saved of a state: exports read nothing else."""

    params: nnx.State


def make_run(run: Path, layers: int) -> int:
    """Write a checkpoint of random weights; returns the bytes of its largest parameter."""
    settings = default(LLAMA2_1B)
    settings.model.num_layers = layers
    config = from_values(RunConfig, settings.to_dict())
    empty = np.zeros(0, np.uint8)
    meta = run_metadata.make_metadata(config, Text(empty, empty, "0" * 64, ""))
    run.mkdir(parents=True)
    workdir.claim(run, meta)
    rng = np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: methods.make_model(config, nnx.Rngs(0))))

    def fill(leaf: Any) -> jax.Array:
        return jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    params = jax.tree.map(fill, shapes)
    manager = checkpoint.open_manager(run)
    checkpoint.save(manager, 1, Weights(params), {**meta, "time": 0.0})
    checkpoint.close(manager)
    return max(leaf.nbytes for leaf in jax.tree.leaves(params))


def floor(run: Path, out: Path, size: int) -> None:
    """Read the checkpoint's bytes once and write `size` bytes, to the disk, as an export does."""
    for path in (run / "checkpoints").rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_CHUNK):
                    pass
    with out.open("wb", buffering=0) as file:
        chunk = np.random.default_rng(0).bytes(_CHUNK)
        for start in range(0, size, _CHUNK):
            file.write(chunk[: size - start])
        os.fsync(file.fileno())


def measure(command: list[str], package: Path) -> dict[str, float]:
    """Run a command with the package of a checkout; seconds, CPU seconds, and bytes at most."""
    environment = {**os.environ, "PYTHONPATH": str(package)}
    os.sync()  # not what was written before
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, cwd=package, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed: {log.read().decode()[-2000:]}")
    return {
        "seconds": time.perf_counter() - began,
        "cpu": used.ru_utime + used.ru_stime,
        "bytes": used.ru_maxrss * 1024,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=LLAMA2_1B.num_layers)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--floor", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        print(make_run(options.make, options.layers))
        return
    if options.floor:
        floor(Path(options.floor[0]), Path(options.floor[1]), int(options.floor[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, __file__, f"--layers={options.layers}"]
        # Not in this process: the system counts the memory of a parent for its children too. And by
        # the older package, which does not know fields that were added since.
        package = options.against.resolve() if options.against else ROOT
        made = subprocess.run(
            [*command, f"--make={folder / 'run'}"],
            env={**os.environ, "PYTHONPATH": str(package)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        largest = int(made.stdout)
        stored = sum(p.stat().st_size for p in (folder / "run").rglob("*") if p.is_file())
        bound = 4 * largest + 300e6
        print(
            f"checkpoint {stored / 1e9:.2f} GB, largest parameter {largest / 1e6:,.0f} MB",
            flush=True,
        )
        results: dict[str, list[dict[str, float]]] = {}
        size = 0
        for _ in range(options.rounds):
            cases = {name: (ROOT, arguments) for name, arguments in EXPORTS.items()}
            if options.against:
                cases["against"] = (options.against.resolve(), EXPORTS["bf16"])
            for name, (package, arguments) in cases.items():
                out = folder / name
                export = [sys.executable, "-m", "pqt_jax.export", f"--workdir={folder / 'run'}"]
                export += [f"--out={out}", *arguments]
                results.setdefault(name, []).append(measure(export, package))
                if name == "fp4":
                    size = sum(p.stat().st_size for p in out.iterdir())
                    where = [str(folder / "run"), str(folder / "floor"), str(size)]
                    reading = measure([*command, "--floor", *where], ROOT)
                    results.setdefault("floor", []).append(reading)
                for path in out.iterdir():
                    path.unlink()
                out.rmdir()
                print(name, results[name][-1], flush=True)
    median = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in results.items()
    }
    for name, row in median.items():
        megabytes = row["bytes"] / 1e6
        print(f"{name:8} {row['seconds']:7.1f} s {row['cpu']:7.1f} s of CPU {megabytes:8,.0f} MB")
    ratio = median["fp4"]["seconds"] / median["floor"]["seconds"]
    print(f"bound    {bound / 1e6:,.0f} MB; fp4 takes {ratio:.2f} of the floor")
    if options.out:
        about = {"layers": options.layers, "stored": stored, "largest": largest, "folder": size}
        about |= {"jax": jax.__version__, "bound": bound, "rounds": results}
        options.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
