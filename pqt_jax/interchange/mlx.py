# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Matrices in few bits as MLX stores them, for `mlx_lm`: FP4 E2M1 and FP8 E4M3.

    NAME.weight   uint32[out, in·bits/32], codes in the order of `in`, the first in the lowest bits
    NAME.scales   uint8[out, in/32], E8M0
    config.json   "quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}

That entry is for all matrices with scales. If they are not alike, it has one for each, too, under
the name of its layer. FP6 is stored in the codes of E4M3, which has all its values.

Source: mlx 0.32.4, `mx.dequantize`; mlx-lm 0.32.2, `utils.load_model`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pqt_jax.errors import InputError
from pqt_jax.interchange.low_bit import (
    GROUP,
    EncodedMatrix,
    LowBitLayout,
    Read,
    decode,
    recode,
)
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3, FloatFormat

_MODES = {E2M1: "mxfp4", E4M3: "mxfp8"}
_CARRIERS = {E2M1: E2M1, E2M3: E4M3, E3M2: E4M3, E4M3: E4M3}
FIELD = "quantization"  # of config.json


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _describe(
    name: str, fmt: FloatFormat, shape: tuple[int, int], squares: bool
) -> dict[str, TensorSpec]:
    rows, columns = shape
    words = columns * _CARRIERS[fmt].bits // 32
    return {
        name: TensorSpec("U32", (rows, words)),
        f"{_layer(name)}.scales": TensorSpec("U8", (rows, columns // GROUP)),
    }


def _store(name: str, matrix: EncodedMatrix, squares: bool) -> dict[str, np.ndarray]:
    matrix = recode(matrix, _CARRIERS[matrix.fmt])
    packed = matrix.codes
    if matrix.fmt.bits == 4:
        packed = packed[:, 0::2] | packed[:, 1::2] << 4
    words = np.ascontiguousarray(packed).view("<u4")
    return {name: words, f"{_layer(name)}.scales": matrix.group_scale}


def _config(formats: Mapping[str, FloatFormat | None], squares: bool) -> dict[str, Any]:
    entries = {
        _layer(name): _entry(_CARRIERS[fmt]) for name, fmt in formats.items() if fmt is not None
    }
    if not entries:
        return {}
    ((mode, _), *others) = Counter(entry["mode"] for entry in entries.values()).most_common()
    (common, *_) = (entry for entry in entries.values() if entry["mode"] == mode)
    return {FIELD: common | entries if others else common}


def _entry(fmt: FloatFormat) -> dict[str, Any]:
    return {"group_size": GROUP, "bits": fmt.bits, "mode": _MODES[fmt]}


def _recognizes(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get(FIELD), dict)


def _stored_names(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    return name, f"{_layer(name)}.scales"


def _load(name: str, config: Mapping[str, Any], read: Read) -> np.ndarray | None:
    layer = _layer(name)
    scale = read(f"{layer}.scales")
    if scale is None:
        return None
    entry = config[FIELD].get(layer, config[FIELD])
    modes = {_MODES[fmt]: fmt for fmt in _MODES}
    mode = entry.get("mode", "affine") if isinstance(entry, dict) else entry
    if mode not in tuple(modes):
        raise InputError(f"{name}: mode {mode!r} of {FIELD}; it must be {' or '.join(modes)}")
    fmt = modes[mode]
    for field, wanted in _entry(fmt).items():
        if entry.get(field) != wanted:
            raise InputError(
                f"{name}: {field}={entry.get(field)!r} of {FIELD}; it must be {wanted}"
            )
    words = read(name)
    if words is None:
        raise InputError(f"{name} is missing; {layer}.scales is there")
    if scale.ndim != 2 or scale.dtype != np.uint8:
        wanted = "a uint8 matrix"
        raise InputError(f"{layer}.scales is {_describe_array(scale)}; it must be {wanted}")
    shape = (len(scale), scale.shape[1] * fmt.bits)
    if words.shape != shape or words.dtype != np.uint32:
        wanted = f"uint32{list(shape)}"
        raise InputError(f"{name} is {_describe_array(words)}; it must be {wanted}")
    codes = np.ascontiguousarray(words).astype("<u4").view(np.uint8)
    if fmt.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
    return decode(EncodedMatrix(fmt, codes, scale, (1, GROUP)))


def _describe_array(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


LAYOUT = LowBitLayout(
    name="mlx",
    models=("llama2",),
    formats=("fp4_e2m1", "fp8_e4m3", "mixed"),
    carrier=_CARRIERS.get,
    squares=(),
    describe=_describe,
    store=_store,
    config=_config,
    recognizes=_recognizes,
    stored_names=_stored_names,
    load=_load,
)
