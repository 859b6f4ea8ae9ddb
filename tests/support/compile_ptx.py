# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compile a kernel for a GPU: `compile_ptx.py FOLDER 90 mosaic backward bfloat16 BF16 alone`.

Its PTX is in FOLDER/kept then; no GPU is needed. This is a process of its own, since Mosaic GPU
keeps the architecture.
"""

import functools
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from pqt_jax import pallas
from pqt_jax.numerics import formats
from pqt_jax.numerics.spec import Spec

SHAPES = {  # of the stacks that one launch samples
    "alone": [(2, 64, 256)],
    "shared": [(2, 64, 256), (1, 32, 128), (1, 96, 384)],
}


def make_spec(fmt: str) -> Spec:
    """The spec of a format's name, or of its codes: "E4M3 codes"."""
    return Spec(dtype=getattr(formats, fmt.removesuffix(" codes")), encoded=fmt.endswith(" codes"))


def main(folder: str, arch: str, implementation: str, *case: str) -> None:
    """Compile one kernel on the stacks of a case."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from aot_compile import compile_for, prepare

    os.environ |= prepare(Path(folder))
    name, dtype, fmt, stacks = case
    spec, like = make_spec(fmt), jax.ShapeDtypeStruct
    forward, backward = pallas.get_functions(implementation)
    operands = []
    for leads, m, n in SHAPES[stacks]:
        grid = [like((leads, m // 32, n // 32), jnp.float32)] if name == "forward" else []
        place = [like((size,), jnp.uint32) for size in (2, 3)]
        operands.append((like((leads, m, n), dtype), *grid, *place))
    function = forward if name == "forward" else backward
    compile_for(int(arch), functools.partial(function, spec), operands)


if __name__ == "__main__":
    main(*sys.argv[1:])
