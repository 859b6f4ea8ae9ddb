# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compile a kernel for a GPU: `compile_ptx.py FOLDER 90 mosaic backward bfloat16 BF16`.

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

SHAPE = (2, 64, 256)


def make_spec(fmt: str) -> Spec:
    """The spec of a format's name, or of its codes: "E4M3 codes"."""
    return Spec(dtype=getattr(formats, fmt.removesuffix(" codes")), encoded=fmt.endswith(" codes"))


def main(folder: str, arch: str, implementation: str, name: str, dtype: str, fmt: str) -> None:
    """Compile one kernel on a stack of matrices of `SHAPE`."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from aot_compile import compile_for, prepare

    os.environ |= prepare(Path(folder))
    leads, m, n = SHAPE
    spec = make_spec(fmt)
    matrix = jax.ShapeDtypeStruct(SHAPE, dtype)
    b_i = jax.ShapeDtypeStruct((leads, m // 32, n // 32), jnp.float32)
    key, offset = (jax.ShapeDtypeStruct((size,), jnp.uint32) for size in (2, 3))
    forward, backward = pallas.get_functions(implementation)
    function, operands = (forward, [matrix, b_i]) if name == "forward" else (backward, [matrix])
    compile_for(int(arch), functools.partial(function, spec), [*operands, key, offset])


if __name__ == "__main__":
    main(*sys.argv[1:])
