# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The benchmark of memory, on a tiny model: what it says of the state is what arithmetic says."""

import json
import subprocess
import sys

import pytest

from support.paths import ROOT


@pytest.mark.slow
def test_the_state_on_a_device_is_an_eighth_and_sampling_adds_bits(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "benchmarks/aot_memory.py", "--smoke", f"--out={out}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    matrices = 2 * 256 * 256 + 2 * (4 * 256 * 256 + 3 * 256 * 512)  # embeddings and two layers
    scales, bits = 5 * 256, 2 * (4 * 64 + 3 * 128)
    for method, own in (("bf16", 0), ("gaussws", bits)):
        numbers = 3 * ((matrices + own) // 8 + scales)  # weights and two moments, float32
        counters = rows[method]["state_bytes"] - 4 * numbers
        assert 4 <= counters <= 40
        assert 0 <= rows[method]["argument_bytes"] - rows[method]["state_bytes"] < 1000
        assert rows[method]["temporary_bytes"] > 0 and rows[method]["devices"] == 8
