# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The report against NumPy, block by block."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pqt_jax import Rule
from pqt_jax.interchange.png import encode_png
from pqt_jax.numerics.formats import BF16, E2M1, E3M2, E4M3
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.quantization import report, report_figure, sizes
from pqt_jax.quantization.quantize import apply, plan_mixed, plan_uniform

RULES = [Rule(".*kernel")]


def make_params():
    rng = np.random.default_rng(0)
    w = rng.standard_t(2, size=(2, 70, 100)) * np.exp2(rng.integers(-9, 9, (2, 70, 1)))
    w[0, :32, :32] = 0
    return {"h": {"kernel": jnp.asarray(w, jnp.float32)}, "norm": jnp.ones(3)}


def by_hand(w, rounded, tops):
    """Of one matrix, its blocks in turn."""
    w, rounded = np.asarray(w, np.float64), np.asarray(rounded, np.float64)
    worst, saturated = 0.0, 0
    for i in range(0, w.shape[0], 32):
        for j in range(0, w.shape[1], 32):
            a, b = (x[i : i + 32, j : j + 32] for x in (w, rounded))
            saturated += (np.abs(a) > tops[i // 32, j // 32]).sum()
            if np.linalg.norm(a):
                worst = max(worst, np.linalg.norm(b - a) / np.linalg.norm(a))
    flushed = ((w != 0) & (rounded == 0)).mean()
    return np.linalg.norm(rounded - w) / np.linalg.norm(w), worst, saturated / w.size, flushed


def tops(w, formats, rule):
    """Largest value on the grid of each block of one matrix."""
    out = np.empty((3, 4))
    for i, j in np.ndindex(3, 4):
        fmt = formats[i][j]
        largest = np.abs(np.asarray(w)[32 * i : 32 * i + 32, 32 * j : 32 * j + 32]).max() or 1.0
        exponent = np.floor(np.log2(largest)) - fmt.emax
        if rule == "ceil":
            exponent = np.ceil(np.log2(largest / fmt.max))
        out[i, j] = fmt.max if fmt == BF16 else fmt.max * 2.0**exponent
    return out


@pytest.mark.parametrize("rule", ["floor", "ceil"])
@pytest.mark.parametrize("fmt", [E4M3, E2M1, BF16], ids=str)
def test_one_format(fmt, rule):
    params = make_params()
    plan = plan_uniform(params, RULES, fmt, scale=rule)
    rounded = apply(plan, params)["h"]["kernel"].astype(jnp.float32)
    rows = report.measure_matrices(params, plan)
    assert [(row.path, row.layer) for row in rows] == [("h/kernel", 0), ("h/kernel", 1)]
    for row, w, w_hat in zip(rows, params["h"]["kernel"], rounded, strict=True):
        want = by_hand(w, w_hat, tops(w, [[fmt] * 4] * 3, rule))
        np.testing.assert_allclose(row[4:], want, rtol=1e-5, atol=1e-9)
        assert row.formats == {fmt.name: 7000}
    if rule == "floor" and fmt == E2M1:
        assert rows[0].saturated > 0
    by_parameter = sizes.parameter_sizes(plan, params).values()
    assert report.total_size(rows) == sizes.total_size(by_parameter)


def test_a_mixture():
    params = make_params()
    bits = {"h": {"kernel": np.random.default_rng(1).uniform(-1, 4, (2, 3, 4))}}
    plan = plan_mixed(params, bits, RULES)
    rounded = apply(plan, params)["h"]["kernel"].astype(jnp.float32)
    index = np.asarray(plan["h/kernel"].index)
    for row, w, w_hat, own in zip(
        report.measure_matrices(params, plan), params["h"]["kernel"], rounded, index, strict=True
    ):
        formats = [[MIXED_FORMATS[i] for i in line] for line in own]
        np.testing.assert_allclose(row[4:], by_hand(w, w_hat, tops(w, formats, "ceil")), rtol=1e-5)
        assert sum(row.formats.values()) == 7000 and len(row.formats) > 2


def test_large_and_small_weights_have_an_error():
    for power in (-110, -60, 60, 120):
        w = jax.random.normal(jax.random.key(0), (32, 64)) * 2.0**power
        ((row,), (plain,)) = (
            report.measure_matrices({"kernel": x}, plan_uniform({"kernel": x}, RULES, E3M2))
            for x in (w, w * 2.0**-power)
        )
        np.testing.assert_allclose(row[4:], plain[4:], rtol=1e-6)


def test_weights_that_are_no_numbers_are_said():
    w = jnp.ones((32, 64)).at[3, 3].set(jnp.nan)
    (row,) = report.measure_matrices({"kernel": w}, plan_uniform({"kernel": w}, RULES, E2M1))
    w = jax.random.normal(jax.random.key(0), (32, 64))
    (whole,) = report.measure_matrices({"kernel": w}, plan_uniform({"kernel": w}, RULES, E2M1))
    assert np.isnan(row[4:]).all() and np.isfinite(whole[4:]).all()
    assert report.as_json([row])[0]["error"] is None
    json.dumps(report.as_json([row]), allow_nan=False)
    for rows in ([row, whole], [whole, row]):
        table = report.format_table(rows)
        assert "nan%" in table and f"{whole.error:9.2%}" not in table


def test_table_and_picture():
    params = make_params() | {"head": {"kernel": jnp.ones((32, 32))}}
    bits = {"h": {"kernel": jnp.zeros((2, 3, 4))}, "head": {"kernel": jnp.full((1, 1), -0.5)}}
    rows = report.measure_matrices(params, plan_mixed(params, bits, RULES))
    lines = report.format_table(rows).split("\n")
    names = [line.split()[0] for line in lines[:-1]]
    assert names == ["parameter", "h/kernel", "head/kernel", "all"]
    assert lines[-1] == "Errors and shares of several matrices are those of the worst one."
    assert lines[1].endswith("  FP6 E3M2 100%") and lines[2].endswith("  FP4 E2M1 100%")
    assert (
        lines[3].endswith("  FP4 E2M1 7%, FP6 E3M2 93%")
        and "6.0" in lines[1]
        and "4.012" in lines[2]
    )
    figure = report_figure.draw_report(rows, "a model")
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["formats by layer", "formats by kind", "error of each matrix"]
    assert figure.axes[2].images[0].get_clim()[0] == 0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["FP4 E2M1", "FP6 E3M2"]
    assert encode_png(figure).startswith(b"\x89PNG")
