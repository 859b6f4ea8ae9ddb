# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`pqt_transform`: sampled weights for a whole Flax model, NNX or Linen."""

from collections.abc import Sequence
from typing import TypeVar

from flax import linen, nnx

from pqt_jax.transform import linen_wrapper, nnx_wrapper
from pqt_jax.transform.rules import Rule, check_rules

M = TypeVar("M", linen.Module, nnx.Module)


def pqt_transform(
    model: M,
    rules: Sequence[Rule],
    *,
    prefix: str = "",
    strict: bool = False,
    require_key: bool = False,
) -> M:
    """Wrap a Flax model, NNX or Linen, so that its weights are sampled.

    Parameters keep their paths and dtypes. A checkpoint of the bare model loads into the wrapped
    one, and a checkpoint of the wrapped one into the bare model. Wrap a whole model, or, to save
    memory, the block inside its scan over layers: then ŵ exists for one layer at a time.

    **NNX.** The result is a module of a subclass of the model's class. Its call takes `pqt_key`
    (None runs the bare model) and `pqt_lead`, the index of the layer for one layer of a stack. The
    bits are variables of type `BitParam` under the attribute `pqt_bits`. The state without them,
    `nnx.state(wrapped, nnx.Not(BitParam))`, is the state of the bare model.

    A sampled call runs on the module itself, whose variables hold ŵ until the call returns. So it
    must not run in two threads at once. Whatever the call sets or creates stays. Writing to a
    sampled parameter raises an error, or, under a trace, is undone. `nnx.WeightNorm` and
    `nnx.SpectralNorm` write to parameters: wrap the layer inside them. Code that runs after the
    call has returned, such as a generator, sees the bare weights.

    The call also takes `pqt_method`, the name of a method to call instead of `__call__`. `with_key`
    samples for functions that call the model themselves.

    **Linen.** The result is a module of a subclass of the model's class, with the same variables
    and one more collection, "pqt", which is `{"bits": …}` and is made by `init`. It samples if
    `apply` gets the rng stream "pqt", and otherwise runs the bare model, however it is called:
    `method=`, functions of the bare class, `bind`, layers that are read from it. A lifted transform
    must name both, as it must any collection and rng: a scan over layers takes
    `variable_axes={"params": 0, "pqt": 0}` and `split_rngs={"params": True, "pqt": True}`. A scan
    without the rng runs the bare model. A module that has its place in a parent is wrapped there.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> model = pqt_transform(nnx.Linear(64, 64, rngs=nnx.Rngs(0)), [Rule("kernel")])
      >>> x = jnp.ones((1, 64))
      >>> bool((model(x) == model(x, pqt_key=None)).all())
      True
      >>> bool((model(x) == model(x, pqt_key=jax.random.key(0))).all())
      False

    Args:
      model: a Linen or an NNX module. An NNX module is not changed; the result shares its arrays.
      rules: as for `param_transform`.
      prefix: path of this module in a larger model; rules and keys see `prefix/path`.
      strict: whether a parameter of two axes or more that no rule matches is an error.
      require_key: whether a call without a key is an error. To run the bare model on purpose, call
        `eval()` of an NNX module first, and give a Linen module variables without bits.

    Returns:
      The wrapped module.

    Raises:
      TypeError: if the model is neither; and as `param_transform`.
      ValueError: as `param_transform`; for a Linen model when `init` runs.
    """
    rules = check_rules(rules)
    options = {"prefix": prefix, "strict": strict, "require_key": require_key}
    if isinstance(model, nnx.Module):
        return nnx_wrapper.wrap(model, rules, **options)
    if isinstance(model, linen.Module):
        return linen_wrapper.wrap(model, rules, **options)
    raise TypeError(f"model is of type {type(model).__name__}; give a Linen or an NNX module")
