# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What `gpu.py` and `tpu.py` share: sections are run one after the other into one JSON."""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import pqt_jax
from pqt_jax import pallas
from pqt_jax.console import check_local

Section = Callable[[bool], Iterator[dict[str, Any]]]  # of --smoke: parts of its record

PACKAGE = Path(__file__).resolve().parents[1] / "pqt_jax"
SCRIPTS = [
    path
    for name in ("accelerator", "gpu*", "tpu")
    for path in sorted(Path(__file__).parent.glob(f"{name}.py"))
]


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
    for path in [*sorted(PACKAGE.rglob("*.py")), *SCRIPTS]:
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


def run(kind: str, sections: Mapping[str, Section]) -> int:
    """Run what the command line asks for, print it, and write the JSON.

    Args:
      kind: "gpu" or "tpu", the platform without which `--smoke` alone runs.
      sections: name → function.

    Returns:
      The exit status: 1 if bits differ.
    """
    parser = argparse.ArgumentParser(description=f"What only a {kind.upper()} can tell.")
    parser.add_argument("--only", choices=sections, nargs="+", help="some sections instead of all")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any platform")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    try:
        check_local(str(options.out or ""))
    except ValueError as error:
        parser.error(f"--out={options.out}; {error}")
    if (measured := Path(pqt_jax.__file__).resolve().parent) != PACKAGE:
        parser.error(
            f"pqt_jax comes from {measured}, not from the folder above this file; install with -e"
        )
    if not options.smoke and jax.devices()[0].platform != kind:
        found = f"the default device is {jax.devices()[0]}, no {kind.upper()}"
        parser.error(f"{found}; --smoke runs anywhere")
    record: dict[str, Any] = {"smoke": options.smoke, **versions()}
    record["implementations"] = {name: pallas.is_supported(name)[1] for name in pallas.KERNELS}
    print("\n".join(f"{key}: {value}" for key, value in record.items()), flush=True)
    for name in options.only or sections:
        start, record[name] = time.perf_counter(), {}
        for part in sections[name](options.smoke):
            record[name] |= part | {"seconds": time.perf_counter() - start}
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name}: {record[name]['seconds']:.0f} s", flush=True)
    wrong = record.get("exact", {}).get("wrong", [])
    if wrong:
        print("\n".join(["differs:", *wrong]), file=sys.stderr)
    return 1 if wrong else 0
