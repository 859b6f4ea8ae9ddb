# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Codes and scales against those of torchao's MX formats, another implementation of OCP MX.

Both use blocks of 1×32, OCP's own. torchao's RCEIL is "ceil" here; its CEIL, which raises the scale
for every maximum that is no power of two, has no counterpart.
"""

import warnings

import numpy as np
import pytest

from pqt_jax import Spec
from pqt_jax.numerics import bit_packing
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3, E5M2
from pqt_jax.quantization import codes

REASON = "the extra `peers` is not installed, or this Python has no CPU build of PyTorch"
FORMATS = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2", E3M2: "fp6_e3m2", E2M3: "fp6_e2m3"}
FORMATS |= {E2M1: "float4_e2m1fn_x2"}
# One format of each width is quick.
QUICK_AND_SLOW = [
    pytest.param(fmt, marks=pytest.mark.slow if fmt in (E5M2, E2M3) else ()) for fmt in FORMATS
]


def torchao(w, fmt, rule):
    """(bytes of the codes as torchao lays them out, uint8 scales)."""
    torch = pytest.importorskip("torch", reason=REASON)
    pytest.importorskip("torchao", reason=REASON)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its compiled kernels, and of PyTorch's own future
        from torchao.prototype.mx_formats.config import ScaleCalculationMode as Mode
        from torchao.prototype.mx_formats.mx_tensor import to_mx

        mode = {"floor": Mode.FLOOR, "ceil": Mode.RCEIL}[rule]
        name = FORMATS[fmt]
        dtype = name if name.startswith("fp6") else getattr(torch, name)
        scale, data = to_mx(torch.from_numpy(w.copy()), dtype, 32, mode)
    return data.view(torch.uint8).numpy().reshape(-1), scale.view(torch.uint8).numpy()


def ours(w, fmt, rule):
    assigned = FormatAssignment(Spec(noise="none", dtype=fmt, block=(1, 32), scale=rule))
    parts = codes.encode_parameter(w, assigned)
    return parts[fmt.name], parts["scale"]


def check(w, fmt, rule):
    (data, scale), (want, want_scale) = ours(w, fmt, rule), torchao(w, fmt, rule)
    np.testing.assert_array_equal(scale, want_scale)
    if fmt.bits == 6:  # torchao leaves these unpacked, one in a byte
        want = bit_packing.pack(want, 6)
    np.testing.assert_array_equal(data, want)


@pytest.mark.parametrize("rule", ["floor", "ceil"])
@pytest.mark.parametrize("fmt", QUICK_AND_SLOW, ids=str)
class TestTorchao:
    def test_random_weights(self, fmt, rule):
        rng = np.random.default_rng(0)
        w = rng.standard_t(3, size=(256, 128)) * np.exp2(rng.integers(-60, 60, (256, 1)))
        check(w.astype(np.float32), fmt, rule)

    def test_every_value_and_midpoint_of_the_grid(self, fmt, rule):
        """With the largest value in each block, so that the scale is 1 under both rules."""
        grid = np.unique(np.abs(fmt.decode(np.arange(fmt.max_code + 1))))
        points = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]).astype(np.float32)
        points = np.concatenate([points, np.nextafter(points, np.float32(0)), -points])
        points = points[np.abs(points) <= fmt.max]
        w = np.zeros((-(-len(points) // 31), 32), np.float32)
        w[:, 1:].flat[: len(points)] = points
        w[:, 0] = fmt.max
        check(w, fmt, rule)

    def test_maxima_between_the_powers_of_two(self, fmt, rule):
        top = np.float32(fmt.max)
        maxima = np.array([1, 1.25, 1.5, 1.75, 1.875, 1.9999], np.float32)
        maxima = np.concatenate([maxima, [top, np.nextafter(top, np.float32(np.inf)), top * 3]])
        w = np.random.default_rng(0).uniform(-1, 1, (len(maxima), 32)).astype(np.float32)
        w[:, 7] = 1
        check(w * maxima[:, None].astype(np.float32), fmt, rule)

    def test_where_the_two_differ(self, fmt, rule):
        """Blocks that are zero or tiny, since no scale here is below 2^-126; and an infinity.

        torchao saturates an infinite weight at a finite scale. Here, as for NaN in both, the whole
        block becomes NaN and so stays visible.
        """
        w = np.zeros((4, 32), np.float32)
        w[1, 3], w[2, 5], w[3] = np.nan, np.inf, 2.0**-126
        (data, scale), (theirs, their_scale) = ours(w, fmt, rule), torchao(w, fmt, rule)
        assert scale.ravel().tolist() == [1, 255, 255, 1]
        assert their_scale.ravel()[[0, 1, 3]].tolist() == [0, 255, 0]
        assert their_scale.ravel()[2] < 255
        zeros = bit_packing.packed_size(32, fmt.bits)
        assert not data[:zeros].any() and not theirs[: 16 if fmt == E2M1 else 32].any()
