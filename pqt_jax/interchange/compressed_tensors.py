# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Weights in few bits as the package compressed-tensors stores them, for transformers and vLLM.

A matrix [out, in] "….weight" is two tensors, by the format that config.json names for its layer:

    mxfp4-pack-quantized   weight_packed U8[out, in/2]     weight_scale U8[out, in/32]
    mxfp6-pack-quantized   weight_packed U8[out, 3·in/4]   weight_scale U8[out, in/32]
    mxfp8-quantized        weight F8_E4M3[out, in]         weight_scale U8[out, in/32]
    float-quantized        weight F8_E4M3[out, in]         weight_scale BF16[⌈out/32⌉, in/32]

U8 scales are E8M0. Its readers take F8_E8M0 for numbers to convert, so nothing has that dtype. The
scale of a square is the power of two as a number. FP6 is E2M3; E3M2 is carried by E4M3.

Source: compressed-tensors 0.20.1, compressors/ and quantization/quant_args.py.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pqt_jax.interchange import low_bit_reading
from pqt_jax.interchange.low_bit import GROUP, EncodedMatrix, LowBitLayout, StoredCodes
from pqt_jax.interchange.low_bit_reading import FIELD, check_fields, check_names, check_section
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.numerics import bit_packing
from pqt_jax.numerics.formats import E2M1, E2M3, E3M2, E4M3, FloatFormat

_METHOD = "compressed-tensors"
_GROUPS = {
    E2M1: "mxfp4-pack-quantized",
    E2M3: "mxfp6-pack-quantized",
    E4M3: "mxfp8-quantized",
}
_SQUARES = "float-quantized"
# The package infers the second name for the same bytes.
_FORMATS = {name: fmt for fmt, name in _GROUPS.items()} | {_SQUARES: E4M3, "naive-quantized": E4M3}
_Scheme = tuple[FloatFormat, tuple[int, int] | None]  # (format, its blocks; None for groups)
_CARRIERS = {E2M1: E2M1, E2M3: E2M3, E3M2: E4M3, E4M3: E4M3}


def _describe(
    name: str, fmt: FloatFormat, shape: tuple[int, int], squares: bool
) -> dict[str, TensorSpec]:
    codes, scale = _tensor_names(name, fmt)
    rows, columns = shape
    grid = rows, columns // GROUP
    if fmt != E4M3:
        stored = TensorSpec("U8", (rows, columns * fmt.bits // 8))
    else:
        stored = TensorSpec("F8_E4M3", shape)
        if squares:
            scales = TensorSpec("BF16", (-(-rows // GROUP), columns // GROUP))
            return {codes: stored, scale: scales}
    return {codes: stored, scale: TensorSpec("U8", grid)}


def _store(name: str, matrix: EncodedMatrix, squares: bool) -> dict[str, np.ndarray]:
    codes, scale = _tensor_names(name, matrix.fmt)
    if squares and matrix.fmt == E4M3:
        values = bit_packing.from_e8m0(matrix.square_scale).astype(ml_dtypes.bfloat16)
    else:
        values = matrix.group_scale
    return {codes: matrix.packed, scale: values}


def _tensor_names(name: str, fmt: FloatFormat) -> tuple[str, str]:
    return name if fmt == E4M3 else f"{name}_packed", f"{name}_scale"


def _config(formats: Mapping[str, FloatFormat | None], squares: bool) -> dict[str, Any]:
    modules = {name.removesuffix(".weight"): fmt for name, fmt in formats.items()}
    used = sorted({fmt for fmt in modules.values() if fmt}, key=lambda fmt: fmt.bits)
    groups = {}
    for i, fmt in enumerate(used):
        of_format = [module for module, one in modules.items() if one == fmt]
        targets = ["Linear"] if len(used) == 1 else of_format
        groups[f"group_{i}"] = _group(fmt, squares and fmt == E4M3, targets)
    if not groups:
        return {}
    names = [group["format"] for group in groups.values()]
    numbers = [module for module, fmt in modules.items() if not fmt]
    return {
        FIELD: {
            "quant_method": _METHOD,
            "format": names[0] if len(names) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "ignore": list(dict.fromkeys(["lm_head", *numbers])),
            "config_groups": groups,
        }
    }


def _group(fmt: FloatFormat, squares: bool, targets: list[str]) -> dict[str, Any]:
    """One entry of `config_groups`."""
    if squares:
        scales: dict[str, Any] = {"strategy": "block", "block_structure": [GROUP, GROUP]}
    else:
        scales = {"strategy": "group", "group_size": GROUP, "scale_dtype": "torch.uint8"}
        scales["zp_dtype"] = "torch.uint8"
    weights = {"num_bits": fmt.bits, "type": "float", "symmetric": True, "dynamic": False}
    return {
        "targets": targets,
        "weights": weights | scales,
        "input_activations": None,
        "output_activations": None,
        "format": _SQUARES if squares else _GROUPS[fmt],
    }


def _find(name: str, content: Mapping[str, Any]) -> StoredCodes | None:
    scheme = _scheme(name, content)
    if scheme is None:
        return None
    fmt, block = scheme
    codes, scale = _tensor_names(name, fmt)
    dtype = "F8_E4M3" if fmt == E4M3 else "U8"
    if block is None:
        return StoredCodes(fmt, codes, dtype, scale)
    return StoredCodes(fmt, codes, dtype, scale, ("BF16", "F16", "F32"), block)


def _scheme(name: str, content: Mapping[str, Any]) -> _Scheme | None:
    """How a matrix is stored; None if as numbers.

    An exact name goes before a regular expression, and that before the name of a class.
    """
    config = content[FIELD]
    absent = (None, {})
    check_fields(config, FIELD, {"quantization_status": ("compressed",)})
    check_fields(config, FIELD, {"kv_cache_scheme": (None,), "transform_config": absent})
    check_fields(config, FIELD, {"sparsity_config": (*absent, {"format": "dense"})})
    check_fields(config, FIELD, {"format": (*_FORMATS, "mixed-precision", None)})
    where = f"{FIELD}.config_groups"
    schemes: dict[str, _Scheme] = {}
    for key, group in check_section(config.get("config_groups"), where).items():
        group = check_section(group, f"{where}.{key}")
        scheme = _group_scheme(group, f"{where}.{key}", config.get("format"))
        targets = check_names(group.get("targets"), f"{where}.{key}.targets")
        schemes |= dict.fromkeys(targets, scheme)
    ignored = check_names(config.get("ignore") or [], f"{FIELD}.ignore")
    module = name.removesuffix(".weight")
    kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
    if any(one == kind or _fits(module, one) for one in ignored):
        return None
    for target in sorted(schemes):  # "model.…" before "re:…"
        if _fits(module, target):
            return schemes[target]
    return schemes.get(kind)


def _fits(module: str, target: str) -> bool:
    if not target.startswith("re:"):
        return target == module
    try:
        return re.match(target[3:], module) is not None
    except (re.error, OverflowError, RecursionError) as error:
        wanted = f"a name or a regular expression ({error})"
        raise low_bit_reading.wrong_field("a target", target, wanted) from None


def _group_scheme(group: Mapping[str, Any], where: str, default: Any) -> _Scheme:
    name = group.get("format") or default
    if name not in tuple(_FORMATS):
        raise low_bit_reading.wrong_field(f"{where}.format", name, f"one of {', '.join(_FORMATS)}")
    check_fields(group, where, {"input_activations": (None,), "output_activations": (None,)})
    weights = check_section(group.get("weights"), f"{where}.weights")
    fmt, is_block = _FORMATS[name], name not in _GROUPS.values()
    allowed: dict[str, tuple] = {"num_bits": (fmt.bits, None) if fmt.bits == 8 else (fmt.bits,)}
    allowed |= {"type": ("float",), "symmetric": (True, None), "dynamic": (False, None)}
    allowed["strategy"] = ("block",) if is_block else ("group", None)
    allowed["group_size"] = (None,) if is_block else (GROUP,)
    check_fields(weights, f"{where}.weights", allowed)
    if not is_block:
        return fmt, None
    structure = weights.get("block_structure")
    return fmt, low_bit_reading.check_block(structure, f"{where}.weights.block_structure")


LAYOUT = LowBitLayout(
    name="compressed-tensors",
    models=("llama2",),
    formats=("fp4_e2m1", "fp6_e2m3", "fp8_e4m3", "mixed"),
    carrier=_CARRIERS.get,
    squares=("fp8_e4m3",),
    describe=_describe,
    store=_store,
    config=_config,
    recognizes=functools.partial(low_bit_reading.names_method, _METHOD),
    find=_find,
)
