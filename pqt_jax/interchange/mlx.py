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

from pqt_jax.interchange.low_bit import GROUP, EncodedMatrix, LowBitLayout, StoredCodes, recode
from pqt_jax.interchange.low_bit_reading import check_fields, check_section, wrong_field
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.models import Llama2Config
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
    return {name: matrix.packed.view("<u4"), f"{_layer(name)}.scales": matrix.group_scale}


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


def _find(name: str, config: Mapping[str, Any]) -> StoredCodes | None:
    layer = _layer(name)
    where = f"{FIELD}.{layer}" if layer in config[FIELD] else FIELD
    entry = config[FIELD].get(layer, config[FIELD])
    if entry is False:
        return None
    entry = check_section(entry, where)
    modes = {_MODES[fmt]: fmt for fmt in _MODES}
    if entry.get("mode") not in tuple(modes):
        raise wrong_field(f"{where}.mode", entry.get("mode"), " or ".join(modes))
    fmt = modes[entry["mode"]]
    check_fields(entry, where, {field: (value,) for field, value in _entry(fmt).items()})
    return StoredCodes(fmt, name, "U32", f"{layer}.scales")


def _find_refusal(config: Llama2Config) -> str | None:
    """What mlx-lm's models llama, qwen2 and qwen3 lack (mlx-lm 0.32.2)."""
    bias = config.attention_bias
    if config.qk_norm and bias != "none":
        return f"mlx-lm has no model with config.model.qk_norm and attention_bias={bias!r}"
    if bias == "qkv" and config.head_width * config.num_heads != config.d_model:
        return (
            "mlx-lm has no model with config.model.attention_bias='qkv' and "
            f"head_dim={config.head_dim}, other than d_model / num_heads"
        )
    return None


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
    find=_find,
    find_refusal=_find_refusal,
)
