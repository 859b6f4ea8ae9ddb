# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Classes of wrapped modules are made from the bare class, and are pickled as what made them."""

import copyreg
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pqt_jax.transform.rules import Rule


class Recipe(NamedTuple):
    """What a class of wrapped modules was made from.

    Attributes:
      cls: the bare class.
      rules: of the parameters that are sampled.
      options: of `pqt_transform`: prefix, strict, require_key.
    """

    cls: type
    rules: tuple[Rule, ...]
    options: Mapping[str, Any]


@functools.cache
def pickled_as_recipe(base: type, make: Callable[..., type]) -> type:
    """Make a subclass of a metaclass, whose classes are pickled as their `pqt_recipe`.

    No module holds a wrapped class under its name, so that pickle could not find it otherwise.

    Args:
      base: metaclass of the bare class.
      make: called with the recipe's class, rules and options; returns the same class again.

    Returns:
      The metaclass. A class of it has the attribute `pqt_recipe`.
    """
    metaclass = types.new_class(f"PQT{base.__name__}", (base,))
    copyreg.pickle(metaclass, lambda cls: (_make, (make, cls.pqt_recipe)))
    return metaclass


def _make(make: Callable[..., type], recipe: Recipe) -> type:
    return make(recipe.cls, recipe.rules, **recipe.options)
