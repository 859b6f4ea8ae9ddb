# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""benchmarks/gpu.py, as far as it runs without a GPU."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax.numerics import reference
from pqt_jax.numerics.formats import FP32
from pqt_jax.numerics.noise import noise_codes, noise_tile
from pqt_jax.numerics.spec import Spec
from support import compile_rates
from support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*options, path=SCRIPT.parents[1]):
    command = [sys.executable, str(SCRIPT), *options]
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


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
    assert record["rates"]["not_run"] == "needs an NVIDIA GPU, and the default platform is cpu"
    for model in ("tiny", "tiny GPT2"):
        for method in ("bf16", "gaussws", "uniform"):
            row = record["train"][model][method]
            assert row["tokens_per_second"] > 0 and row["memory_bytes"] > 1e5
        assert record["train"][model]["bf16"]["overhead"] == 0


def test_the_rates_repeat_one_instruction_in_chains(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_rates

    for instruction in gpu_rates.INSTRUCTIONS.values():
        lines = gpu_rates.text(instruction).splitlines()
        loop = lines[lines.index("again:") + 1 : lines.index("sub.s32 left, left, 1;")]
        assert len(loop) == instruction.chains * gpu_rates.UNROLLED
        assert len(set(loop)) == instruction.chains


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90"])
def test_the_rates_are_of_the_instructions_that_they_name(tmp_path, monkeypatch, arch):
    """By what is compiled for a GPU; a compiler might have joined or removed some."""
    if jax.__version_info__ < (0, 11):
        pytest.skip("the extra 'aot' needs jax 0.11")
    missing = [x for x in ("jax_cuda12_plugin", "triton") if not importlib.util.find_spec(x)]
    if missing:
        pytest.skip(f"needs the extra 'aot': {', '.join(missing)}")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_rates

    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # what is found there leaves no PTX
    command = [sys.executable, compile_rates.__file__, str(tmp_path), arch]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, opcodes in json.loads(done.stdout.splitlines()[-1]).items():
        opcode, *_ = name.split(" ")[0].split(".BF16")
        found = sum(n for x, n in opcodes.items() if x.startswith(opcode))
        repeated = gpu_rates.INSTRUCTIONS[name].chains * gpu_rates.UNROLLED
        assert found >= repeated and found % repeated <= 12, (name, opcodes)  # before the loop


def test_figures_of_other_code_are_refused(tmp_path):
    """An installed copy, while the clone beside the script has changed."""
    shutil.copytree(SCRIPT.parents[1] / "pqt_jax", tmp_path / "pqt_jax")
    done = run("--smoke", "--only", "speed", path=tmp_path)
    assert done.returncode == 2 and f"pqt_jax comes from {tmp_path}" in done.stderr


def test_what_was_measured_is_left_by_a_run_that_is_cut_off(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu

    def section(smoke):
        yield {"first": {}}
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.SECTIONS, "train", section)
    out = tmp_path / "record.json"
    given = ["gpu.py", "--smoke", "--only", "train", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(KeyboardInterrupt):
        gpu.accelerator.run("gpu", gpu.SECTIONS)
    record = json.loads(out.read_text())
    assert "first" in record["train"] and len(record["sources"]) == 12


def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 2 and "no GPU; --smoke runs anywhere" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("dtype, count", [("float32", 18951), ("bfloat16", 18871)])
def test_uniform_noise_fused_or_not_is_within_what_the_section_allows(monkeypatch, dtype, count):
    """An H200 differed from the CPU by these counts beyond 1e-6 of the result (LOG.md)."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_exact

    spec = Spec(noise="uniform", dtype=FP32)
    w, b_i = gpu_exact.weights(smoke=False)
    operands = (jnp.asarray(w, dtype), b_i, *gpu_exact.PLACE)
    want, absmax = gpu_exact._on_cpu(functools.partial(reference.forward, spec), operands)
    shape, cut = (2, 129 * 32, 35 * 32), (slice(None), slice(4100), slice(1090))
    codes = noise_codes("uniform", *map(jnp.asarray, gpu_exact.PLACE), 2, shape[1] // 32, shape[2])
    noise = np.asarray(noise_tile("uniform", codes)).reshape(shape)[cut]
    wide = np.asarray(operands[0].astype(jnp.float32))
    known = np.isfinite(want)
    known[gpu_exact.DENORMAL] = False

    def both(step):
        """The product rounded, and then the sum; and both at once."""
        scale = np.repeat(np.repeat(absmax * step, 32, 1), 32, 2)[cut]
        with np.errstate(invalid="ignore"):
            at_once = (wide + np.float64(noise) * np.float64(scale)).astype(np.float32)
            return wide + noise * scale, at_once

    rng = np.random.default_rng(0)  # steps as they were, which had not gone by way of b_i
    rng.normal(size=w.shape)
    then = (2.0 ** (1 - rng.uniform(1, 9, b_i.shape))).astype(np.float32)
    far = known & ~np.isclose(*both(then), rtol=1e-6, atol=0)
    apart, fused = both(np.asarray(reference.block_step_size(spec, jnp.asarray(b_i))))
    assert any((way[known] == want[known]).all() for way in (apart, fused))  # a CPU takes either
    assert far.sum() == count
    want = np.where(known, fused, want)
    monkeypatch.setattr(gpu_exact, "_on_default", lambda *_: [(apart, absmax)])
    assert gpu_exact._forward("xla", spec, operands, (want, absmax)) == ""
    worse = apart * np.float32(1 + 2.0**-20)
    monkeypatch.setattr(gpu_exact, "_on_default", lambda *_: [(worse, absmax)])
    assert "values and 0 maxima differ" in gpu_exact._forward("xla", spec, operands, (want, absmax))
