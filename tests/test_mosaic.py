# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Mosaic GPU."""

import jax
import kernels
import pytest


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the back-end needs jax 0.11")
class TestMosaic(kernels.KernelTests):
    name = "mosaic"
    automatic = False
