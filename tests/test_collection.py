# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Importing the tests is cheap: every worker does it, for any selection of tests."""

import jax.numpy as jnp

from support.compilation import count_compilations


def test_nothing_is_compiled_while_tests_are_imported(compiled_at_collection):
    assert compiled_at_collection == 0


def test_an_eager_operation_would_be_counted():
    with count_compilations() as programs:
        jnp.arange(17.0).reshape(1, 17) + jnp.ones((3, 1))
    assert programs
