# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The report of benchmarks/quantization.py on runs of known losses, and its ways of rounding."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pqt_jax import Rule
from pqt_jax.quantization import quantize
from support.paths import ROOT

PATH = ROOT / "benchmarks" / "quantization.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("quantization_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gaps_are_paired_by_seed(benchmark, tmp_path, capsys):
    rng = np.random.default_rng(0)
    master = rng.normal(1.5, 0.04, 5)  # seeds differ by far more than methods
    gaps = {"bf16": rng.normal(0.003, 1e-4, 5), "gaussws-3": rng.normal(0.001, 1e-4, 5)}
    for name, gap in gaps.items():
        for seed in range(5):
            folder = tmp_path / f"{name}-{seed}"
            folder.mkdir()
            losses = {"master": master[seed], "E2M1": master[seed] + gap[seed]}
            (folder / benchmark.FILE).write_text(json.dumps(losses))
    (tmp_path / "gaussws-3-5").mkdir()  # one that is still being trained
    benchmark.report(tmp_path, tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    for label, name in (("bf16", "bf16"), ("gaussws 3", "gaussws-3")):
        mean, half, count = content["gaps"][label]["E2M1"]
        low, high = stats.ttest_1samp(gaps[name], 0).confidence_interval()
        assert (mean - half, mean + half, count) == pytest.approx((low, high, 5), rel=1e-6)
    mean, half, _ = content["differences"]["gaussws 3"]["E2M1"]
    low, high = stats.ttest_rel(gaps["gaussws-3"], gaps["bf16"]).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-6)
    assert content["differences"]["gaussws 3"]["master"][0] == pytest.approx(0, abs=1e-12)
    assert content["gaps"]["uniform 4"]["E2M1"] is None
    mean, half, count = content["gaps"]["gaussws 3"]["E2M1"]
    assert f"{mean:+.4f} ±{half:.4f} ({count})" in capsys.readouterr().out


def test_a_scale_for_the_whole_matrix_is_one_number(benchmark):
    w = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(128, 384)), jnp.float32)}
    plans = benchmark.plans(w, [Rule("kernel")], {})
    coarse = quantize.apply(plans["E1M1 coarse"], w)["kernel"]
    assert len(np.unique(np.abs(coarse))) <= 4 and "mixed" not in plans
    fine = quantize.apply(plans["E1M1"], w)["kernel"]
    assert np.abs(fine - w["kernel"]).mean() < np.abs(coarse - w["kernel"]).mean()
