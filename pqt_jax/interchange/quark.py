# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Weights in few bits as AMD Quark stores them, for vLLM: it reads FP6 E3M2 in no other layout.

A matrix [out, in] "….weight" is two tensors; config.json has the format of each layer:

    fp4, fp6_e2m3, fp6_e3m2   weight U8[out, in·bits/8]   weight_scale U8[out, in/32]
    fp8_e4m3, per_group       weight F8_E4M3[out, in]     weight_scale U8[out, in/32]
    fp8_e4m3, per_block       weight F8_E4M3[out, in]     weight_scale F8_E8M0[out/32, in/32]

U8 scales are E8M0. Blocks are 32×32, and whole.

Source: amd-quark 0.13, torch/utils/pack.py and torch/quantization/config; vLLM 0.32,
quantization/quark and quantization/utils/ocp_mx_utils.py.
"""

import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from pqt_jax.errors import InputError
from pqt_jax.interchange import low_bit_reading
from pqt_jax.interchange.low_bit import GROUP, EncodedMatrix, LowBitLayout, StoredCodes
from pqt_jax.interchange.low_bit_reading import FIELD, check_fields, check_names, check_section
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3, FloatFormat

_METHOD = "quark"
_DTYPES = {E2M1: "fp4", E2M3: "fp6_e2m3", E3M2: "fp6_e3m2", E4M3: "fp8_e4m3"}
_FORMATS = {dtype: fmt for fmt, dtype in _DTYPES.items()}
_Scheme = tuple[FloatFormat, tuple[int, int] | None]  # (format, its blocks; None for groups)
_UNQUANTIZED = {"input_tensors": None, "output_tensors": None, "bias": None}


def _describe(
    name: str, fmt: FloatFormat, shape: tuple[int, int], squares: bool
) -> dict[str, TensorSpec]:
    rows, columns = shape
    scale = TensorSpec("U8", (rows, columns // GROUP))
    if fmt != E4M3:
        return {name: TensorSpec("U8", (rows, columns * fmt.bits // 8)), f"{name}_scale": scale}
    if squares:
        if rows % GROUP:
            raise InputError(
                f"{name} has {rows} rows; with scales of 32×32 blocks they must be a multiple of "
                "32: leave out --squares"
            )
        scale = TensorSpec("F8_E8M0", (rows // GROUP, columns // GROUP))
    return {name: TensorSpec("F8_E4M3", shape), f"{name}_scale": scale}


def _store(name: str, matrix: EncodedMatrix, squares: bool) -> dict[str, np.ndarray]:
    squares &= matrix.fmt == E4M3
    scale = matrix.square_scale if squares else matrix.group_scale
    return {name: matrix.packed, f"{name}_scale": scale}


def _config(formats: Mapping[str, FloatFormat | None], squares: bool) -> dict[str, Any]:
    modules = {name.removesuffix(".weight"): fmt for name, fmt in formats.items()}
    used = sorted({fmt for fmt in modules.values() if fmt}, key=lambda fmt: fmt.bits)
    if not used:
        return {}
    layers = {fmt: _layer(fmt, squares and fmt == E4M3) for fmt in used}
    numbers = [module for module, fmt in modules.items() if not fmt]
    return {
        FIELD: {
            "quant_method": _METHOD,
            "quant_mode": "eager_mode",
            "global_quant_config": layers[used[0]],
            "layer_quant_config": {m: layers[f] for m, f in modules.items() if f in used[1:]},
            "layer_type_quant_config": {},
            "exclude": list(dict.fromkeys(["lm_head", *numbers])),
            "algo_config": None,
            "softmax_quant_spec": None,
            "export": {
                "kv_cache_group": [],
                "pack_method": "order",
                "weight_format": "real_quantized",
                "weight_merge_groups": None,
            },
        }
    }


def _layer(fmt: FloatFormat, squares: bool) -> dict[str, Any]:
    """The quantization of a layer."""
    weight: dict[str, Any] = {"dtype": _DTYPES[fmt], "is_dynamic": False}
    weight["round_method"] = "half_even"
    if squares:
        weight |= {"qscheme": "per_block", "block_size": [GROUP, GROUP], "group_size": None}
        weight |= {"ch_axis": None, "symmetric": True, "observer_cls": "PerBlock2DMinMaxObserver"}
        weight |= {"scale_type": "float8_e8m0fnu", "scale_format": None}
    else:
        weight |= {"qscheme": "per_group", "block_size": None, "group_size": GROUP}
        weight |= {"ch_axis": -1, "symmetric": None, "observer_cls": "PerBlockMXObserver"}
        weight |= {"scale_type": "float", "scale_format": "e8m0"}
        weight |= {"scale_calculation_mode": "even"}
    return {"weight": weight, **_UNQUANTIZED, "target_device": None}


def _find(name: str, content: Mapping[str, Any]) -> StoredCodes | None:
    scheme = _scheme(name, content)
    if scheme is None:
        return None
    fmt, block = scheme
    dtype, scale = "F8_E4M3" if fmt == E4M3 else "U8", f"{name}_scale"
    if block is None:
        return StoredCodes(fmt, name, dtype, scale)
    return StoredCodes(fmt, name, dtype, scale, ("F8_E8M0", "BF16", "F16", "F32"), block)


def _scheme(name: str, content: Mapping[str, Any]) -> _Scheme | None:
    """How a matrix is stored; None if as numbers."""
    config = content[FIELD]
    absent = (None, {})
    check_fields(config, FIELD, {"layer_type_quant_config": absent, "algo_config": (None, [])})
    check_fields(config, FIELD, {"kv_cache_quant_config": absent, "softmax_quant_spec": (None,)})
    export = check_section(config.get("export"), f"{FIELD}.export")
    allowed = {"weight_format": ("real_quantized", None), "kv_cache_group": ([], None)}
    check_fields(export, f"{FIELD}.export", allowed)
    common = _layer_scheme(config.get("global_quant_config"), f"{FIELD}.global_quant_config")
    where = f"{FIELD}.layer_quant_config"
    layers = check_section(config.get("layer_quant_config") or {}, where)
    schemes = {key: _layer_scheme(layer, f"{where}.{key}") for key, layer in layers.items()}
    excluded = check_names(config.get("exclude") or [], f"{FIELD}.exclude")
    module = name.removesuffix(".weight")
    if module.endswith("embed_tokens"):  # only linear layers are quantized
        return None
    if any(fnmatch.fnmatchcase(module, pattern) for pattern in excluded):
        return None
    matching = (one for pattern, one in schemes.items() if fnmatch.fnmatchcase(module, pattern))
    return next(matching, common)


def _layer_scheme(layer: Any, where: str) -> _Scheme | None:
    check_fields(check_section(layer, where), where, dict.fromkeys(_UNQUANTIZED, (None,)))
    if layer.get("weight") is None:
        return None
    where = f"{where}.weight"
    weight = check_section(layer["weight"], where)
    if weight.get("dtype") not in tuple(_FORMATS):
        wanted = f"one of {', '.join(_FORMATS)}"
        raise low_bit_reading.wrong_field(f"{where}.dtype", weight.get("dtype"), wanted)
    fmt = _FORMATS[weight["dtype"]]
    schemes = ("per_group", "per_block") if fmt == E4M3 else ("per_group",)
    check_fields(weight, where, {"qscheme": schemes, "is_dynamic": (False, None)})
    check_fields(weight, where, {"symmetric": (True, None), "is_scale_quant": (False, None)})
    if weight["qscheme"] == "per_block":
        return fmt, low_bit_reading.check_block(weight.get("block_size"), f"{where}.block_size")
    allowed = {"group_size": (GROUP,), "ch_axis": (-1, 1), "scale_format": ("e8m0",)}
    check_fields(weight, where, allowed)
    return fmt, None


LAYOUT = LowBitLayout(
    name="quark",
    models=("llama2",),
    formats=("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "mixed"),
    carrier=lambda fmt: fmt if fmt in _DTYPES else None,
    squares=("fp8_e4m3",),
    describe=_describe,
    store=_store,
    config=_config,
    recognizes=functools.partial(low_bit_reading.names_method, _METHOD),
    find=_find,
)
