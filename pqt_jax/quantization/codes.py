# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Convert a quantized parameter to packed codes, scales and tags, and back.

A parameter is a stack of matrices [leads, M, N]. It is stored as these tensors, by name:

    E2M1    (or the name of another format) the packed codes of the weights in that format
    scale   one per block, E8M0; float32 for scale rule "exact"; absent for eight exponent bits
    tags    with mixed formats only: four bits per block, an index into `MIXED_FORMATS`

With one format, the codes are in the order of the parameter, row by row. With mixed formats, each
format has its own tensor of codes: block after block, and row by row within a block. Blocks are
ordered by matrix, then by row of blocks, then by column. A block at a ragged edge has fewer codes.

    weight = code · scale        in float32; magnitudes below 2^-126 become 0, as XLA does on CPUs
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.numerics import bit_packing, blocks, cast, reference
from pqt_jax.numerics.deterministic_rounding import FormatAssignment
from pqt_jax.numerics.formats import BF16, FloatFormat
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, TAG_BITS
from pqt_jax.numerics.spec import Spec

Tensors = dict[str, np.ndarray]
_SMALLEST_NORMAL = np.float32(2.0**-126)


def encode_parameter(w: jax.Array, assignment: FormatAssignment) -> Tensors:
    """Quantize one parameter, and pack its codes, scales and tags.

    Example:
      >>> assignment = FormatAssignment(Spec(noise="none", dtype="E2M1"))
      >>> tensors = encode_parameter(jnp.full((32, 32), 3.0), assignment)
      >>> {name: x.shape for name, x in tensors.items()}, tensors["scale"].tolist()
      ({'E2M1': (512,), 'scale': (1, 1)}, [[126]])

    Args:
      w: float32 or bfloat16 parameter.
      assignment: its entry in a plan.

    Returns:
      uint8 tensors by name; "scale" is float32 for scale rule "exact". The scale of a block with a
      weight that is Inf or NaN is NaN, 255 in E8M0.
    """
    spec, index = assignment.spec.fitted(w.shape), assignment.index
    grid = blocks.grid_shape(w.shape, spec.block, spec.matrix_axes)
    matrices = w.reshape(blocks.matrix_shape(w.shape, spec.matrix_axes))
    if index is None:
        codes, scale = _codes(spec, matrices)
        tensors = {spec.dtype.name: bit_packing.pack(codes.reshape(-1), spec.dtype.bits)}
        if scale is not None:
            tensors["scale"] = _encode_scale(spec, scale.reshape(grid))
        return tensors
    tags = np.asarray(index).reshape(-1)
    scales, tensors = np.ones(tags.size, np.float32), {}
    for i in np.unique(tags):
        fmt = MIXED_FORMATS[i]
        codes, scale = _codes(dataclasses.replace(spec, dtype=fmt), matrices)
        in_format = _mask_blocks(codes.shape, spec.block, tags == i)
        tensors[fmt.name] = bit_packing.pack(_by_block(codes, spec.block)[in_format], fmt.bits)
        if scale is not None:
            scales[tags == i] = scale.reshape(-1)[tags == i]
    tensors["scale"] = _encode_scale(spec, scales.reshape(grid))
    return tensors | {"tags": bit_packing.pack(tags, TAG_BITS)}


def encode_matrix(w: jax.Array | np.ndarray, spec: Spec) -> EncodedMatrix:
    """Quantize one matrix to the codes that `encode_parameter` packs, in the layout of others.

    Example:
      >>> one = encode_matrix(jnp.full((64, 32), 3.0), Spec(noise="none", dtype="E2M1"))
      >>> one.codes.shape, one.scale.tolist(), one.block  # [out, in]
      ((32, 64), [[126, 126]], (32, 32))

    Args:
      w: float32 or bfloat16 [in, out].
      spec: a format of at most eight bits, a block of which 32 divides the first side, and a scale
        rule other than "exact".

    Returns:
      The matrix as [out, in].
    """
    spec = spec.fitted(w.shape)
    codes, scale = _encode_transposed(w, spec)
    return EncodedMatrix(
        spec.dtype,
        np.asarray(codes),
        bit_packing.to_e8m0(np.asarray(scale)),
        (spec.block[1], spec.block[0]),
    )


@functools.partial(jax.jit, static_argnums=1)
def _encode_transposed(w: jax.Array, spec: Spec) -> tuple[jax.Array, jax.Array | None]:
    codes, scale = _codes_and_scale(spec, w[None])
    return codes[0].astype(jnp.uint8).T, None if scale is None else scale[0].T


def decode_parameter(
    tensors: Tensors, shape: tuple[int, ...], assignment: FormatAssignment
) -> np.ndarray:
    """Invert `encode_parameter`: the result equals `deterministic_rounding.round_parameter`.

    Args:
      tensors: uint8 tensors by name, from `encode_parameter`.
      shape: the parameter's shape.
      assignment: its entry in the plan.

    Returns:
      An array of that shape in `spec.storage`.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if a tensor has the wrong size.
    """
    spec, index = assignment.spec.fitted(shape), assignment.index
    leads, m, n = matrices = blocks.matrix_shape(shape, spec.matrix_axes)
    if index is None:
        codes = bit_packing.unpack(tensors[spec.dtype.name], spec.dtype.bits, leads * m * n)
        values = _values(spec.dtype, codes).reshape(matrices)
        if "scale" in tensors:
            scale = _decode_scale(tensors).reshape(
                leads, -(-m // spec.block[0]), -(-n // spec.block[1])
            )
            wide = np.repeat(np.repeat(scale, spec.block[0], 1), spec.block[1], 2)
            values = _multiply(values, wide[:, :m, :n])
        return values.reshape(shape).astype(spec.storage)
    tags, scale = np.asarray(index).reshape(-1), _decode_scale(tensors).reshape(-1, 1)
    values = np.zeros((tags.size, spec.block[0] * spec.block[1]), np.float32)
    for i in np.unique(tags):
        fmt, in_format = MIXED_FORMATS[i], _mask_blocks(matrices, spec.block, tags == i)
        codes = bit_packing.unpack(tensors[fmt.name], fmt.bits, int(in_format.sum()))
        values[in_format] = _values(fmt, codes)
        if fmt != BF16:
            scales = np.broadcast_to(scale, values.shape)[in_format]
            values[in_format] = _multiply(values[in_format], scales)
    return _by_row(values, matrices, spec.block).reshape(shape).astype(spec.storage)


def decode_tags(tensors: Tensors, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    """The format of each block, int32 [*grid], an index into `MIXED_FORMATS`.

    Raises:
      KeyError: if there are no tags.
      ValueError: if they have the wrong size, or one names no format.
    """
    grid = blocks.grid_shape(shape, spec.block, spec.matrix_axes)
    tags = bit_packing.unpack(tensors["tags"], TAG_BITS, int(np.prod(grid)))
    if tags.size and tags.max() >= len(MIXED_FORMATS):
        raise ValueError(f"tag {tags.max()}; there are {len(MIXED_FORMATS)} formats")
    return jnp.asarray(tags.reshape(grid), jnp.int32)


def _decode_scale(tensors: Tensors) -> np.ndarray:
    scale = tensors["scale"]
    return scale if scale.dtype == np.float32 else bit_packing.from_e8m0(scale)


def _multiply(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values · scale in float32, with subnormal products flushed to zero."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values = values * scale
        return np.where(
            np.abs(values) < _SMALLEST_NORMAL, np.copysign(np.float32(0), values), values
        )


def _codes(spec: Spec, matrices: jax.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes uint16 [leads, M, N] and scales float32 [leads, gm, gn] of one format."""
    if spec.dtype.exponent_bits == 8:  # a code is the upper bits of a float32
        word = np.asarray(reference.cast_blocks(spec, matrices)).astype(np.float32).view(np.uint32)
        word = np.where(word & 0x7FFFFFFF > 0x7F800000, word | 0x00400000, word)  # NaN stays NaN
        return (word >> (32 - spec.dtype.bits)).astype(np.uint16), None
    codes, scale = _codes_and_scale(spec, matrices)
    return np.asarray(codes).astype(np.uint16), None if scale is None else np.asarray(scale)


def _codes_and_scale(spec: Spec, matrices: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    scale = reference.scale_blocks(spec, blocks.pad_to(matrices, *spec.block))
    return reference.cast_blocks(dataclasses.replace(spec, encoded=True), matrices), scale


def _values(fmt: FloatFormat, codes: np.ndarray) -> np.ndarray:
    """The float32 values that codes stand for."""
    with np.errstate(over="ignore"):
        return fmt.decode(np.arange(1 << fmt.bits)).astype(np.float32)[codes]


def _encode_scale(spec: Spec, scale: np.ndarray) -> np.ndarray:
    return scale if spec.scale == cast.ScaleRule.EXACT else bit_packing.to_e8m0(scale)


def _by_block(x: np.ndarray, block: blocks.Block) -> np.ndarray:
    """[leads, M, N] → [blocks, bm · bn]; ragged blocks are padded with zeros."""
    (bm, bn), (leads, m, n) = block, x.shape
    padded = np.pad(x, ((0, 0), (0, -m % bm), (0, -n % bn)))
    tiles = padded.reshape(leads, padded.shape[1] // bm, bm, padded.shape[2] // bn, bn)
    return tiles.transpose(0, 1, 3, 2, 4).reshape(-1, bm * bn)


def _by_row(x: np.ndarray, matrices: tuple[int, ...], block: blocks.Block) -> np.ndarray:
    """Invert `_by_block`."""
    (bm, bn), (leads, m, n) = block, matrices
    tiles = x.reshape(leads, -(-m // bm), -(-n // bn), bm, bn).transpose(0, 1, 3, 2, 4)
    return tiles.reshape(leads, tiles.shape[1] * bm, -1)[:, :m, :n]


def _mask_blocks(
    matrices: tuple[int, ...], block: blocks.Block, selected: np.ndarray
) -> np.ndarray:
    """Bool [blocks, bm · bn]: which entries of `_by_block` are weights of the selected blocks."""
    return _by_block(np.ones(matrices, bool), block) & selected[:, None]
