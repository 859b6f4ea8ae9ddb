# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Where the checkout, the golden files and the compiled programs lie."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

# Compiled programs, kept between runs. PQT_TEST_CACHE names another folder, for example an empty
# one to measure a run from cold.
JAX_CACHE = pathlib.Path(os.environ.get("PQT_TEST_CACHE", ROOT / ".cache" / "jax"))
