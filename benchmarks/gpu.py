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

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Read when jax first meets the GPU; what is left is for the workers of `gpu_exact`.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.88")

import gpu_exact
import gpu_rates
import gpu_speed
import gpu_train
import jax

import pqt_jax
from pqt_jax import pallas

SECTIONS = {
    "exact": gpu_exact.run,
    "rates": gpu_rates.run,
    "speed": gpu_speed.run,
    "train": gpu_train.run,
}
PACKAGE = Path(__file__).resolve().parents[1] / "pqt_jax"


def versions() -> dict[str, Any]:
    """What the figures belong to."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "compute_capability": str(getattr(device, "compute_capability", "none")),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "driver": _driver(),
        "runtime": device.client.platform_version.replace("\n", " "),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "pqt_jax": pqt_jax.__version__,
        "sources": _sources(),
    }


def _sources() -> str:
    """SHA-256 of the package's and these scripts' code, twelve digits: what the figures are of."""
    digest = hashlib.sha256()
    for path in [*sorted(PACKAGE.rglob("*.py")), *sorted(Path(__file__).parent.glob("gpu*.py"))]:
        name = path.resolve().relative_to(PACKAGE.parent).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0]


def main() -> int:
    """Run the sections, print them, and write the JSON."""
    parser = argparse.ArgumentParser(description="What only a GPU can tell.")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", help="some sections instead of all")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any platform")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    if (measured := Path(pqt_jax.__file__).resolve().parent) != PACKAGE:
        parser.error(
            f"pqt_jax comes from {measured}, not from the folder above this file; install with -e"
        )
    if not options.smoke and jax.devices()[0].platform != "gpu":
        parser.error(f"the default device is {jax.devices()[0]}, no GPU; --smoke runs anywhere")
    record: dict[str, Any] = {"smoke": options.smoke, **versions()}
    record["implementations"] = {name: pallas.is_supported(name)[1] for name in pallas.KERNELS}
    print("\n".join(f"{key}: {value}" for key, value in record.items()), flush=True)
    for name in options.only or SECTIONS:
        start, record[name] = time.perf_counter(), {}
        for part in SECTIONS[name](options.smoke):
            record[name] |= part | {"seconds": time.perf_counter() - start}
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name}: {record[name]['seconds']:.0f} s", flush=True)
    wrong = record.get("exact", {}).get("wrong", [])
    if wrong:
        print("\n".join(["differs:", *wrong]), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
