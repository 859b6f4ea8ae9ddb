# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform`: sampled weights for a whole Flax model, NNX or Linen."""

from collections.abc import Sequence
from typing import TypeVar

from flax import linen, nnx

from pqt_jax.transform import linen_wrapper, nnx_wrapper
from pqt_jax.transform.rules import Rule, check_rules

M = TypeVar("M", linen.Module, nnx.Module)


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
    rules = check_rules(rules)
    if isinstance(model, nnx.Module):
        return nnx_wrapper.wrap(model, rules, prefix, strict)
    if isinstance(model, linen.Module):
        return linen_wrapper.wrap(model, rules, prefix, strict)
    raise TypeError(f"model is of type {type(model).__name__}; give a Linen or an NNX module")
