# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A workdir that commit 17cd108 left behind is read, plotted and resumed by the code of today."""

import json
import pathlib
import platform
import shutil
import subprocess
import sys

import jax
import pytest

from pqt_jax import plot, train
from pqt_jax.analysis import load, run_reader
from pqt_jax.training.run import metrics
from support import tiny
from support.command import refused
from support.paths import GOLDEN

RECORDED = GOLDEN / "run_17cd108"
ARGUMENTS = ["--config", tiny.__file__, "--workdir", "run", "--config.data.files=text.txt"]
ARGUMENTS += [f"--config.{field}" for field in ("steps=24", "model.d_model=16", "model.d_ff=32")]
ARGUMENTS += ["--config.log.keep=1", "--config.pqt.block=8,8"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a copy of the run and its text; the current directory, as when it was made."""
    tiny.write_text(tmp_path / "text.txt")
    shutil.copytree(RECORDED / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arithmetic():
    """What the last bits of a loss depend on, when programs are compiled as users' are.

    XLA compiles for the processor at hand, and sums in another order where its vectors are wider or
    its model is another one: two processors with AVX-512 have been seen to differ at step 10.
    """
    about = pathlib.Path("/proc/cpuinfo")
    lines = about.read_text().split("\n\n")[0].splitlines() if about.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    vectors = [x for x in fields.get("flags", "").split() if x.startswith(("avx", "amx", "fma"))]
    processor = {name: fields.get(name) for name in ("vendor_id", "cpu family", "model")}
    versions = {"jax": jax.__version__, "machine": platform.machine()}
    return {**versions, **processor, "vectors": sorted(vectors)}


def test_it_is_read(folder, capsys):
    run = load.load_run(folder / "run")
    assert run.step == 7 and run.config.model.d_model == 16 and run.config.pqt.block == (8, 8)
    (recorded,) = run_reader.read_runs(["run"])
    assert recorded.fields["config.steps"] == 24 and recorded.parameters > 10_000
    assert [record["step"] for record in recorded.records if "loss" in record] == [*range(1, 8)]
    assert plot.main(["run", "--out", "plots"]) == 0
    assert any(pathlib.Path("plots").iterdir())


COMPILED = [pytest.param("as users do", marks=[pytest.mark.slow, pytest.mark.optimized]), "quickly"]


@pytest.mark.parametrize("compiled", COMPILED)
def test_it_is_resumed_with_the_losses_that_its_own_commit_records(folder, capsys, compiled):
    expected = json.loads((RECORDED / "expected.json").read_text())
    line = refused(train.main, [*ARGUMENTS, "--config.seed=1"], capsys)
    assert "belongs to another run: config.seed was 0 and is 1" in line
    if compiled == "as users do":
        command = [sys.executable, "-m", "pqt_jax.train", *ARGUMENTS]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert train.main(ARGUMENTS) == 0
    records = metrics.read(pathlib.Path("run/metrics.jsonl"))
    assert [r["step"] for r in records if "loss" in r] == [*range(1, 25)]
    found = [record for record in records if record["step"] > 7]
    summary = json.loads(pathlib.Path("run/summary.json").read_text())
    exact = compiled == "as users do" and arithmetic() == expected["arithmetic"]
    assert len(found) == len(expected["records"])
    for now, then in zip(
        (*found, summary), (*expected["records"], expected["summary"]), strict=True
    ):
        for name, value in then.items():
            close = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            assert now[name] == (value if exact else close), (then.get("step"), name)
    capsys.readouterr()
    assert train.main(ARGUMENTS) == 0  # its digest is still that of the config
    assert "finished" in capsys.readouterr().out
