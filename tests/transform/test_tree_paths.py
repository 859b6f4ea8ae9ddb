# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Paths of leaves: boxes, sequences and prefixes; paths that collide."""

import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from pqt_jax.transform.tree_paths import leaf_paths, map_paths, paths_and_leaves


def test_two_parameters_of_one_path_are_refused():
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        paths_and_leaves({"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}})


def test_a_parameter_that_is_also_a_folder_is_refused():
    with pytest.raises(ValueError, match="'a' is a parameter, yet 'a/b' is one too"):
        paths_and_leaves({"a": jnp.ones((2, 2)), "a/b": jnp.ones((2, 2))})


def test_paths_of_boxes_sequences_and_prefixes():
    boxed = nn.Partitioned(jnp.ones((2, 2)), names=("x", None))
    tree = {"layers": [{"kernel": boxed}], "pqt_bits": {"kernel": jnp.ones((1, 1))}}
    assert list(paths_and_leaves(tree, "h")) == ["h/layers/0/kernel"]
    assert leaf_paths(1.0, "h") == ["h"]


def test_a_box_in_a_box_adds_nothing_either():
    box = nn.Partitioned(jnp.ones((2, 2)), names=("x", None))
    twice = nn.LogicallyPartitioned(box, names=("y", None))
    tree = {"a": nnx.Param(box), "b": twice, "c": nnx.Param({"d": twice}), "e": jnp.ones((2, 2))}
    assert leaf_paths(tree, "h") == ["h/a", "h/b", "h/c/d", "h/e"]
    assert leaf_paths(nnx.Param(twice), "h") == ["h"]
    assert list(paths_and_leaves(tree)) == ["a", "b", "c/d", "e"]
    paths = map_paths(lambda path, _: path, tree)
    assert paths["a"].get_raw_value().value == "a" and paths["c"].get_raw_value()["d"].value.value
