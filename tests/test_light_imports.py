# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What `import pqt_jax` and `import pqt_jax.train` do not load."""

import subprocess
import sys

import pytest

from support.paths import ROOT

SLOW = ("scipy", "matplotlib", "pandas")


@pytest.mark.parametrize("module", ["pqt_jax", "pqt_jax.train"])
def test_libraries_that_few_functions_need_are_not_imported(module):
    code = f"import sys, {module}; print(*[m for m in {SLOW} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
