# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Our models in the layout of Hugging Face transformers, written and read without that package.

    config.json                    huggingface_config; huggingface_llama: Llama, Mistral, Qwen
    model.safetensors (or shards)  huggingface_tensors, safetensors_writer, safetensors_io

A folder is written whole or not at all.
"""

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files, layouts, safetensors_io, safetensors_writer
from pqt_jax.interchange.folders import atomic_folder
from pqt_jax.interchange.huggingface_config import from_json, to_json
from pqt_jax.interchange.huggingface_tensors import (
    HEAD,
    TABLES,
    add_zeros,
    iterate_tensors,
    join,
    layers_of,
    list_tensors,
    parameter_shapes,
    stored_shape,
    stored_values,
    tensor_entries,
)
from pqt_jax.interchange.safetensors_io import StoredTensor
from pqt_jax.interchange.safetensors_writer import TensorSpec
from pqt_jax.models import ModelConfig
from pqt_jax.transform.tree_paths import paths_and_leaves

CONFIG = "config.json"
# Buffers that older versions of transformers saved. They contain no learned values.
_IGNORED = re.compile(r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
DTYPES = {"bfloat16": "BF16", "float32": "F32"}  # name → name in safetensors


def save(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Any,
    *,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    overwrite: bool = False,
    shard_bytes: int = safetensors_writer.SHARD_BYTES,
) -> None:
    """Write a model so that `AutoModelForCausalLM.from_pretrained(folder)` loads it.

    GPT-2 in transformers always has biases, and a Qwen 3 has all of the attention's or none. Where
    the model has no bias, zeros are written.

    Args:
      folder: written atomically.
      config: the model's configuration.
      params: parameters of the bare model, an nnx.State or a nested dict. Bit-widths in it are left
        out.
      dtype: dtype to round the weights to.
      overwrite: whether to replace an existing export.
      shard_bytes: maximum size of a file.

    Raises:
      ValueError: if the parameters are not those of the model.
      InputError: if the folder cannot be created or replaced.
      OutputError: if it cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; it must be {' or '.join(DTYPES)}")
    leaves = {path: np.asarray(leaf) for path, leaf in paths_and_leaves(params).items()}
    shapes = parameter_shapes(config)
    for path in sorted(shapes.keys() | leaves.keys()):
        if path not in shapes or path not in leaves or leaves[path].shape != shapes[path]:
            shape = leaves[path].shape if path in leaves else "missing"
            raise ValueError(
                f"parameter {path!r} is {shape}, the model's {shapes.get(path, 'none')}"
            )
    tensors = list_tensors(config)
    specs = {tensor.name: TensorSpec(DTYPES[dtype], tensor.shape) for tensor in tensors}
    read = add_zeros(config, leaves.__getitem__)
    values = (
        (tensor.name, join(tensor, parts).astype(dtype))
        for tensor, parts in stored_values(tensors, read)
    )
    with atomic_folder(folder, overwrite) as temporary:
        safetensors_writer.write_stream(temporary, specs, values, shard_bytes)
        write_config(temporary, to_json(config, dtype))


def write_config(folder: Path, content: dict[str, Any]) -> None:
    """Write a config.json."""
    files.write(folder / CONFIG, json.dumps(content, indent=2) + "\n")


class ModelFolder(NamedTuple):
    """A model in a folder, whose values are read when they are needed.

    Attributes:
      config: the model's configuration.
      shapes: path → shape, of each parameter. A GPT-2 has biases.
      read: path → float32 values. Raises InputError if a file cannot be read any more.
      layout: how matrices are stored in few bits, by its name in `layouts.LAYOUTS`; None if all
        tensors are stored as numbers.
    """

    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    layout: str | None


def load(folder: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model that transformers or `save` has written.

    Args:
      folder: with config.json and model.safetensors, or its shards and their index. Its matrices
        may be stored in few bits, in one of the layouts of `layouts.LAYOUTS`.

    Returns:
      (configuration, parameters). Parameters are float32 NumPy arrays in a nested dict, for
      `nnx.update(model, params)`. A GPT-2 has biases.

    Raises:
      InputError: as `open_folder`.
    """
    model = open_folder(folder)
    return model.config, nest_by_path({path: model.read(path) for path in model.shapes})


def open_folder(folder: str | os.PathLike[str]) -> ModelFolder:
    """Check the headers of a model that transformers or `save` has written.

    Args:
      folder: as for `load`.

    Raises:
      InputError: if the folder has no such model, or a damaged one; the message names the file and
        the field or tensor.
    """
    folder = Path(folder)
    try:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "is missing"
            raise InputError(f"{folder} {problem}; give a folder with {CONFIG}")
        if not (folder / CONFIG).exists():
            raise InputError(f"{folder} holds no {CONFIG}; give a folder of a saved model")
        content = safetensors_io.read_json(folder / CONFIG)
        config = from_json(content, folder / CONFIG)
        layout = layouts.find_layout(content, config.name, folder / CONFIG)
        tensors = safetensors_io.find_tensors(folder)
    except OSError as error:
        raise InputError(f"{folder}: {system_reason(error, 'give another')}") from None
    prefix = TABLES[config.name].prefix
    stored = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(stored) != len(tensors):
        raise InputError(
            f"{folder} has tensors with and without {prefix!r}; give an undamaged copy"
        )
    shapes = parameter_shapes(config)
    by_name = {n if n.startswith("lm_head.") else prefix + n: t for n, t in stored.items()}
    find_matrix = functools.partial(
        layouts.find_matrix, layout, content, by_name, path=folder / CONFIG
    )
    readers = _check(folder, config, stored, shapes, find_matrix)
    read = functools.partial(_read, config, readers, shapes)
    return ModelFolder(config, shapes, read, None if layout is None else layout.name)


def _read(
    config: ModelConfig,
    readers: dict[str, Callable[[], np.ndarray]],
    shapes: dict[str, tuple[int, ...]],
    path: str,
) -> np.ndarray:
    """One of our parameters, from the tensor of each layer that contains it."""
    values = np.empty(shapes[path], np.float32)
    entry = next(entry for entry in tensor_entries(config) if path in entry.paths)
    start = sum(shapes[other][-1] for other in entry.paths[: entry.paths.index(path)])
    for layer, name in layers_of(entry, config):
        value = readers[name]()
        value = value.T if entry.transposed else value
        target = values if layer is None else values[layer]
        target[...] = value[..., start : start + target.shape[-1]]
    return values


def _check(
    folder: Path,
    config: ModelConfig,
    stored: dict[str, StoredTensor],
    shapes: dict[str, tuple[int, ...]],
    find_matrix: Callable[..., layouts.StoredMatrix | None],
) -> dict[str, Callable[[], np.ndarray]]:
    """Return a function for each tensor, by name, that reads it.

    Raises InputError if the tensors are not those of the model.
    """
    known, readers = set(), {}
    prefix = TABLES[config.name].prefix
    for entry, layer, name in iterate_tensors(config):
        shape = stored_shape(entry, layer, shapes)
        if matrix := find_matrix(name if entry is HEAD else prefix + name, shape):
            readers[name] = matrix.read
            known |= {one.removeprefix(prefix) for one in matrix.names}
            continue
        if name not in stored:  # before listing more: the layers in config.json may be too many
            raise InputError(f"{folder}: no tensor {name}; {CONFIG} says it must have one")
        path, dtype, found, _ = stored[name]
        if found != shape:
            raise InputError(
                f"{path}: {name} is {_format_shape(found)}; by {CONFIG} it is "
                f"{_format_shape(shape)}"
            )
        if dtype not in safetensors_io.FLOAT_DTYPES:
            raise InputError(
                f"{path}: {name} is {dtype}; it must be {', '.join(safetensors_io.FLOAT_DTYPES)}"
            )
        readers[name] = functools.partial(safetensors_io.read_tensor, stored[name])
        known.add(name)
    if config.tie_embeddings and HEAD.name in stored:
        embedding = tensor_entries(config)[0].name
        head, embed = stored[HEAD.name], stored.get(embedding)
        same = embed is not None and head[1:3] == embed[1:3]
        if not same or (
            safetensors_io.read_tensor(head).tobytes() != readers[embedding]().tobytes()
        ):
            raise InputError(
                f"{head.path}: {HEAD.name} differs from {embedding}, and {CONFIG} has "
                "tie_word_embeddings=true; it must be false"
            )
        known.add(HEAD.name)
    if extra := sorted(n for n in stored if n not in known and not _IGNORED.fullmatch(n)):
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise InputError(
            f"{stored[extra[0]].path}: tensor {extra[0]}{more} is no part of the model that "
            f"{CONFIG} describes; give the folder of a plain model"
        )
    return readers


def nest_by_path(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nest a dict by the parts of its paths: {"h/mlp": x} → {"h": {"mlp": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _format_shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
