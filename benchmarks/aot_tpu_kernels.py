# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels for TPUs in `aot_tpu.py --kernels`: what is compiled, and what their programs say.

Bundles, the words of instructions that a TPU issues one in each cycle, are read from the programs
that libtpu writes on demand. How long a cycle is follows from the peak of the chip and the size of
its MXUs, as `jax` knows them: 1.50 GHz on v5e and 1.75 on v5p. The same would give 3.5 GHz on v6e
and 4.4 on TPU7x, which no chip has; half of it is taken, as if their MXUs took two rows at once.
"""

import contextlib
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from pqt_jax.numerics.formats import BF16, E2M1, E3M2, E4M3, FP32
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import mosaic_tpu

FORWARD = {
    "f32→bf16": (jnp.float32, Spec(dtype=BF16)),
    "f32→f32": (jnp.float32, Spec(dtype=FP32)),
    "bf16→bf16": (jnp.bfloat16, Spec(dtype=BF16)),
    "f32→bf16, uniform": (jnp.float32, Spec(dtype=BF16, noise="uniform")),
    "f32→E4M3": (jnp.float32, Spec(dtype=E4M3)),
    "f32→E4M3 codes": (jnp.float32, Spec(dtype=E4M3, encoded=True)),
    "f32→E3M2": (jnp.float32, Spec(dtype=E3M2)),
    "f32→E2M1": (jnp.float32, Spec(dtype=E2M1)),
}
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
FIGURES = ("vmem", "bundles", "slower")
WEIGHTS = 256 * 128  # of one time around the inner loop

_BUNDLE = re.compile(r" *(?:0|0x[0-9a-f]+) *(?:[A-Z]{2})?: (>*)")  # one > for each loop around it
_VMEM = re.compile(r" *#allocation\d+ \[.*space=vmem, size = (0x[0-9a-f]+)")


def make_cases(size: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Name of each row → (function, shapes of its operands), the matrix first."""

    def shape(dtype: Any, *extents: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(extents, dtype)

    def forward(spec, w, table, b_i):
        return mosaic_tpu.forward(spec, (table, w, b_i))

    def backward(spec, g, table):
        return mosaic_tpu.backward(spec, (table, g))

    table = shape(jnp.uint32, 1, 8)
    b_i = shape(jnp.float32, 1, size // 32, size // 32)
    cases: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for name, (dtype, spec) in FORWARD.items():
        operands: tuple[Any, ...] = (shape(dtype, 1, size, size), table, b_i)
        cases[f"forward {name}"] = functools.partial(forward, spec), operands
    for name, dtype in (("bf16", jnp.bfloat16), ("f32", jnp.float32)):
        operands = (shape(dtype, 1, size, size), table)
        cases[f"backward {name}"] = functools.partial(backward, Spec()), operands
    return cases


@contextlib.contextmanager
def dump_programs() -> Iterator[Path]:
    """Have libtpu, which must not be loaded yet, write its programs to a folder."""
    with tempfile.TemporaryDirectory() as folder:
        flags = os.environ.get("LIBTPU_INIT_ARGS", "")
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {dump}".strip()
        yield Path(folder)


def count(folder: Path, device: Any, bytes_per_weight: float) -> dict[str, float]:
    """The figures of the kernel whose program is in the folder, which is emptied."""
    (program,) = folder.glob("*-pqt_*-[0-9][0-9]-final_bundles.txt")
    (allocations,) = folder.glob("*-pqt_*-02-original.txt")
    bundles, vmem = count_bundles(program.read_text()), count_vmem(allocations.read_text())
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    cycles_of_bytes = WEIGHTS * bytes_per_weight * cycles_per_byte(device)
    return {"vmem": vmem, "bundles": bundles, "slower": round(bundles / cycles_of_bytes, 2)}


def count_bundles(text: str) -> int:
    """The bundles of the innermost loop of a program."""
    depths = [len(match[1]) for line in text.splitlines() if (match := _BUNDLE.match(line))]
    return depths.count(max(depths))


def count_vmem(text: str) -> int:
    """The bytes of a program in VMEM."""
    return sum(int(match[1], 16) for line in text.splitlines() if (match := _VMEM.match(line)))


def cycles_per_byte(device: Any) -> float:
    """Cycles of a core in which its memory moves a byte."""
    mesh = Mesh(np.array([device]), ("x",)).abstract_mesh
    with jax.sharding.use_abstract_mesh(mesh):
        chip = pltpu.get_tpu_info()
    rows = 1 if chip.mxu_column_size == 128 else 2
    operations = 2 * rows * chip.num_mxus * chip.mxu_column_size**2  # of a cycle
    return chip.bf16_ops_per_second / operations / chip.mem_bw_bytes_per_second
