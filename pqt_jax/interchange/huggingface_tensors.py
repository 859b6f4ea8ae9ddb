# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which tensor of a Hugging Face model holds which of our parameters.

Each tensor is one of our parameters in one layer, or several of them concatenated (c_attn of GPT-2
is q, k and v). Kernels of Llama and its kin are [out, in], so they are transposed.
Kernels of GPT-2 are [in, out], as ours are.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from pqt_jax.models import GPT2Config, ModelConfig, build_model
from pqt_jax.transform.tree_paths import paths_and_leaves


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
      entries: the model's configuration → all tensors except the head.
    """

    prefix: str
    entries: Callable[[Any], list[TensorEntry]]


def _gpt2(_: Any) -> list[TensorEntry]:
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


def _llama(config: Any) -> list[TensorEntry]:
    entries = [TensorEntry("embed_tokens.weight", ("embed/embedding",))]
    entries += [TensorEntry("norm.weight", ("norm/scale",))]
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    for theirs, ours in norms.items():
        entries.append(TensorEntry(f"layers.{{}}.{theirs}.weight", (f"h/{ours}/scale",)))
    biased = {"none": "", "qkv": "qkv", "all": "qkvo"}[config.attention_bias]
    attention = {name: f"h/attn/{name}" for name in "qkv"} | {"o": "h/attn/out"}
    for name, ours in attention.items():
        theirs = f"layers.{{}}.self_attn.{name}"
        entries.append(TensorEntry(f"{theirs}_proj.weight", (f"{ours}/kernel",), True))
        if name in biased:
            entries.append(TensorEntry(f"{theirs}_proj.bias", (f"{ours}/bias",)))
        if config.qk_norm and name in "qk":
            entries.append(TensorEntry(f"{theirs}_norm.weight", (f"{ours}_norm/scale",)))
    linear = {f"mlp.{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")}
    for theirs, ours in linear.items():
        entries.append(TensorEntry(f"layers.{{}}.{theirs}.weight", (f"h/{ours}/kernel",), True))
    return entries


TABLES = {  # by `ModelSpec.name`
    "gpt2": TensorTable(prefix="transformer.", entries=_gpt2),
    "llama2": TensorTable(prefix="model.", entries=_llama),
}
HEAD = TensorEntry("lm_head.weight", ("head/kernel",), True)


def tensor_entries(config: ModelConfig) -> list[TensorEntry]:
    """List all tensors of a model, by their names without the prefix."""
    table = TABLES[config.name].entries(with_biases(config))
    return table if config.tie_embeddings else [*table, HEAD]


class ModelTensor(NamedTuple):
    """A tensor of a Hugging Face model.

    Attributes:
      name: its name.
      entry: its entry in the table.
      layer: the number of its layer; None if it is in none.
      shape: its shape, as it is stored.
    """

    name: str
    entry: TensorEntry
    layer: int | None
    shape: tuple[int, ...]


def list_tensors(config: ModelConfig) -> list[ModelTensor]:
    """List all tensors that `save` writes, those of a layer together."""
    whole = with_biases(config)
    shapes, prefix = parameter_shapes(whole), TABLES[config.name].prefix
    tensors = []
    for entry, layer, name in iterate_tensors(whole):
        name = name if entry is HEAD else prefix + name
        tensors.append(ModelTensor(name, entry, layer, stored_shape(entry, layer, shapes)))
    return tensors


def stored_shape(
    entry: TensorEntry, layer: int | None, shapes: dict[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The shape of a tensor as it is stored, from the shapes of our parameters by path."""
    joined = [shapes[path] if layer is None else shapes[path][1:] for path in entry.paths]
    shape = (*joined[0][:-1], sum(one[-1] for one in joined))
    return shape[::-1] if entry.transposed else shape


def stored_values(
    tensors: Iterable[ModelTensor], read: Callable[[str], np.ndarray]
) -> Iterator[tuple[ModelTensor, list[np.ndarray]]]:
    """Read our parameters, each one once, and yield what each tensor contains.

    Args:
      tensors: from `list_tensors`.
      read: path → our parameter, with a leading axis over the layers.

    Yields:
      (tensor, its parts: one matrix [in, out] or vector for each path of its entry). All tensors of
      an entry follow each other, so parameters of two entries are in memory at a time.
    """
    by_entry: dict[TensorEntry, list[ModelTensor]] = {}
    for tensor in tensors:
        by_entry.setdefault(tensor.entry, []).append(tensor)
    entries = list(by_entry)

    def read_entry(entry: TensorEntry) -> list[np.ndarray]:
        return [read(path) for path in entry.paths]

    with futures.ThreadPoolExecutor(1) as pool:  # files are read while tensors are rounded
        coming = pool.submit(read_entry, entries[0])
        for entry, following in zip(entries, [*entries[1:], None], strict=True):
            arrays = coming.result()
            if following is not None:
                coming = pool.submit(read_entry, following)
            for tensor in by_entry[entry]:
                at = () if tensor.layer is None else (tensor.layer,)
                yield tensor, [array[at] if at else array for array in arrays]


def join(tensor: ModelTensor, parts: list[np.ndarray]) -> np.ndarray:
    """The values of a tensor as they are stored, from its parts in `stored_values`."""
    value = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    return transpose(value) if tensor.entry.transposed else value


def transpose(x: np.ndarray) -> np.ndarray:
    """A copy of x.T, made by strips that fit the cache: in half the time of NumPy's."""
    copy = np.empty(x.shape[::-1], x.dtype)
    for start in range(0, len(x), 64):
        copy[:, start : start + 64] = x[start : start + 64].T
    return copy


def add_zeros(
    config: ModelConfig, read: Callable[[str], np.ndarray]
) -> Callable[[str], np.ndarray]:
    """Let a reader of a model's parameters return zeros for biases that only `save` writes."""
    own, whole = parameter_shapes(config), parameter_shapes(with_biases(config))
    return lambda path: read(path) if path in own else np.zeros(whole[path], np.float32)


def iterate_tensors(config: ModelConfig) -> Iterator[tuple[TensorEntry, int | None, str]]:
    """Yield (entry, layer, name without prefix) of each tensor."""
    entries = tensor_entries(config)
    for entry in entries:
        if "{}" not in entry.name:
            yield entry, None, entry.name
    for layer in range(config.num_layers):
        for entry in entries:
            if "{}" in entry.name:
                yield entry, layer, entry.name.format(layer)


def layers_of(entry: TensorEntry, config: ModelConfig) -> list[tuple[int | None, str]]:
    """(layer, name without prefix) of each tensor of an entry."""
    if "{}" not in entry.name:
        return [(None, entry.name)]
    return [(layer, entry.name.format(layer)) for layer in range(config.num_layers)]


def with_biases(config: ModelConfig) -> ModelConfig:
    """The configuration with the biases that transformers has besides those of the model."""
    if isinstance(config, GPT2Config):
        return dataclasses.replace(config, bias=True)
    if config.qk_norm and config.attention_bias == "qkv":
        return dataclasses.replace(config, attention_bias="all")
    return config


@functools.cache
def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of the model, by its path."""
    state = nnx.state(nnx.eval_shape(lambda: build_model(config, rngs=nnx.Rngs(0))), nnx.Param)
    return {path: leaf.shape for path, leaf in paths_and_leaves(state).items()}
