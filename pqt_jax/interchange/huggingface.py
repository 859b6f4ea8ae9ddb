# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""GPT2 and Llama in the layout of Hugging Face transformers, written and read without that package.

    config.json                    huggingface_config
    model.safetensors (or shards)  safetensors_io

Each Hugging Face tensor is one of our parameters in one layer, or several of them concatenated
(c_attn of GPT-2 is q, k and v). Kernels of Llama are [out, in], so they are transposed. Kernels of
GPT-2 are [in, out], as ours are.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx

from pqt_jax.errors import InputError, system_reason
from pqt_jax.interchange import files, safetensors_io, safetensors_writer
from pqt_jax.interchange.folders import atomic_folder
from pqt_jax.interchange.huggingface_config import from_json, to_json
from pqt_jax.interchange.safetensors_io import StoredTensor
from pqt_jax.models import ModelConfig, build_model
from pqt_jax.transform.tree_paths import paths_and_leaves

CONFIG = "config.json"


class TensorEntry(NamedTuple):
    """A tensor of a Hugging Face model, or one tensor in each layer.

    Attributes:
      name: the tensor's name, with {} for the number of the layer.
      paths: the paths of our parameters in it, which are concatenated along their last axis.
      transposed: whether it is stored as [out, in].
    """

    name: str
    paths: tuple[str, ...]
    transposed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorTable:
    """The tensors of one model.

    Attributes:
      prefix: the prefix of all tensor names except the head's.
      entries: all tensors except the head.
      always_biased: whether transformers gives every linear layer and norm a bias.
    """

    prefix: str
    entries: list[TensorEntry]
    always_biased: bool


def _gpt2() -> list[TensorEntry]:
    entries = [
        TensorEntry("wte.weight", ("embed/embedding",)),
        TensorEntry("wpe.weight", ("pos/embedding",)),
    ]
    for theirs, ours in (("ln_1", "attn_norm"), ("ln_2", "mlp_norm"), ("ln_f", "norm")):
        theirs, ours = (theirs, ours) if ours == "norm" else (f"h.{{}}.{theirs}", f"h/{ours}")
        entries += [TensorEntry(f"{theirs}.weight", (f"{ours}/scale",))]
        entries += [TensorEntry(f"{theirs}.bias", (f"{ours}/bias",))]
    linear = {"attn.c_attn": ("attn/q", "attn/k", "attn/v"), "attn.c_proj": ("attn/out",)}
    linear |= {"mlp.c_fc": ("mlp/up",), "mlp.c_proj": ("mlp/down",)}
    for theirs, ours in linear.items():
        for part, name in (("weight", "kernel"), ("bias", "bias")):
            entries.append(
                TensorEntry(f"h.{{}}.{theirs}.{part}", tuple(f"h/{o}/{name}" for o in ours))
            )
    return entries


def _llama() -> list[TensorEntry]:
    entries = [TensorEntry("embed_tokens.weight", ("embed/embedding",))]
    entries += [TensorEntry("norm.weight", ("norm/scale",))]
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    for theirs, ours in norms.items():
        entries.append(TensorEntry(f"layers.{{}}.{theirs}.weight", (f"h/{ours}/scale",)))
    linear = {f"self_attn.{name}_proj": f"attn/{name}" for name in "qkv"}
    linear |= {"self_attn.o_proj": "attn/out"}
    linear |= {f"mlp.{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")}
    for theirs, ours in linear.items():
        entries.append(TensorEntry(f"layers.{{}}.{theirs}.weight", (f"h/{ours}/kernel",), True))
    return entries


TABLES = {  # by `ModelSpec.name`
    "gpt2": TensorTable(prefix="transformer.", entries=_gpt2(), always_biased=True),
    "llama2": TensorTable(prefix="model.", entries=_llama(), always_biased=False),
}
HEAD = TensorEntry("lm_head.weight", ("head/kernel",), True)
# Buffers that older versions of transformers saved. They contain no learned values.
_IGNORED = re.compile(r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def tensor_entries(config: ModelConfig) -> list[TensorEntry]:
    """List all tensors of a model, by their names without the prefix."""
    table = TABLES[config.name].entries
    return table if config.tie_embeddings else [*table, HEAD]


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

    GPT-2 in transformers always has biases. A model without biases is written with zeros.

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
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype={dtype!r}; it must be bfloat16 or float32")
    leaves = {path: np.asarray(leaf) for path, leaf in paths_and_leaves(params).items()}
    shapes = _shapes(config)
    for path in sorted(shapes.keys() | leaves.keys()):
        if path not in shapes or path not in leaves or leaves[path].shape != shapes[path]:
            shape = leaves[path].shape if path in leaves else "missing"
            raise ValueError(
                f"parameter {path!r} is {shape}, the model's {shapes.get(path, 'none')}"
            )
    whole = _shapes(_with_biases(config))
    leaves |= {p: np.zeros(shape, np.float32) for p, shape in whole.items() if p not in leaves}
    prefix = TABLES[config.name].prefix
    values = {}
    for entry, layer, name in _iterate_tensors(config):
        arrays = [leaves[path] if layer is None else leaves[path][layer] for path in entry.paths]
        value = np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
        name = name if entry is HEAD else prefix + name
        values[name] = value.T if entry.transposed else value
    with atomic_folder(folder, overwrite) as temporary:
        safetensors_writer.write_tensors(temporary, values, dtype, shard_bytes)
        files.write(temporary / CONFIG, json.dumps(to_json(config, dtype), indent=2) + "\n")


def load(folder: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model that transformers or `save` has written.

    Args:
      folder: with config.json and model.safetensors, or its shards and their index.

    Returns:
      (configuration, parameters). Parameters are float32 NumPy arrays in a nested dict, for
      `nnx.update(model, params)`. A GPT-2 has biases.

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
        config = from_json(safetensors_io.read_json(folder / CONFIG), folder / CONFIG)
        tensors = safetensors_io.find_tensors(folder)
    except OSError as error:
        raise InputError(f"{folder}: {system_reason(error, 'give another')}") from None
    prefix = TABLES[config.name].prefix
    stored = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(stored) != len(tensors):
        raise InputError(
            f"{folder} has tensors with and without {prefix!r}; give an undamaged copy"
        )
    shapes = _shapes(config)
    _check(folder, config, stored, shapes)

    leaves = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for entry, layer, name in _iterate_tensors(config):
        value = safetensors_io.read_tensor(stored[name])
        value = value.T if entry.transposed else value
        start = 0
        for path in entry.paths:
            target = leaves[path] if layer is None else leaves[path][layer]
            target[...] = value[..., start : start + target.shape[-1]]
            start += target.shape[-1]
    return config, nest_by_path(leaves)


def _check(
    folder: Path,
    config: ModelConfig,
    stored: dict[str, StoredTensor],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Raise InputError if the tensors are not those of the model."""
    known = set()
    for entry, layer, name in _iterate_tensors(config):
        if name not in stored:  # before listing more: the layers in config.json may be too many
            raise InputError(f"{folder}: no tensor {name}; {CONFIG} says it must have one")
        joined = [shapes[path] if layer is None else shapes[path][1:] for path in entry.paths]
        shape = (*joined[0][:-1], sum(one[-1] for one in joined))
        shape = shape[::-1] if entry.transposed else shape
        path, dtype, stored_shape, _ = stored[name]
        if stored_shape != shape:
            raise InputError(
                f"{path}: {name} is {_format_shape(stored_shape)}; by {CONFIG} it is "
                f"{_format_shape(shape)}"
            )
        if dtype not in safetensors_io.FLOAT_DTYPES:
            raise InputError(
                f"{path}: {name} is {dtype}; it must be {', '.join(safetensors_io.FLOAT_DTYPES)}"
            )
        known.add(name)
    if config.tie_embeddings and HEAD.name in stored:
        embedding = tensor_entries(config)[0].name
        head, embed = stored[HEAD.name], stored[embedding]
        same = head[1:3] == embed[1:3]
        if (
            not same
            or safetensors_io.read_tensor(head).tobytes()
            != safetensors_io.read_tensor(embed).tobytes()
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
            f"{CONFIG} describes; give the folder of a plain GPT2 or Llama"
        )


def _iterate_tensors(config: ModelConfig) -> Iterator[tuple[TensorEntry, int | None, str]]:
    """Yield (entry, layer, name without prefix) of each tensor."""
    for entry in tensor_entries(config):
        if "{}" not in entry.name:
            yield entry, None, entry.name
    for layer in range(config.num_layers):
        for entry in tensor_entries(config):
            if "{}" in entry.name:
                yield entry, layer, entry.name.format(layer)


def _with_biases(config: ModelConfig) -> ModelConfig:
    options: Any = {"bias": True} if TABLES[config.name].always_biased else {}
    return dataclasses.replace(config, **options)


@functools.cache
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of the model, by its path."""
    state = nnx.state(nnx.eval_shape(lambda: build_model(config, rngs=nnx.Rngs(0))), nnx.Param)
    return {path: leaf.shape for path, leaf in paths_and_leaves(state).items()}


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
