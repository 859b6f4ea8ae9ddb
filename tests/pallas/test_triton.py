# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Pallas Triton."""

import jax
import jax.numpy as jnp
import pytest

from pqt_jax.numerics import partition, reference
from pqt_jax.numerics.formats import E4M3
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import launch
from support import kernels

pytestmark = pytest.mark.jax_version


class TestTriton(kernels.GpuKernelTests):
    name = "triton"

    def test_a_program_that_takes_two_tiles_gives_the_same_bits(self, monkeypatch):
        """As for matrices that are large enough to fill a GPU."""
        triton = launch.load_kernel("triton")
        w, b_i = kernels.hard_matrices()
        table = partition.make_table(kernels.WORDS, kernels.ORIGIN, w.shape[0])
        spec = Spec(dtype=E4M3)
        want = reference.forward(spec, w, b_i, kernels.WORDS, kernels.ORIGIN)
        g = jnp.ones_like(w)
        sums = reference.backward(spec, g, kernels.WORDS, kernels.ORIGIN)
        for programs, grid in ((1, (2, 2, 2)), (2048, (4, 2, 2))):
            monkeypatch.setattr(triton, "_PROGRAMS", programs)

            def forward(w, b_i, table):
                return triton.forward(spec, (table, w, b_i), interpret=True)[0]

            assert f"grid={grid}" in str(jax.make_jaxpr(forward)(w, b_i, table))
            for got, expected in zip(forward(w, b_i, table), want, strict=True):
                kernels.same(got, expected)
            ((got,),) = triton.backward(spec, (table, g), interpret=True)
            kernels.same(got, sums)
