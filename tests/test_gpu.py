# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/gpu.py, as far as it runs without a GPU."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*options):
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_every_section_runs(tmp_path):
    done = run("--smoke", "--out", str(tmp_path / "record.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["smoke"] and record["device"] and record["jax"] and not record["exact"]["wrong"]
    assert {case.split(":")[0] for case in record["exact"]["cases"]} >= {"triton", "xla"}
    (rows,) = [rows for name, rows in record["speed"].items() if name != "seconds"]
    assert {"copy", "xla forward to BF16", "xla backward"} <= set(rows)
    assert rows["copy"]["share"] == 1 and all(row["bandwidth"] > 0 for row in rows.values())
    for method in ("bf16", "gaussws", "uniform"):
        row = record["train"]["tiny"][method]
        assert row["tokens_per_second"] > 0 and row["memory_bytes"] > 1e5
    assert record["train"]["tiny"]["bf16"]["overhead"] == 0


def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 2 and "no GPU; --smoke runs anywhere" in done.stderr
