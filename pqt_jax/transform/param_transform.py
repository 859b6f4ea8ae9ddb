# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Rules on a tree of parameters: `param_transform`, pure functions in the manner of optax.

    init(params)               → bits          b_i = 1, one per block, nested like the parameters
    sample(params, bits, key)  → params_hat    ŵ for what the rules match, the rest untouched
    bit_widths(bits)           → b_t
    quantize(params, bits)     → params_q      deterministic, by the learned bits
    summary(params, bits)      → a table

Bits live in a nested dict of their own: parameters keep their paths and their dtypes, so a
checkpoint of the bare model is one of the transformed model, and back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import linen, nnx

from pqt_jax.numerics import bit_width, blocks, keys
from pqt_jax.numerics.deterministic_rounding import quantize_mixed
from pqt_jax.numerics.spec import Spec
from pqt_jax.transform.perturb import perturb
from pqt_jax.transform.rules import (
    Rule,
    check_rules,
    first_match,
    map_paths,
    paths_and_leaves,
    resolve,
)

Bits = dict[str, Any]
M = TypeVar("M", linen.Module, nnx.Module)


class _Sample(Protocol):
    def __call__(
        self, params: Any, bits: Bits, key: jax.Array, *, lead: jax.Array | int | None = None
    ) -> Any: ...


class ParamTransform(NamedTuple):
    """The functions of `param_transform`; each is pure.

    Attributes:
      init: `params -> bits`. Works on shapes too (`jax.eval_shape`).
      sample: `(params, bits, key, lead=None) -> params_hat`, differentiable in params and bits. The
        key is the step's (`keys.step_key`); each parameter's own is derived from its path. `lead`
        is the index of the layer, where params are one slice of stacked layers that share the key.
      bit_widths: `bits -> b_t`, the same nested dict in bits per weight.
      quantize: `(params, bits) -> params_q`: each block rounded to the smallest format that carries
        its b_t, see `deterministic_rounding.quantize_mixed`.
      summary: `(params, bits) -> str`, a table of path, shape, blocks, mean b_t and format.
    """

    init: Any
    sample: _Sample
    bit_widths: Any
    quantize: Any
    summary: Any


def param_transform(
    rules: Sequence[Rule], *, prefix: str = "", strict: bool = False
) -> ParamTransform:
    """Gaussian weight sampling as pure functions on a tree of parameters.

    Example:
      >>> params = {"dense": {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}}
      >>> transform = param_transform([Rule(".*kernel")])
      >>> bits = transform.init(params)
      >>> bits["dense"]["kernel"].shape
      (2, 2)
      >>> params_hat = transform.sample(params, bits, jax.random.key(0))
      >>> params_hat["dense"]["kernel"].dtype, params_hat["dense"]["bias"].dtype
      (dtype(bfloat16), dtype('float32'))

    Args:
      rules: ordered; the first whose pattern matches the whole `/`-joined path decides.
      prefix: put before every path, for a subtree of a larger model.
      strict: whether a parameter of two axes or more that no rule matches is an error.

    Returns:
      A `ParamTransform`. Its functions take any pytree of arrays: dict, FrozenDict, `nnx.State`.

    Raises:
      TypeError, ValueError: from its functions, as `rules.resolve` and `perturb` raise them; the
        message names the rule and the path.
    """
    rules = check_rules(rules)

    def specs_of(params: Any) -> dict[str, Spec]:
        return resolve(rules, paths_and_leaves(params, prefix), strict=strict)

    def map_sampled(function, params: Any) -> Any:
        """Apply `function(path, spec, leaf)` where a rule samples, and keep the rest."""
        specs = specs_of(params)

        def visit(path, leaf):
            if path not in specs:
                return leaf
            try:
                return function(path, specs[path], leaf)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None

        return map_paths(visit, params, prefix)

    def init(params: Any) -> Bits:
        shapes = paths_and_leaves(params, prefix)
        bits: Bits = {}
        for path, spec in specs_of(params).items():
            if spec.noise != "none":
                grid = blocks.grid_shape(shapes[path].shape, spec.block, spec.matrix_axes)
                _insert(bits, _relative(path, prefix), jnp.ones(grid, jnp.float32))
        return bits

    def sample(params, bits, key, *, lead=None):
        keys.check_key(key)
        if lead is None:
            keys.consume(key)  # slices of a stack share theirs

        def visit(path, spec, w):
            if spec.noise == "none":
                return perturb(w, None, None, spec)
            leads, _, _ = blocks.matrix_shape(w.shape, spec.matrix_axes)
            first = (0 if lead is None else lead) * leads
            b_i = _lookup(bits, path, prefix)
            return perturb(w, b_i, keys.param_key(key, path), spec, lead=first)

        return map_sampled(visit, params)

    def bit_widths(bits: Bits) -> Bits:
        def visit(path, b_i):
            rule = first_match(rules, path)
            if rule is None or rule.spec is None:
                raise ValueError(f"no rule samples {path!r}, yet it has bits")
            return bit_width.bit_width(b_i, rule.spec.target_bits, rule.spec.init_bits)

        return map_paths(visit, bits, prefix)

    def quantize_by_bits(params: Any, bits: Bits) -> Any:
        def visit(path, spec, w):
            if spec.noise == "none":
                return perturb(w, None, None, spec)
            b_i = _lookup(bits, path, prefix)
            b_t = bit_width.bit_width(b_i, spec.target_bits, spec.init_bits)
            return quantize_mixed(w, b_t, spec)

        return map_sampled(visit, params)

    def summary(params: Any, bits: Bits) -> str:
        return _table(paths_and_leaves(params, prefix), specs_of(params), bits, prefix)

    return ParamTransform(init, sample, bit_widths, quantize_by_bits, summary)


def _relative(path: str, prefix: str) -> list[str]:
    return path.removeprefix(f"{prefix}/" if prefix else "").split("/")


def _insert(tree: Bits, parts: Sequence[str], leaf: Any) -> None:
    *branch, name = parts
    for part in branch:
        tree = tree.setdefault(part, {})
    tree[name] = leaf


def _lookup(tree: Bits, path: str, prefix: str) -> jax.Array:
    node: Any = tree
    for part in _relative(path, prefix):
        try:
            node = node[part]
        except (KeyError, TypeError):
            raise ValueError(
                "bits has no entry for it; make bits with init(params) under the same rules"
            ) from None
    return node


def _table(shapes: dict[str, Any], specs: dict[str, Spec], bits: Bits, prefix: str) -> str:
    rows = [("path", "shape", "blocks", "mean b_t", "format")]
    for path, leaf in shapes.items():
        shape = "x".join(map(str, jnp.shape(leaf))) or "scalar"
        spec = specs.get(path)
        if spec is None:
            rows.append((path, shape, "", "", str(jnp.result_type(leaf))))
        elif spec.noise == "none":
            rows.append((path, shape, "", "", spec.dtype.name))
        else:
            b_i = _lookup(bits, path, prefix)
            blocks.check_grid(b_i, leaf, spec.block, spec.matrix_axes)
            b_t = bit_width.bit_width(b_i, spec.target_bits, spec.init_bits)
            mean = f"{float(jnp.mean(b_t)):.2f}"
            rows.append((path, shape, str(b_t.size), mean, f"{spec.dtype.name} + {spec.noise}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<>><", widths, strict=True))
    lines = [line.format(*row) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def pqt_transform(model: M, rules: Sequence[Rule], *, prefix: str = "", strict: bool = False) -> M:
    """Wrap any Flax model so that its weights are sampled.

    Parameters keep their paths and dtypes: a checkpoint of the bare model loads into the wrapped
    one and back. Wrap a whole model, or, where memory counts, the block inside its scan over
    layers: ŵ is then made for one layer at a time.

    NNX: the module returned is of a subclass of the model's class. Its call takes `pqt_key` (None
    is the bare model) and, for one layer of a stack, `pqt_lead`, the layer's index. Bits are
    variables of type `BitParam` under the attribute `pqt_bits`; the state without them,
    `nnx.state(wrapped, nnx.Not(BitParam))`, is that of the bare model. A call with a key runs on
    the module itself, which holds ŵ until it returns, and so not in two threads at once: all that
    it sets or makes stays; writing to a sampled parameter is an error, or, in a trace, undone
    (`nnx.WeightNorm` and `nnx.SpectralNorm` do so: wrap what is in them). What runs after the call
    has returned, a generator or a part of the model handed out, sees the bare weights.

    Linen: a module with the same variables and the collection "pqt", `{"bits": …}`, made by `init`.
    It samples when `apply` is given the rng stream "pqt"; without it the bare model runs. In a
    lifted transform both have to be named, as for any collection and rng: a scan over layers takes
    `variable_axes={"params": 0, "pqt": 0}` and `split_rngs={"params": True, "pqt": True}`; a scan
    that was not told of the rng runs the bare model.

    Both calls take `pqt_method`, the name of another method of the model to call in its place.

    Example:
      >>> from flax import nnx
      >>> model = pqt_transform(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), [Rule("kernel")])
      >>> x = jnp.ones((1, 64))
      >>> bool((model(x) == model(x, pqt_key=None)).all())
      True
      >>> bool((model(x) == model(x, pqt_key=jax.random.key(0))).all())
      False

    Args:
      model: a Linen or an NNX module. NNX: it is not changed; its arrays are shared, not copied.
      rules: as for `param_transform`.
      prefix: path of this module in the model that holds it; rules and keys see `prefix/path`.
      strict: whether a parameter of two axes or more that no rule matches is an error.

    Returns:
      The wrapped module.

    Raises:
      TypeError: if the model is neither; and as `param_transform`.
      ValueError: as `param_transform`; for Linen when `init` runs.
    """
    from pqt_jax.transform import linen_wrapper, nnx_wrapper  # both import this file

    rules = check_rules(rules)
    if isinstance(model, nnx.Module):
        return nnx_wrapper.wrap(model, rules, prefix, strict)
    if isinstance(model, linen.Module):
        return linen_wrapper.wrap(model, rules, prefix, strict)
    raise TypeError(f"model is of type {type(model).__name__}; give a Linen or an NNX module")
