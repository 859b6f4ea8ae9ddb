# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Write trained weights to a folder like those of transformers, as numbers or in few bits.

model, plan → config.json, model.safetensors (or shards), tensor by tensor
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pqt_jax.analysis import export_tensors
from pqt_jax.analysis.export_tensors import OutTensor
from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface, huggingface_config, low_bit, safetensors_writer
from pqt_jax.interchange.huggingface_tensors import join
from pqt_jax.interchange.low_bit import EncodedMatrix, LowBitLayout
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.numerics.formats import BF16, FloatFormat
from pqt_jax.quantization.quantize import Plan

_NUMPY = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
    """How the tensors of a folder are stored.

    Attributes:
      layout: how matrices in few bits are stored; None to store all numbers.
      numbers: dtype of rounded weights that are stored as numbers, "bfloat16" or "float32".
      rest: dtype of the weights that the plan does not round.
      squares: whether scales are stored for blocks of 32×32, where the layout has them.
      shard_bytes: maximum size of a file.
    """

    layout: LowBitLayout | None
    numbers: str
    rest: str
    squares: bool = False
    shard_bytes: int = safetensors_writer.SHARD_BYTES


def carrier_of(one: OutTensor, layout: LowBitLayout | None) -> FloatFormat | None:
    """The format that a tensor is stored in; None if it is stored as numbers."""
    fmt = one.formats[0]
    if layout is None or fmt is None or not one.has_groups:
        return None
    return layout.carrier(fmt)


def write(
    folder: Path, model: OpenModel, plan: Plan, storage: Storage, ids: Mapping[str, Any]
) -> list[OutTensor]:
    """Write config.json and the weights.

    Args:
      folder: an empty folder.
      model: whose weights are read one parameter at a time.
      plan: how they are rounded. With a layout, each matrix has one format.
      storage: how they are stored.
      ids: the special tokens, fields of config.json.

    Returns:
      All tensors, in the order of the files.

    Raises:
      InputError: if weights cannot be read, or one is not finite.
      OutputError: if the folder cannot be written.
    """
    layout = storage.layout
    tensors = export_tensors.list_tensors(model, plan)
    carriers = {one.tensor.name: carrier_of(one, layout) for one in tensors}
    if layout is not None and not any(carriers.values()):
        numbers = next((one for one in tensors if one.is_rounded), tensors[0])
        raise InputError(
            f"--layout={layout.name}: no matrix would be in few bits, {numbers.tensor.name} would "
            f"be {describe_tensor(model, numbers, storage)}; give --layout=huggingface"
        )
    specs = {name: x for one in tensors for name, x in tensor_specs(one, storage).items()}
    values = _stored_values(model, tensors, carriers, storage)
    safetensors_writer.write_stream(folder, specs, values, storage.shard_bytes)
    # Software that computes from few bits does so in bfloat16, whatever the others are stored in.
    wide = layout is None and "float32" in (storage.numbers, storage.rest)
    content = huggingface_config.to_json(model.config, "float32" if wide else "bfloat16") | dict(
        ids
    )
    if layout is not None:
        linear = [one.tensor.name for one in tensors if one.tensor.entry.transposed]
        content |= layout.config({name: carriers[name] for name in linear}, storage.squares)
    huggingface.write_config(folder, content)
    return tensors


def describe_tensor(model: OpenModel, one: OutTensor, storage: Storage) -> str:
    """The format that a tensor is stored in, and why if it is not in few bits."""
    dtype = _dtype(one, storage)
    if (fmt := carrier_of(one, storage.layout)) is not None:
        return fmt.label
    if not one.is_rounded:
        return f"{dtype}, which no rule covers" + export_tensors.describe_origin(model, dtype)
    if storage.layout is not None and not one.has_groups:
        labels = export_tensors.describe_formats(one)
        return f"{dtype}, rounded to {labels}, since 32 does not divide their inputs"
    if storage.layout is not None and (fmt := one.formats[0]) not in (None, BF16):
        return f"{dtype}, rounded to {fmt.label}, which {storage.layout.name} does not have"
    return f"{dtype}, rounded to their format"


def tensor_specs(one: OutTensor, storage: Storage) -> dict[str, TensorSpec]:
    """What a tensor is stored as, by the names in the file."""
    name, shape, fmt = one.tensor.name, one.tensor.shape, carrier_of(one, storage.layout)
    if storage.layout is None or fmt is None:
        return {name: TensorSpec(huggingface.DTYPES[_dtype(one, storage)], shape)}
    return storage.layout.describe(name, fmt, (shape[0], shape[1]), storage.squares)


def _dtype(one: OutTensor, storage: Storage) -> str:
    return storage.numbers if one.is_rounded else storage.rest


def _stored_values(
    model: OpenModel,
    tensors: list[OutTensor],
    carriers: dict[str, FloatFormat | None],
    storage: Storage,
) -> Iterator[tuple[str, np.ndarray]]:
    values = export_tensors.iterate_values(
        model, tensors, lambda one: carriers[one.tensor.name] is not None
    )
    for one, parts in values:
        name = one.tensor.name
        if isinstance(matrix := parts[0], EncodedMatrix):
            fmt, layout = carriers[name], storage.layout
            assert layout is not None and fmt is not None
            yield from layout.store(name, low_bit.recode(matrix, fmt), storage.squares).items()
        else:
            dtype = _NUMPY[_dtype(one, storage)]
            numbers = [export_tensors.convert(name, np.asarray(x), dtype) for x in parts]
            yield name, join(one.tensor, numbers)
