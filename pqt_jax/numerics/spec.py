# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`Spec`: the static options of sampling one parameter."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from pqt_jax.numerics import bit_width, blocks, cast
from pqt_jax.numerics.formats import BF16, E4M3, E5M2, as_format
from pqt_jax.numerics.noise import KINDS, Kind


@dataclasses.dataclass(frozen=True)
class Spec:
    """How a parameter is sampled: the static options of `perturb`, checked when it is created.

    Example:
      >>> Spec(target_bits=3, dtype="float4_e2m1fn").dtype.name
      'E2M1'

    Attributes:
      target_bits, init_bits: b_target and b_init, in bits.
      block: (bm, bn); each side divides 32 or is a multiple of 32.
      noise: "gauss" (the rounded normal), "uniform" (R ~ U(−½, ½)) or "none" (cast only).
      dtype: the format of ŵ: bfloat16, float32, or any other (an ml_dtypes type, its name, or a
        `FloatFormat`); stored as a `FloatFormat`. A format of fewer than eight exponent bits gets a
        power-of-two scale per block, computed from max_B|w|.
      scale: rule for that scale, "ceil" (no weight saturates) or "floor" (OCP MX); see
        `cast.ScaleRule`. Under both rules, a weight that noise lifts over the largest value
        saturates. "exact" and "mse" are allowed with noise "none" only, and where ŵ has no scale:
        R · scale would not be exact with the first, and kernels do not try scales.
      matrix_axes: (row axes, column axes) of the parameter, see `blocks`.
      round_share: share of the blocks that are rounded, chosen at random by the key; the others are
        cast to `storage`. Below 1 with noise "none" only.
      sharding: how the last axes of the parameter are sharded over the mesh of `jax.set_mesh`, if
        that has Auto axes. XLA cannot partition a kernel on a TPU, and samples by itself there if
        this is not given; on other devices, and without a mesh, it is not needed. It has an entry
        for each axis of the matrices at least. If it is not how the parameter is sharded, the
        parameter is moved.
      encoded: whether ŵ is returned as codes of `dtype`; set by `perturb_encoded`.

    Raises:
      ValueError: for a field out of range; the message names the field.
    """

    target_bits: float = 4.0
    init_bits: float = 6.0
    block: blocks.Block = (32, 32)
    noise: Kind = "gauss"
    dtype: Any = BF16
    scale: cast.Scale = "ceil"
    matrix_axes: tuple[int, int] = (1, 1)
    sharding: PartitionSpec | None = None
    round_share: float = 1.0
    encoded: bool = False

    def __post_init__(self):
        bit_width.check_bits(self.target_bits, self.init_bits)
        object.__setattr__(self, "block", blocks.check_block(self.block))
        if self.noise not in KINDS:
            raise ValueError(f"noise={self.noise!r}; it must be one of {', '.join(KINDS)}")
        object.__setattr__(self, "scale", cast.check_scale(self.scale))
        axes = self.matrix_axes
        if (
            not isinstance(axes, tuple | list)
            or len(axes) != 2
            or any(not isinstance(a, int) or a < 1 for a in axes)
        ):
            raise ValueError(f"matrix_axes={axes!r}; it must be two integers of at least 1")
        object.__setattr__(self, "matrix_axes", tuple(axes))
        if not isinstance(self.sharding, PartitionSpec | None):
            raise ValueError(f"sharding={self.sharding!r}; it must be a PartitionSpec, or None")
        if self.sharding and len(self.sharding) < sum(axes):
            raise ValueError(
                f"sharding={self.sharding}; it must have an entry for each axis of the matrices, "
                f"{sum(axes)}, or more, which may be None"
            )
        object.__setattr__(self, "dtype", as_format(self.dtype))
        share = self.round_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"round_share={share!r}; it must be a number above 0 and at most 1")
        if self.round_share < 1 and self.noise != "none":
            raise ValueError(
                f"round_share={self.round_share}; noise={self.noise!r} samples every block; give "
                "1, or noise='none'"
            )
        has_scale = self.noise != "none" and self.dtype.exponent_bits < 8
        if has_scale and self.scale not in (cast.ScaleRule.CEIL, cast.ScaleRule.FLOOR):
            raise ValueError(
                f"scale='{self.scale}'; sampled weights of dtype={self.dtype} take ceil or floor: "
                f"give '{self.scale}' to quantize, or with noise='none'"
            )
        if self.encoded and self.dtype.exponent_bits == 8:
            raise ValueError(f"dtype={self.dtype}; its codes are the upper bits of float32")
        if self.encoded and self.noise != "none" and self.dtype not in (E4M3, E5M2):
            raise ValueError(
                f"dtype={self.dtype}; codes are made for float8_e4m3fn and float8_e5m2 alone"
            )

    def fitted(self, shape: tuple[int, ...]) -> "Spec":
        """Return a copy for the matrices [leads, M, N] of a parameter.

        Its block is no larger than they need, see `blocks.fit_block`, and its sharding is theirs.

        Raises:
          ValueError: if the sharding has more entries than the parameter has axes, or names an axis
            that the mesh lacks.
        """
        _, m, n = blocks.matrix_shape(shape, self.matrix_axes)
        sharding = self.sharding
        if sharding is not None:
            sharding = blocks.matrix_sharding(sharding, len(shape), self.matrix_axes)
        block = blocks.fit_block(self.block, m, n)
        return dataclasses.replace(self, block=block, sharding=sharding)

    @property
    def rounding_label(self) -> str:
        """The format of ŵ, and how many blocks are rounded to it, for tables and messages.

        Example:
          >>> Spec(noise="none", dtype="E2M1", round_share=0.5).rounding_label
          'FP4 E2M1, 50 % of the blocks'
        """
        share = f", {100 * self.round_share:g} % of the blocks" if self.round_share < 1 else ""
        return self.dtype.label + share

    @property
    def storage(self) -> np.dtype:
        """The dtype of ŵ: bfloat16, or float32 for a format with more than seven mantissa bits.

        Products with an exact scale are float32, too. Codes are unsigned integers, which a kernel
        can write on a chip that lacks the format.
        """
        if self.encoded:
            return np.dtype(np.uint8 if self.dtype.bits <= 8 else np.uint16)
        exact = self.scale == cast.ScaleRule.EXACT and self.dtype.exponent_bits < 8
        narrow = self.dtype.mantissa_bits <= BF16.mantissa_bits and not exact
        return np.dtype(jnp.bfloat16 if narrow else jnp.float32)
