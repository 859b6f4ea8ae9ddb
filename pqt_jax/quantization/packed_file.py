# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Write and read quantized parameters as packed codes in one safetensors file.

A parameter `p` of the plan is stored as tensors `p:NAME`, with the names of `codes`. Any other
parameter is stored unchanged as the tensor `p`. The metadata has the JSON text "pqt_jax" and its
SHA-256 as "sha256". The fields of the JSON:

    version      of this layout, 1
    stream       version of the noise stream that the weights were trained with
    model        the caller's description of the model, any JSON
    ladder       the mixed formats: [name, exponent bits, mantissa bits, specials]
    parameters   path → shape, matrix_axes, block, scale rule, format (null for mixed formats)
    digests      tensor → SHA-256 of its dtype, shape and bytes
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from pqt_jax.errors import MALFORMED, InputError, system_reason
from pqt_jax.interchange import files
from pqt_jax.interchange.safetensors_io import DTYPE_NAMES
from pqt_jax.interchange.safetensors_writer import write_file
from pqt_jax.numerics import philox
from pqt_jax.numerics.deterministic_rounding import FormatAssignment, check_finite
from pqt_jax.numerics.formats import BF16, FloatFormat
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.numerics.spec import Spec
from pqt_jax.quantization import codes
from pqt_jax.quantization.quantize import Plan
from pqt_jax.transform.tree_paths import paths_and_leaves

VERSION = 1
FILE = "weights.safetensors"
_DTYPES = {code: dtype for dtype, code in DTYPE_NAMES.items()}


@dataclasses.dataclass(frozen=True)
class PackedWeights:
    """The content of a file.

    Attributes:
      params: parameters by path, on the host, equal to the result of `quantize.apply`.
      plan: the plan that they were quantized by.
      model: the description of the model that was passed to `write`.
      stream: version of the noise stream.
    """

    params: dict[str, np.ndarray]
    plan: Plan
    model: Any
    stream: int


def write(path: Path, params: Any, plan: Plan, model: Any = None) -> None:
    """Quantize parameters by a plan and store their codes.

    Args:
      path: the file to write. A crash may leave it incomplete, unless it is in a folder of
        `folders.atomic_folder`.
      params: pytree of arrays; those that the plan leaves out must be float32 or bfloat16.
      plan: from `quantize.plan_uniform` or `plan_mixed`.
      model: any JSON value.

    Raises:
      TypeError, ValueError, OSError: as `write_each`.
    """
    write_each(path, paths_and_leaves(params).items(), plan, model)


def write_each(
    path: Path, leaves: Iterable[tuple[str, Any]], plan: Plan, model: Any = None
) -> None:
    """Quantize parameters that are made one at a time; only their codes are kept in memory.

    Args:
      path, plan, model: as for `write`.
      leaves: (path, array) of each parameter.

    Raises:
      TypeError: if a parameter that the plan leaves out has another dtype.
      ValueError: if a path could be the name of a tensor of another parameter, or a weight that is
        quantized is Inf or NaN.
      OSError: if the file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    names, parameters = [], {}
    for name, leaf in leaves:
        names.append(name)
        if name in plan:
            check_finite(name, leaf)
            parameters[name] = _describe(plan[name], leaf.shape)
            encoded = codes.encode_parameter(leaf, plan[name])
            tensors |= {f"{name}:{key}": x for key, x in encoded.items()}
        elif leaf.dtype in (jnp.float32, jnp.bfloat16):
            tensors[name] = np.asarray(leaf)
        else:
            raise TypeError(f"{name} has dtype {leaf.dtype}; only float32 and bfloat16 are stored")
    for name in parameters:
        if clash := [other for other in names if other.startswith(f"{name}:")]:
            raise ValueError(f"{clash[0]} could be a tensor of {name}; give it another name")
    content = {
        "version": VERSION,
        "stream": philox.STREAM_VERSION,
        "model": model,
        "ladder": [_format_fields(fmt) for fmt in MIXED_FORMATS],
        "parameters": parameters,
        "digests": {name: _digest(x) for name, x in tensors.items()},
    }
    text = json.dumps(content, separators=(",", ":"))
    metadata = {"pqt_jax": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_file(path, tensors, metadata)


def read(path: Path) -> PackedWeights:
    """Read a file that `write` made.

    Args:
      path: the file to read.

    Raises:
      InputError: if it is missing, damaged, of another version, or was not made by `write`.
    """
    try:
        data = files.read_bytes(path)
    except OSError as error:
        remedy = "give a folder that export --layout=packed has written"
        raise InputError(f"{path}: {system_reason(error, remedy)}") from None
    try:
        raw = dict(safetensors.deserialize(data))
        header = files.parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a complete safetensors file: {reason}") from None
    text, digest = metadata.get("pqt_jax"), metadata.get("sha256")
    if text is None or digest is None:
        raise InputError(f"{path} has no pqt_jax metadata; give a file of packed weights")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise InputError(f"{path}: its metadata is not what was written; put a copy back")
    try:
        return _unpack(path, raw, files.parse_json(text))
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(
            f"{path}: its metadata makes no sense: {error!r}; export it again"
        ) from None


def _unpack(path: Path, raw: dict[str, Any], content: dict[str, Any]) -> PackedWeights:
    """Decode the tensors of a file; other metadata than `write`'s raises many kinds of error."""
    if (version := content.get("version")) != VERSION:
        raise InputError(
            f"{path} has layout version {version!r}, and this reads {VERSION}; "
            "export it again, or use the pqt_jax that wrote it"
        )
    tensors = {}
    for name, expected in content["digests"].items():
        tensors[name] = _tensor(raw.pop(name, None), f"{path}: {name}")
        if _digest(tensors[name]) != expected:
            raise InputError(f"{path}: {name} is not what was written; put a copy back")
    if raw:
        raise InputError(f"{path}: {min(raw)} was not written with it; put a copy back")
    mixed_formats = tuple(FloatFormat(*fields[1:]) for fields in content["ladder"])
    if mixed_formats != MIXED_FORMATS:
        names = ", ".join(fmt.name for fmt in mixed_formats)
        raise InputError(f"{path}: its formats are {names}, which this version does not know")
    params, plan = {}, {}
    for name, fields in content["parameters"].items():
        start = f"{name}:"
        encoded = {k.removeprefix(start): tensors.pop(k) for k in [*tensors] if k.startswith(start)}
        try:
            plan[name] = _read_assignment(fields, encoded)
            params[name] = codes.decode_parameter(encoded, tuple(fields["shape"]), plan[name])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: {name} cannot be unpacked: {error}; export it again"
            ) from None
    return PackedWeights(
        params=params | tensors, plan=plan, model=content["model"], stream=content["stream"]
    )


def _format_fields(fmt: FloatFormat) -> list[Any]:
    return [fmt.name, fmt.exponent_bits, fmt.mantissa_bits, fmt.specials]


def _describe(assigned: FormatAssignment, shape: tuple[int, ...]) -> dict[str, Any]:
    spec, index = assigned
    return {
        "shape": shape,
        "matrix_axes": spec.matrix_axes,
        "block": spec.block,
        "scale": spec.scale,
        "format": None if index is not None else _format_fields(spec.dtype),
    }


def _read_assignment(fields: dict[str, Any], encoded: codes.Tensors) -> FormatAssignment:
    block, axes = tuple(fields["block"]), tuple(fields["matrix_axes"])
    dtype = BF16 if fields["format"] is None else FloatFormat(*fields["format"][1:])
    spec = Spec(noise="none", block=block, scale=fields["scale"], matrix_axes=axes, dtype=dtype)
    if fields["format"] is not None:
        return FormatAssignment(spec)
    return FormatAssignment(spec, codes.decode_tags(encoded, tuple(fields["shape"]), spec))


def _tensor(raw: Any, what: str) -> np.ndarray:
    if raw is None or raw["dtype"] not in _DTYPES:
        raise InputError(f"{what} is missing, or of another dtype; put a copy back")
    return np.frombuffer(raw["data"], _DTYPES[raw["dtype"]]).reshape(raw["shape"])


def _digest(x: np.ndarray) -> str:
    about = f"{x.dtype} {x.shape} ".encode()
    return hashlib.sha256(about + np.ascontiguousarray(x).tobytes()).hexdigest()
