# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A quantized parameter ↔ its packed codes, scales and tags.

A parameter, seen as a stack of matrices [leads, M, N], becomes these parts:

    E2M1    (or another format's name) the codes of the weights in it, packed (`packing`)
    scale   one per block, E8M0; float32 for the rule "exact"; absent for eight exponent bits
    tags    where blocks have formats of their own: four bits each, an index into `MIXED_FORMATS`

With one format, codes lie in the order of the parameter, row by row. With tags, each format has a
stream of its own: block after block, row by row in each. Blocks are counted along rows, then down,
then over the stack; those at a ragged edge hold what there is of them.

    weight = code · scale        in float32; what is below 2^-126 is zero, as XLA has it on a CPU
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax.numerics import blocks, cast, reference
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.formats import BF16, FloatFormat
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, TAG_BITS
from pqt_jax.numerics.spec import Spec
from pqt_jax.quantization import bit_packing

_TINY = np.float32(2.0**-126)

Parts = dict[str, np.ndarray]


def encode(w: jax.Array, assigned: FormatAssignment) -> Parts:
    """One parameter as packed codes, scales and tags.

    Example:
      >>> assigned = FormatAssignment(Spec(noise="none", dtype="E2M1"))
      >>> parts = encode(jnp.full((32, 32), 3.0), assigned)
      >>> {name: x.shape for name, x in parts.items()}, parts["scale"].tolist()
      ({'E2M1': (512,), 'scale': (1, 1)}, [[126]])

    Args:
      w: float32 or bfloat16 parameter.
      assigned: its part of a plan.

    Returns:
      uint8 arrays by the names of their parts; "scale" is float32 for the rule "exact".
    """
    spec, index = assigned.spec.fitted(w.shape), assigned.index
    grid = blocks.grid_shape(w.shape, spec.block, spec.matrix_axes)
    matrices = w.reshape(blocks.matrix_shape(w.shape, spec.matrix_axes))
    if index is None:
        codes, scale = _codes(spec, matrices)
        parts = {spec.dtype.name: bit_packing.pack(codes.reshape(-1), spec.dtype.bits)}
        return parts if scale is None else parts | {"scale": _stored(spec, scale.reshape(grid))}
    tags = np.asarray(index).reshape(-1)
    scales, parts = np.ones(tags.size, np.float32), {}
    for i in np.unique(tags):
        codes, scale = _codes(dataclasses.replace(spec, dtype=MIXED_FORMATS[i]), matrices)
        stream = _by_block(codes, spec.block)[_chosen(codes.shape, spec.block, tags == i)]
        parts[MIXED_FORMATS[i].name] = bit_packing.pack(stream, MIXED_FORMATS[i].bits)
        if scale is not None:
            scales[tags == i] = scale.reshape(-1)[tags == i]
    parts["scale"] = _stored(spec, scales.reshape(grid))
    return parts | {"tags": bit_packing.pack(tags, TAG_BITS)}


def decode(parts: Parts, shape: tuple[int, ...], assigned: FormatAssignment) -> np.ndarray:
    """The inverse of `encode`: the parameter as `quantize.round_parameter` leaves it.

    Args:
      parts: by name.
      shape: of the parameter.
      assigned: its part of the plan.

    Returns:
      An array of that shape in `spec.storage`.

    Raises:
      ValueError: if a part has not the size that it must have.
    """
    spec, index = assigned.spec.fitted(shape), assigned.index
    leads, m, n = matrices = blocks.matrix_shape(shape, spec.matrix_axes)
    if index is None:
        codes = bit_packing.unpack(parts[spec.dtype.name], spec.dtype.bits, leads * m * n)
        values = _values(spec.dtype, codes).reshape(matrices)
        if "scale" in parts:
            scale = _scale(parts).reshape(leads, -(-m // spec.block[0]), -(-n // spec.block[1]))
            wide = np.repeat(np.repeat(scale, spec.block[0], 1), spec.block[1], 2)
            values = _scaled(values, wide[:, :m, :n])
        return values.reshape(shape).astype(spec.storage)
    tags, scale = np.asarray(index).reshape(-1), _scale(parts).reshape(-1, 1)
    values = np.zeros((tags.size, spec.block[0] * spec.block[1]), np.float32)
    for i in np.unique(tags):
        chosen = _chosen(matrices, spec.block, tags == i)
        codes = bit_packing.unpack(
            parts[MIXED_FORMATS[i].name], MIXED_FORMATS[i].bits, int(chosen.sum())
        )
        values[chosen] = _values(MIXED_FORMATS[i], codes)
        if MIXED_FORMATS[i] != BF16:
            values[chosen] = _scaled(values[chosen], np.broadcast_to(scale, values.shape)[chosen])
    return _by_row(values, matrices, spec.block).reshape(shape).astype(spec.storage)


def tags_of(parts: Parts, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    """The index of the format of each block, as it stands in a plan."""
    grid = blocks.grid_shape(shape, spec.block, spec.matrix_axes)
    tags = bit_packing.unpack(parts["tags"], TAG_BITS, int(np.prod(grid)))
    if tags.size and tags.max() >= len(MIXED_FORMATS):
        raise ValueError(f"tag {tags.max()}; there are {len(MIXED_FORMATS)} formats")
    return jnp.asarray(tags.reshape(grid), jnp.int32)


def _scale(parts: Parts) -> np.ndarray:
    scale = parts["scale"]
    return scale if scale.dtype == np.float32 else bit_packing.from_e8m0(scale)


def _scaled(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values = values * scale
        return np.where(np.abs(values) < _TINY, np.copysign(np.float32(0), values), values)


def _codes(spec: Spec, matrices: jax.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes uint16 [leads, M, N] and scales float32 [leads, gm, gn] of one format."""
    if spec.dtype.exponent_bits == 8:  # the upper bits of float32, whatever the format
        word = np.asarray(reference.cast_blocks(spec, matrices)).astype(np.float32).view(np.uint32)
        word = np.where(word & 0x7FFFFFFF > 0x7F800000, word | 0x00400000, word)  # NaN stays NaN
        return (word >> (32 - spec.dtype.bits)).astype(np.uint16), None
    scale = reference.grid_scale(
        spec, blocks.block_absmax(blocks.pad_to(matrices, *spec.block), spec.block)
    )
    codes = reference.cast_blocks(dataclasses.replace(spec, encoded=True), matrices)
    return np.asarray(codes).astype(np.uint16), None if scale is None else np.asarray(scale)


def _values(fmt: FloatFormat, codes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return fmt.decode(np.arange(1 << fmt.bits)).astype(np.float32)[codes]


def _stored(spec: Spec, scale: np.ndarray) -> np.ndarray:
    return scale if spec.scale == cast.ScaleRule.EXACT else bit_packing.to_e8m0(scale)


def _by_block(x: np.ndarray, block: blocks.Block) -> np.ndarray:
    """[leads, M, N] → [blocks, weights of a block], ragged blocks padded with zeros."""
    (bm, bn), (leads, m, n) = block, x.shape
    padded = np.pad(x, ((0, 0), (0, -m % bm), (0, -n % bn)))
    tiles = padded.reshape(leads, padded.shape[1] // bm, bm, padded.shape[2] // bn, bn)
    return tiles.transpose(0, 1, 3, 2, 4).reshape(-1, bm * bn)


def _by_row(x: np.ndarray, matrices: tuple[int, ...], block: blocks.Block) -> np.ndarray:
    """The inverse of `_by_block`."""
    (bm, bn), (leads, m, n) = block, matrices
    tiles = x.reshape(leads, -(-m // bm), -(-n // bn), bm, bn).transpose(0, 1, 3, 2, 4)
    return tiles.reshape(leads, tiles.shape[1] * bm, -1)[:, :m, :n]


def _chosen(matrices: tuple[int, ...], block: blocks.Block, wanted: np.ndarray) -> np.ndarray:
    """Which entries of `_by_block` are weights of the wanted blocks."""
    return _by_block(np.ones(matrices, bool), block) & wanted[:, None]
