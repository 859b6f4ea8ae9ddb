# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Write trained weights to a GGUF file, which llama.cpp runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from pqt_jax.analysis import export_tensors, model_card
from pqt_jax.analysis.export_tensors import OutTensor
from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.interchange import gguf_model, gguf_tensors
from pqt_jax.interchange.gguf_model import Place
from pqt_jax.interchange.gguf_reader import Value
from pqt_jax.interchange.gguf_tensors import Part, TensorType
from pqt_jax.interchange.huggingface_tensors import transpose
from pqt_jax.interchange.low_bit import EncodedMatrix
from pqt_jax.quantization.quantize import Plan

FILE = "model.gguf"
FORMATS = ("bf16", "fp8_e4m3", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "mixed")


def write(
    folder: Path,
    model: OpenModel,
    plan: Plan,
    *,
    rest: Literal["bfloat16", "float32"],
    tokenizer: Mapping[str, Value],
    name: str,
) -> list[OutTensor]:
    """Write the weights.

    Args:
      folder: an empty folder, which gets `FILE`.
      model: whose weights are read one parameter at a time.
      plan: how they are rounded.
      rest: dtype of the matrices that the plan does not round. Vectors are stored in float32.
      tokenizer: metadata from `gguf_tokenizer`.
      name: the model's name, for people.

    Returns:
      All tensors.

    Raises:
      InputError: if weights cannot be read, or one is not finite.
      OutputError: if the file cannot be written.
    """
    tensors = export_tensors.list_tensors(model, plan)
    gguf_model.write(
        folder / FILE,
        model.config,
        _values(model, tensors, np.dtype(rest)),
        tokenizer=tokenizer,
        name=name,
        dtype=rest,
    )
    return tensors


def list_tensors(
    model: OpenModel, tensors: Sequence[OutTensor], rest: str
) -> list[model_card.CardTensor]:
    """The tensors of a file, from what `write` returns."""
    listed = []
    for one in tensors:
        kind, about = _stored_type(model, one, rest)
        listed.append(
            model_card.CardTensor(
                name=one.tensor.name,
                weights=math.prod(one.tensor.shape),
                nbytes=gguf_tensors.size(kind, one.tensor.shape),
                kind=about,
                in_few_bits=kind in (TensorType.MXFP4, TensorType.Q8_0),
            )
        )
    return listed


def _stored_type(model: OpenModel, one: OutTensor, rest: str) -> tuple[TensorType, str]:
    """The type in which a tensor is stored, and why."""
    if len(one.tensor.shape) == 1:
        return TensorType.F32, "F32, as all vectors"
    if not one.is_rounded:
        kind = TensorType.F32 if rest == "float32" else TensorType.BF16
        was = export_tensors.describe_origin(model, rest)
        return kind, f"{kind.name}, which no rule covers{was}"
    labels = export_tensors.describe_formats(one)
    if not _in_few_bits(one):
        why = "" if one.has_groups else ", since 32 does not divide their inputs"
        return TensorType.BF16, f"BF16, rounded to {labels}{why}"
    kind = gguf_tensors.carrier(one.formats)
    return kind, f"{kind.name}, which has all values of {labels}"


def _in_few_bits(one: OutTensor) -> bool:
    narrow = all(fmt is not None and fmt.bits <= 8 for fmt in one.formats)
    return one.is_rounded and one.has_groups and narrow


def _values(
    model: OpenModel, tensors: Sequence[OutTensor], rest: np.dtype
) -> Iterator[tuple[Place, Sequence[Part]]]:
    for one, parts in export_tensors.iterate_values(model, tensors, _in_few_bits):
        yield (one.tensor.entry, one.tensor.layer), [_as_part(one, part, rest) for part in parts]


def _as_part(one: OutTensor, part: np.ndarray | EncodedMatrix, rest: np.dtype) -> Part:
    if isinstance(part, EncodedMatrix):
        return part
    values = np.asarray(part)
    if values.ndim > 1:  # vectors are stored in float32
        dtype = np.dtype(ml_dtypes.bfloat16) if one.is_rounded else rest
        values = export_tensors.convert(one.tensor.name, values, dtype)
    return transpose(values) if one.tensor.entry.paths[0].endswith("/kernel") else values
