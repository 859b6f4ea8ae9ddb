# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compile the programs of `benchmarks/gpu_rates.py` for a GPU: `compile_rates.py FOLDER 90`.

Prints as JSON, for each instruction, how often each opcode is in the compiled loop.
"""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

_OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


def main(folder: str, arch: str) -> None:
    """Compile, and count."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import gpu_rates
    from aot_compile import compile_for, prepare, tools

    os.environ |= prepare(Path(folder))
    kept, table = Path(folder) / "kept", {}
    x = jax.ShapeDtypeStruct((2 * gpu_rates.THREADS,), jnp.int32)
    for name in gpu_rates.INSTRUCTIONS:
        for path in kept.iterdir():
            path.unlink()
        compile_for(int(arch), gpu_rates.make_program(name, 2), (x,))
        (ptx,) = [p for p in kept.glob("*.ptx") if "again" in p.read_text()]
        cubin = ptx.with_suffix(".cubin")
        target = re.findall(r"\.target (\w+)", ptx.read_text())[0]
        command = [tools() / "bin/ptxas", f"-arch={target}", ptx, "-o", cubin]
        subprocess.run(command, check=True)
        command = [tools() / "bin/nvdisasm", "-c", cubin]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        table[name] = collections.Counter(_OPCODE.findall(listing))
    print(json.dumps(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
