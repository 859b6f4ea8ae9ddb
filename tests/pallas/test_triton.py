# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Pallas Triton."""

from support import kernels


class TestTriton(kernels.KernelTests):
    name = "triton"
