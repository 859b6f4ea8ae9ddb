# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""GPT2 and Llama as GGUF files, which llama.cpp runs, written and read.

A tensor of GGUF is a tensor of Hugging Face under another name. Every matrix is [out, in], also in
GPT-2. In a query or key of "llama", llama.cpp rotates neighbours, and Hugging Face the elements of
its two halves, so rows of q and k are stored in another order:

    stored row  2i, 2i + 1  of a head of size d   =   our row  i, i + d/2

Source: llama.cpp, `convert_hf_to_gguf.py` and `gguf-py/gguf/tensor_mapping.py`.
"""

import collections
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pqt_jax.errors import InputError
from pqt_jax.interchange import (
    gguf_config,
    gguf_reader,
    gguf_rotary,
    gguf_tensors,
    gguf_writer,
    huggingface,
    huggingface_tensors,
)
from pqt_jax.interchange.gguf_reader import GGUF, Value
from pqt_jax.interchange.gguf_tensors import Part, TensorType
from pqt_jax.interchange.huggingface_tensors import TensorEntry
from pqt_jax.models import GPT2Config, Llama2Config, ModelConfig

Place = tuple[TensorEntry, int | None]  # an entry, and the number of the layer
_GPT2 = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "h.{}.ln_1": "blk.{}.attn_norm",
    "h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "h.{}.attn.c_proj": "blk.{}.attn_output",
    "h.{}.ln_2": "blk.{}.ffn_norm",
    "h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "h.{}.mlp.c_proj": "blk.{}.ffn_down",
    "lm_head": "output",
}
_LLAMA = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "layers.{}.input_layernorm": "blk.{}.attn_norm",
    "layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
    "layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "layers.{}.mlp.down_proj": "blk.{}.ffn_down",
    "lm_head": "output",
}
_NAMES = {"gpt2": _GPT2, "llama2": _LLAMA}  # by `ModelSpec.name`: name of Hugging Face → of GGUF
# general.file_type, which says what most weights are.
_FILE_TYPES = {TensorType.F32: 0, TensorType.Q8_0: 7, TensorType.BF16: 32, TensorType.MXFP4: 38}


def places(config: ModelConfig) -> Iterator[Place]:
    """Yield all tensors of a model, entry by entry, and of each entry layer by layer."""
    for entry in huggingface_tensors.tensor_entries(config):
        if not _is_stored(config, entry):
            continue
        layers = range(config.num_layers) if "{}" in entry.name else (None,)
        yield from ((entry, layer) for layer in layers)


def write(
    path: str | os.PathLike[str],
    config: ModelConfig,
    values: Iterable[tuple[Place, Sequence[Part]]],
    *,
    tokenizer: Mapping[str, Value],
    name: str,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> None:
    """Write a model tensor by tensor, so that one tensor at a time is in memory.

    Args:
      path: the file, in a folder that gets its name when all is complete (`folders.atomic_folder`).
      config: the model's configuration.
      values: for each of `places`, in any order, what `TensorEntry.paths` lists: of each kernel a
        matrix [out, in], in few bits or as numbers; an embedding [vocabulary, d_model], likewise;
        or a vector of numbers. Biases of GPT-2 that are left out are zeros.
      tokenizer: metadata from `gguf_tokenizer`.
      name: the model's name, for people.
      dtype: what matrices of float32 numbers are rounded to. Those of bfloat16 and vectors are
        stored as they are.

    Raises:
      InputError: if llama.cpp has no such model, see `gguf_config.choose_architecture`.
      OutputError: if the file cannot be written.
      ValueError: if the values are not those of the model.
    """
    architecture = gguf_config.choose_architecture(config)
    shapes = _shapes(config)
    numbers = TensorType.F32 if dtype == "float32" else TensorType.BF16
    metadata = gguf_config.to_metadata(config)
    metadata |= {"general.name": name, "general.file_type": 0, "general.quantization_version": 2}
    metadata |= tokenizer
    weights: collections.Counter[TensorType] = collections.Counter()
    with gguf_writer.create(Path(path), metadata, shapes) as store:
        missing = dict(shapes)
        for (entry, layer), parts in values:
            if not _is_stored(config, entry):
                continue
            target = _name(config, entry, layer)
            shape = missing.pop(target)
            order = _order(config, entry, architecture)
            if len(shape) == 1:
                vector = np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
                kind, data = TensorType.F32, vector[order].astype(np.float32)
            else:
                kind, data = gguf_tensors.encode(parts, numbers)
                data = data[order]
                weights[kind] += math.prod(shape)
            if data.nbytes != gguf_tensors.size(kind, shape):
                raise ValueError(f"{target} has {data.nbytes} bytes of {kind.name}, not {shape}")
            store(target, kind, data)
        if (divisors := gguf_rotary.divisors(config)) is not None:
            store(gguf_rotary.TENSOR, TensorType.F32, divisors)
        for target, shape in missing.items():
            if target.endswith(".bias"):
                store(target, TensorType.F32, np.zeros(shape, np.float32))
        if weights:
            metadata["general.file_type"] = _FILE_TYPES[weights.most_common(1)[0][0]]


def load(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a GPT-2 or a Llama.

    Args:
      path: a GGUF file whose tensors have types of `gguf_tensors.TensorType`.

    Returns:
      (configuration, parameters), as `huggingface.load`.

    Raises:
      InputError: if it holds no such model, or is damaged; the message names the file and the
        metadata or tensor.
    """
    file = gguf_reader.read(Path(path))
    gguf_config.find_architecture(file)
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{path}: no tensor token_embd.weight; give a file of a whole model")
    config = gguf_rotary.read_scaling(file, gguf_config.from_metadata(file))
    _check(file, config)
    shapes = huggingface_tensors.parameter_shapes(config)
    leaves = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for entry, layer in places(config):
        value = _read_tensor(file, config, entry, layer)
        start = 0
        for leaf in entry.paths:
            target = leaves[leaf] if layer is None else leaves[leaf][layer]
            target[...] = value[..., start : start + target.shape[-1]]
            start += target.shape[-1]
    return config, huggingface.nest_by_path(leaves)


def _read_tensor(
    file: GGUF, config: ModelConfig, entry: TensorEntry, layer: int | None
) -> np.ndarray:
    """The numbers of a tensor; a kernel is [in, out], as ours are."""
    name = _name(config, entry, layer)
    code, shape, _ = file.tensors[name]
    kind = TensorType(code)
    data = gguf_reader.read_data(file, name, gguf_tensors.size(kind, shape))
    value = gguf_tensors.decode(kind, data, shape)
    order = _order(config, entry, gguf_config.find_architecture(file))
    if not isinstance(order, slice):
        value = value[np.argsort(order)]
    return huggingface_tensors.transpose(value) if _is_kernel(entry) else value


def _check(file: GGUF, config: ModelConfig) -> None:
    """Raise InputError if the tensors are not those of the model, or do not fill the file."""
    for entry, layer in places(config):  # before listing more: there may be too many layers
        if (name := _name(config, entry, layer)) not in file.tensors:
            raise InputError(f"{file.path}: no tensor {name}; the metadata say it must have one")
    shapes = _shapes(config)
    position = file.start
    for name, (code, shape, offset) in file.tensors.items():
        if name not in shapes:
            raise InputError(
                f"{file.path}: tensor {name} is no part of the model that the metadata describe; "
                "give the file of a plain GPT2 or Llama"
            )
        if shape != shapes[name]:
            stored, wanted = ("×".join(map(str, one)) for one in (shape, shapes[name]))
            raise InputError(f"{file.path}: {name} is {stored}; by the metadata it is {wanted}")
        if code not in tuple(TensorType):
            *most, last = (kind.name for kind in TensorType)
            raise InputError(
                f"{file.path}: {name} is {gguf_tensors.name_type(code)}; it must be "
                f"{', '.join(most)} or {last}"
            )
        kind = TensorType(code)
        if offset != position or shape[-1] % kind.block[0]:
            raise InputError(f"{file.path} is damaged ({name}); put a whole copy there")
        position += gguf_reader.padded(gguf_tensors.size(kind, shape))


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a file, by its name."""
    shapes = {_name(config, entry, layer): _shape(config, entry) for entry, layer in places(config)}
    if (divisors := gguf_rotary.divisors(config)) is not None:
        shapes[gguf_rotary.TENSOR] = divisors.shape
    return shapes


def _shape(config: ModelConfig, entry: TensorEntry) -> tuple[int, ...]:
    """The shape of a tensor, in one layer."""
    whole = huggingface_tensors.parameter_shapes(huggingface_tensors.with_biases(config))
    parts = [whole[path][1:] if "{}" in entry.name else whole[path] for path in entry.paths]
    shape = (*parts[0][:-1], sum(part[-1] for part in parts))
    return shape[::-1] if _is_kernel(entry) else shape


def _is_stored(config: ModelConfig, entry: TensorEntry) -> bool:
    """Whether llama.cpp has a tensor: of biases that our model lacks only those of GPT-2."""
    shapes = huggingface_tensors.parameter_shapes(config)
    return isinstance(config, GPT2Config) or entry.paths[0] in shapes


def _is_kernel(entry: TensorEntry) -> bool:
    return entry.paths[0].endswith("/kernel")


def _name(config: ModelConfig, entry: TensorEntry, layer: int | None) -> str:
    stem, suffix = entry.name.rsplit(".", 1)
    return f"{_NAMES[config.name][stem]}.{suffix}".format(layer)


def _order(config: ModelConfig, entry: TensorEntry, architecture: str) -> Any:
    """The numbers of our rows in the order in which they are stored."""
    if architecture != "llama" or not isinstance(config, Llama2Config):
        return slice(None)
    heads = {"h/attn/q": config.num_heads, "h/attn/k": config.kv_heads}
    if (count := heads.get(entry.paths[0].rsplit("/", 1)[0])) is None:
        return slice(None)
    rows = np.arange(count * config.head_width).reshape(count, 2, -1)
    return rows.swapaxes(1, 2).reshape(-1)
