# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The kernels on Mosaic GPU."""

import jax
import pytest

from pqt_jax.pallas import launch
from support import kernels

pytestmark = pytest.mark.jax_version


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the back-end needs jax 0.11")
class TestMosaic(kernels.GpuKernelTests):
    name = "mosaic"
    automatic = False

    @pytest.mark.parametrize(
        ("runs", "columns", "tiles"),
        [
            (64, 16, 2),  # 2048 × 2048: 512 thread blocks for 132 multiprocessors
            (64, 44, 4),  # 2048 × 5632
            (24, 6, 1),  # 768 × 768
            (12 * 24, 6, 3),  # twelve matrices in one launch
            (256, 224, 4),  # 8192 × 28672
            (256, 7, 1),  # seven is prime
            (1, 1, 1),
        ],
    )
    def test_thread_blocks_are_enough_for_a_gpu_or_as_many_as_there_are(self, runs, columns, tiles):
        assert launch.load_kernel("mosaic").choose_tiles([(1, runs, columns)]) == tiles
