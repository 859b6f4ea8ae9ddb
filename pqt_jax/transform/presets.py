# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rules for the layers that Flax has, found by the names and shapes of their parameters.

params → what each parameter is → one rule for each kind

Dense layers, convolutions, recurrent cells and experts have kernels whose last two axes are the
matrix. Attention has weights of three axes, (width, heads, width of a head) and back: Flax's own
are known by their names, others by the shapes of two weights of one module, which fit each other.
Embeddings, biases, scales and depthwise convolutions are not sampled. What is none of these is left
undecided, and `pqt_jax.summary` lists it.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

from flax import linen, nnx

from pqt_jax.transform.rules import Rule, list_some
from pqt_jax.transform.tree_paths import paths_and_leaves

Kind = Literal["matrix", "projection to heads", "projection from heads", "not sampled", "undecided"]

MATRIX_AXES: dict[Kind, tuple[int, int]] = {
    "matrix": (1, 1),
    "projection to heads": (1, 2),
    "projection from heads": (2, 1),
}

NAMES_NOT_SAMPLED = ("embedding", "bias", "scale")
PROJECTIONS = ("query", "key", "value", "out")
_OPTIONS = [
    n for n in signature(Rule).parameters if n not in ("pattern", "matrix_axes", "sharding")
]
LARGEST_WINDOW = 32  # of a depthwise convolution (…, window, 1, channels)


def flax(model: Any, **options: Any) -> list[Rule]:
    """Make rules for a model that is built from Flax's own layers.

    Example:
      >>> attention = nnx.MultiHeadAttention(4, 64, 64, decode=False, rngs=nnx.Rngs(0))
      >>> for rule in flax(attention, target_bits=3):
      ...     print(rule.pattern, rule.spec and rule.spec.matrix_axes)
      (.*/)?(key/bias|query/bias|value/bias) None
      (.*/)?(key/kernel|query/kernel|value/kernel) (1, 2)
      (.*/)?(out/kernel) (2, 1)

    Args:
      model: an NNX module, or a pytree of parameters or of their shapes, such as
        `jax.eval_shape(model.init, key, x)["params"]` of a Linen module.
      options: of every rule that samples, as for `Rule`, without `matrix_axes` and `sharding`.

    Returns:
      Rules for `pqt_transform`, `param_transform` and the rest.

    Raises:
      ValueError: if there is nothing that they would sample.
      TypeError: for a Linen module, and for another option.
    """
    if wrong := set(options) - set(_OPTIONS):
        raise TypeError(
            f"presets.flax has no option {min(wrong)!r}; it takes {', '.join(_OPTIONS)}. A rule "
            "with matrix_axes of its own goes before those of the preset: "
            "[Rule(pattern, matrix_axes=…), *presets.flax(model)]"
        )
    if isinstance(model, linen.Module):
        raise TypeError(
            f"{type(model).__name__} is a Linen module, which has no parameters of its own; give "
            'their shapes: presets.flax(jax.eval_shape(model.init, key, x)["params"])'
        )
    params = nnx.state(model, nnx.Param) if isinstance(model, nnx.Module) else model
    kinds = classify(params)
    rules = [Rule(pattern, None)] if (pattern := _pattern(kinds, "not sampled")) else []
    for kind, matrix_axes in MATRIX_AXES.items():
        if pattern := _pattern(kinds, kind):
            rules.append(Rule(pattern, matrix_axes=matrix_axes, **options))
    if not any(rule.spec for rule in rules):
        paths = [path for path, kind in kinds.items() if kind == "undecided"]
        raise ValueError(
            "no parameter has the name and shape of a kernel of Flax's layers"
            + (f"; write rules by hand, for {list_some(paths)}" if paths else "")
        )
    return rules


def classify(params: Any) -> dict[str, Kind]:
    """Tell what each parameter of two axes or more is, by path.

    Example:
      >>> import jax.numpy as jnp
      >>> classify({"dense": {"kernel": jnp.ones((4, 4))}, "table": jnp.ones((4, 4))})
      {'dense/kernel': 'matrix', 'table': 'undecided'}

    Args:
      params: pytree of arrays or of their shapes. Vectors and scalars are left out.

    Returns:
      path → kind. A "matrix" is the last two axes; attention projects to and from heads; the other
      kinds are "not sampled" and "undecided".
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in paths_and_leaves(params).items()}
    projections = _find_projections(shapes)
    return {
        path: projections.get(path) or _kind(path, shapes)
        for path, shape in shapes.items()
        if len(shape) >= 2
    }


def describe(path: str, shape: tuple[int, ...]) -> str:
    """Say in words what a parameter that no rule decides about probably is.

    Example:
      >>> describe("encoder/pos_embed", (1, 196, 768))
      'probably an embedding: Rule(pattern, None) leaves it alone'
    """
    name = path.split("/")[-1]
    if "emb" in name or name in ("wte", "wpe", "cls", "table"):
        return "probably an embedding: Rule(pattern, None) leaves it alone"
    if "bias" in name or "scale" in name:
        return "probably a bias or a scale of several axes: Rule(pattern, None) leaves it alone"
    if math.prod(shape) == max(shape):
        return "probably a vector: Rule(pattern, None) leaves it alone"
    if shape[-2] == 1 and max(shape[:-2]) <= LARGEST_WINDOW:
        return "probably a depthwise convolution: Rule(pattern, None) leaves it alone"
    if len(shape) == 2:
        return "probably a matrix: Rule(pattern) samples it"
    return (
        "probably a stack of matrices, or an einsum of several axes: name its two axes in "
        "Rule(pattern, matrix_axes=…)"
    )


def _kind(path: str, shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    shape = shapes[path]
    *folders, name = path.split("/")
    if name in NAMES_NOT_SAMPLED:
        return "not sampled"
    if name != "kernel":
        return "undecided"
    if shape[-2] == 1:  # a depthwise convolution, or one row
        return "undecided" if max(shape[:-2], default=1) > LARGEST_WINDOW else "not sampled"
    bias = shapes.get("/".join([*folders, "bias"]))
    if len(shape) >= 3 and bias == (*shape[:-3], *shape[-2:]) != (*shape[:-2], shape[-1]):
        return "projection to heads"  # of a layer alone: a bias has the axes of the output
    if folders and folders[-1] in PROJECTIONS and len(shape) >= 3:
        return "undecided"  # a stack of matrices, or another attention than Flax's
    return "matrix"


def _find_projections(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Kind]:
    """Find the weights of attention, by path: those of one module, which fit each other."""
    modules: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = defaultdict(dict)
    for path, shape in shapes.items():
        *above, layer, name = ["", *path.split("/")]
        if layer and len(shape) >= 3 and name not in NAMES_NOT_SAMPLED:
            modules[*above, name, shape[:-3]][path] = shape
    kinds: dict[str, Kind] = {}
    for weights in modules.values():
        for query, back in itertools.permutations(weights, 2):
            if _is_attention(weights, query, back):
                _, heads, width = weights[query][-3:]
                for path, shape in weights.items():  # keys and values, too, may share heads
                    if shape[-1] == width and heads % shape[-2] == 0:
                        kinds[path] = "projection to heads"
                kinds[back] = "projection from heads"
    return kinds


def _is_attention(weights: Mapping[str, tuple[int, ...]], query: str, back: str) -> bool:
    """Whether two weights lead to the same heads and back.

    That the input is wider than the number of heads tells them apart from convolutions such as
    (3, 3, 3, 32) and (3, 3, 32, 3), and from stacks such as (64, 64, 96) and (64, 96, 64).
    """
    inputs, outputs = weights[query], weights[back]
    if inputs[-2:] != outputs[-3:-1]:
        return False
    names = tuple(path.split("/")[-2] for path in (query, back))
    return names == ("query", "out") or inputs[-3] == outputs[-1] > inputs[-2]


def _pattern(kinds: Mapping[str, Kind], kind: Kind) -> str:
    """Match every path of a kind: by the last two names where these tell the kind apart."""
    ends: dict[str, set[Kind]] = {}
    for path, found in kinds.items():
        ends.setdefault(_end(path), set()).add(found)
    short = sorted({_end(path) for path in kinds if ends[_end(path)] == {kind}})
    whole = [path for path, found in kinds.items() if found == kind and ends[_end(path)] != {kind}]
    choices = []
    if short:
        choices.append(f"(.*/)?({'|'.join(map(re.escape, short))})")
    choices.extend(map(re.escape, whole))
    return "|".join(choices)


def _end(path: str) -> str:
    return "/".join(path.split("/")[-2:])
