# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Pallas Triton."""

import pytest

from support import kernels

pytestmark = pytest.mark.jax_version


class TestTriton(kernels.KernelTests):
    name = "triton"
