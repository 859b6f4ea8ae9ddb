# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""All layouts of weights in few bits, and how a folder's matrices are read by them."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqt_jax.errors import InputError
from pqt_jax.interchange import compressed_tensors, low_bit_reading, mlx, quark
from pqt_jax.interchange.low_bit import LowBitLayout
from pqt_jax.interchange.safetensors_io import FLOAT_DTYPES, StoredTensor

LAYOUTS: dict[str, LowBitLayout] = {
    module.LAYOUT.name: module.LAYOUT for module in (compressed_tensors, mlx, quark)
}
_FIELD = "quantization_config"


class StoredMatrix(NamedTuple):
    """A matrix that a folder holds in few bits.

    Attributes:
      names: the names of its tensors in the folder.
      read: returns its values, float32[out, in]. Raises InputError if they cannot be read.
    """

    names: tuple[str, ...]
    read: Callable[[], np.ndarray]


def find_layout(content: Mapping[str, Any], model: str, path: Path) -> LowBitLayout | None:
    """The layout that a config.json describes; None if all weights are stored as numbers.

    Args:
      content: the file's content.
      model: the name of the model that it describes, `ModelSpec.name`.
      path: the file's path, for messages.

    Raises:
      InputError: for weights that are quantized in another way, or of another model.
    """
    for layout in LAYOUTS.values():
        if layout.recognizes(content):
            if model not in layout.models:
                raise InputError(
                    f"{path}: weights of a {model} in the layout {layout.name}, which is read for "
                    f"{' and '.join(layout.models)} only; give a copy that is not quantized"
                )
            return layout
    if (value := content.get(_FIELD)) is not None:
        names = compressed_tensors.LAYOUT.name, quark.LAYOUT.name
        wanted = f"absent, or of quant_method {' or '.join(names)}"
        raise InputError(f"{path}: {low_bit_reading.wrong_field(_FIELD, value, wanted)}")
    return None


def find_matrix(
    layout: LowBitLayout | None,
    content: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    name: str,
    shape: tuple[int, ...],
    path: Path,
) -> StoredMatrix | None:
    """Find the tensors of a matrix by their headers.

    Args:
      layout: what `find_layout` returned.
      content: the content of its config.json.
      stored: its tensors, by the names of transformers.
      name: the name of the matrix.
      shape: (out, in).
      path: the path of config.json, for messages.

    Returns:
      None if the matrix is stored as numbers, or not at all.

    Raises:
      InputError: if config.json describes something that the layout does not read, or the tensors
        do not fit it.
    """
    if layout is None or len(shape) != 2:
        return None
    try:
        found = layout.find(name, content)
        if found is None or not (found.codes in stored or found.scale in stored):
            return None
        are_numbers = name in stored and stored[name].dtype in FLOAT_DTYPES
        if are_numbers and found.scale not in stored:
            return None
        low_bit_reading.check_matrix(stored, found, shape)
    except InputError as error:
        raise InputError(f"{path.parent}: {error}") from None
    read = functools.partial(low_bit_reading.read_matrix, stored, found)
    return StoredMatrix((found.codes, found.scale), read)
