# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/train_step.py on a tiny model, and without the device that is asked for."""

import json
import subprocess
import sys

import jax
import pytest

from support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "train_step.py"


def run(*options):
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="measures a CPU")
def test_every_method_is_measured(tmp_path):
    done = run("--smoke", f"--out={tmp_path / 'record.json'}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "record.json").read_text())["models"]["llama"]
    assert rows["bf16"]["overhead"] == 0
    for method in ("bf16", "gaussws", "uniform"):
        row = rows[method]
        assert row["tokens_per_second"] > 0 and row["memory_bytes"] > 0
        assert row["quartiles"][0] <= row["overhead"] <= row["quartiles"][1]


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    done = run("--device=gpu")
    assert done.returncode == 2 and "--device=gpu, and the default device is" in done.stderr
