# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Trained weights, rounded by a plan, tensor by tensor: as codes, or as numbers.

model, plan → for each tensor of a Hugging Face model its formats → its values, when they are needed
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface_tensors, low_bit
from pqt_jax.interchange.huggingface_tensors import ModelTensor
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.numerics.deterministic_rounding import FormatAssignment, round_parameter
from pqt_jax.numerics.formats import FloatFormat
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.numerics.spec import Spec
from pqt_jax.quantization import codes
from pqt_jax.quantization.quantize import Plan


class OutTensor(NamedTuple):
    """A tensor of a Hugging Face model, and what its values are rounded to.

    Attributes:
      tensor: the tensor.
      assigned: the formats of the matrix of each parameter in it; None for one that the plan leaves
        as it is.
    """

    tensor: ModelTensor
    assigned: tuple[FormatAssignment | None, ...]

    @property
    def formats(self) -> tuple[FloatFormat | None, ...]:
        """The format of each parameter in it; None for one without, or with several."""
        return tuple(None if one is None else matrix_format(one) for one in self.assigned)

    @property
    def is_rounded(self) -> bool:
        """Whether the plan rounds it."""
        return any(one is not None for one in self.assigned)

    @property
    def has_groups(self) -> bool:
        """Whether each 32 weights of an output share a scale, so that others store its codes."""
        rows, columns = self.tensor.shape[0], self.tensor.shape[-1]
        inputs = columns if self.tensor.entry.transposed else rows
        blocks = [one.spec.fitted((inputs, 32)).block for one in self.assigned if one is not None]
        return inputs % low_bit.GROUP == 0 and all(bi % low_bit.GROUP == 0 for bi, _ in blocks)


def list_tensors(model: OpenModel, plan: Plan) -> list[OutTensor]:
    """List all tensors of a model in the order in which they lie in a file."""
    tensors = huggingface_tensors.list_tensors(model.config)
    return [
        OutTensor(t, tuple(_assigned(plan, path, t.layer) for path in t.entry.paths))
        for t in tensors
    ]


def _assigned(plan: Plan, path: str, layer: int | None) -> FormatAssignment | None:
    """The assignment of the matrix of one layer."""
    if path not in plan:
        return None
    spec, index = plan[path]
    return FormatAssignment(spec, index if index is None or layer is None else index[layer])


def matrix_format(assigned: FormatAssignment) -> FloatFormat | None:
    """The one format of a matrix; None if its blocks have several."""
    if assigned.index is None:
        return assigned.spec.dtype
    found = np.unique(np.asarray(assigned.index))
    return MIXED_FORMATS[found[0]] if found.size == 1 else None


def describe_formats(one: OutTensor) -> str:
    """The formats that a tensor is rounded to, in words."""
    return " and ".join(dict.fromkeys(fmt.label for fmt in one.formats if fmt is not None))


def describe_origin(model: OpenModel, dtype: str) -> str:
    """In which dtype a tensor was trained, in parentheses, where it is stored in another."""
    if model.run_config is None or model.config.param_dtype == dtype:
        return ""
    return f" (trained in {model.config.param_dtype})"


def convert(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert finite numbers of a tensor to the dtype that they are stored in.

    Raises:
      InputError: if one is too large for it.
    """
    with np.errstate(over="ignore"):
        converted = values.astype(dtype, copy=False)
    if converted.dtype != values.dtype and not np.isfinite(converted).all():
        largest = np.abs(values).max()
        raise InputError(
            f"{name}: {largest:g} is too large for {dtype}; give --rest=float32, or weights that "
            "are smaller"
        )
    return converted


def iterate_values(
    model: OpenModel, tensors: Iterable[OutTensor], encoded: Callable[[OutTensor], bool]
) -> Iterator[tuple[OutTensor, list[np.ndarray | EncodedMatrix]]]:
    """Read, round and yield tensors; each parameter is in memory for as long as it takes.

    Args:
      model: whose weights are read.
      tensors: from `list_tensors`.
      encoded: whether a tensor is needed as codes. All its formats must have at most eight bits.

    Yields:
      (tensor, its parts: for each of its parameters a matrix in codes [out, in], or the numbers
      [in, out], bfloat16 or float32). Weights that are not rounded keep their dtype.
    """
    by_tensor = {one.tensor: one for one in tensors}
    read = huggingface_tensors.add_zeros(model.config, model.read)
    for tensor, parts in huggingface_tensors.stored_values(by_tensor, read):
        one = by_tensor[tensor]
        make = _encode if encoded(one) else _round
        yield (
            one,
            [x if a is None else make(x, a) for x, a in zip(parts, one.assigned, strict=True)],
        )


def _encode(w: np.ndarray, assigned: FormatAssignment) -> EncodedMatrix:
    fmt = matrix_format(assigned)
    return codes.encode_matrix(w, dataclasses.replace(assigned.spec, dtype=fmt))


def _round(w: np.ndarray, assigned: FormatAssignment) -> np.ndarray:
    fmt = matrix_format(assigned)
    if fmt is not None:  # one program for all matrices of a format
        assigned = FormatAssignment(dataclasses.replace(assigned.spec, dtype=fmt))
    return np.asarray(_round_matrix(w, assigned.index, assigned.spec))


@functools.partial(jax.jit, static_argnums=2)
def _round_matrix(w: jax.Array, index: jax.Array | None, spec: Spec) -> jax.Array:
    return round_parameter(w, FormatAssignment(spec, index))
