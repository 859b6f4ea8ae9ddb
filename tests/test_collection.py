# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Importing the tests is cheap: every worker does it, for any selection of tests."""

import os
import subprocess
import sys

import jax.numpy as jnp

from support.compilation import count_compilations
from support.paths import ROOT


def test_nothing_is_compiled_while_tests_are_imported(compiled_at_collection):
    assert compiled_at_collection == 0


def test_slow_tests_are_skipped_by_name_when_their_time_is_over():
    slow = "tests/numerics/test_cast.py::test_to_ml_dtypes_of_sampled_weights[FP16-ieee]"
    quick = "tests/test_collection.py::test_an_eager_operation_would_be_counted"
    environment = os.environ | {"PQT_SLOW_TESTS_UNTIL": "1"}
    command = [sys.executable, "-m", "pytest", "-q", slow, quick]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "1 passed, 1 skipped" in done.stdout, done.stdout
    assert f"the time for slow tests is over: {slow}" in done.stdout


def test_an_eager_operation_would_be_counted():
    with count_compilations() as programs:
        jnp.arange(17.0).reshape(1, 17) + jnp.ones((3, 1))
    assert programs
