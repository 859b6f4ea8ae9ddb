# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pictures of several runs: what they show, and what they say is missing."""

import json
import re

import numpy as np
from matplotlib.figure import Figure

from pqt_jax.analysis import plot_style, run_figures, run_reader
from support.runs import make_run, shift_losses


def test_a_picture_says_what_is_not_in_it(tmp_path):
    make_run(tmp_path / "diverged", nan_from=70)
    make_run(tmp_path / "empty", done=0)
    runs = dict(enumerate(run_reader.read_runs([str(tmp_path / n) for n in ("diverged", "empty")])))
    figure = run_figures.draw_losses(runs)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "1  diverged (not finite from 4.48k tokens)",
        "2  empty (nothing recorded yet)",
    ]
    training, validation = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["tokens", "tokens"]
    (cross,) = [line for line in training.lines if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == 69 * 64


def test_a_spike_does_not_set_the_scale(tmp_path):
    run = make_run(tmp_path / "run")
    text = (run / "metrics.jsonl").read_text()
    at = '"step": 150, "loss": '
    (run / "metrics.jsonl").write_text(text.replace(at, f"{at}99"))
    (run_record,) = run_reader.read_runs([str(run)])
    assert run_reader.read_curve(run_record, "loss")[1].max() > 900
    low, high = run_figures.draw_losses({0: run_record}).axes[0].get_ylim()
    assert low < 1 and 4 < high < 6


def test_a_run_that_diverged_does_not_set_the_scale_of_losses(tmp_path):
    paths = [make_run(tmp_path / "run"), shift_losses(make_run(tmp_path / "far"), 60.0, 90)]
    runs = dict(enumerate(run_reader.read_runs([*map(str, paths)])))
    figure = run_figures.draw_losses(runs)
    assert all(axes.get_ylim()[1] < 6 for axes in figure.axes)
    assert legend_of(figure) == ["1  run", "2  far (diverged)"]
    assert all(axes.get_ylim()[1] > 55 for axes in run_figures.draw_losses({1: runs[1]}).axes)


def test_axes_without_a_value_have_no_scale(tmp_path):
    paths = [make_run(tmp_path / "early", done=15), make_run(tmp_path / "nan", nan_from=1)]
    early, bad = run_reader.read_runs([*map(str, paths)])
    _, validation = run_figures.draw_losses({0: early}).axes
    axes = {"nothing recorded yet": [validation], "no finite value": []}
    axes["no finite value"] += run_figures.draw_losses({0: bad}).axes
    axes["no finite value"] += run_figures.draw_bits({0: bad}).axes[1:3]
    for reason, empty in axes.items():
        for ax in empty:
            assert [text.get_text() for text in ax.texts] == [reason]
            assert not len(ax.get_xticks()) and not len(ax.get_yticks())


def test_bits_are_drawn_by_layer_and_kernel_and_over_training(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", done=100)
    runs = dict(enumerate(run_reader.read_runs([str(tmp_path / "a"), str(tmp_path / "b")])))
    figure = run_figures.draw_bits(runs)
    mean, q, up = figure.axes[:3]
    assert [axes.get_title() for axes in (q, up)] == ["attn/q", "mlp/up"]
    assert [line.get_ydata().tolist() for line in q.lines] == [[4, 2], [5, 2.5]]
    assert mean.lines[1].get_xdata()[-1] == 100 * 64
    colors = [line.get_color() for line in q.lines]
    assert (
        colors
        == [line.get_color() for line in mean.lines]
        == [plot_style.run_style(i).color for i in runs]
    )
    heat = run_figures.draw_bits_over_training(runs).axes[0].collections[0]
    assert heat.get_array().shape == (2, 10) and heat.get_array()[1, -1] == 2
    assert heat.get_clim() == (2, 5.8)
    figure = run_figures.draw_formats(runs)
    assert legend_of(figure) == legend_of(run_figures.draw_formats_over_training(runs))
    assert legend_of(figure) == ["FP6 E3M2", "FP8 E4M3"]  # and none that no run has
    areas = run_figures.draw_formats_over_training(runs).axes[0].collections
    top = [max(path.vertices[:, 1].max() for path in area.get_paths()) for area in areas]
    assert top == [0, 0.25, 1, 1, 1]
    bars = [patch.get_width() for patch in run_figures.draw_formats(runs).axes[0].patches]
    assert bars == [0, 0, 0.25, 0.25, 0.75, 0.75, 0, 0, 0, 0]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_scale_of_bits_is_never_less_than_one_bit(tmp_path):
    """Kernels that differ by 0.02 bits are drawn as equal, in all pictures."""
    noise = np.random.default_rng(0).normal(5, 0.01, (4, 10))
    run = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    flat = [record | {"bits_mean": 5.0} if "loss" in record else record for record in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in flat))
    bits = [json.loads(line) for line in (run / "bits.jsonl").read_text().splitlines()]
    for record, layers in zip(bits, noise.T, strict=True):
        record["layers"] = {"h/attn/q/kernel": layers.tolist()}
    (run / "bits.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bits))
    runs = dict(enumerate(run_reader.read_runs([str(run)])))
    scales = [axes.get_ylim() for axes in run_figures.draw_bits(runs).axes]
    scales.append(run_figures.draw_bits_over_training(runs).axes[0].collections[0].get_clim())
    assert len(scales) == 3
    assert all(high - low >= 1 and low < 4.6 and 5.4 < high for low, high in scales)


def test_a_scale_of_losses_is_never_less_than_a_twentieth(tmp_path):
    run = make_run(tmp_path / "run")
    text = re.sub(r'loss": [\d.]+', 'loss": 2.0', (run / "metrics.jsonl").read_text())
    (run / "metrics.jsonl").write_text(text)
    figure = run_figures.draw_losses(dict(enumerate(run_reader.read_runs([str(run)]))))
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert low < 1.976 and 2.024 < high < 2.1


def test_legends_are_read_by_rows():
    figure = Figure(figsize=(4, 3), layout="constrained")
    plot_style.add_format_legend(figure, ["E4M7", "BF16", "E3M2", "E2M1"])
    (legend,) = figure.legends
    assert legend_of(figure) == ["FP4 E2M1", "BF16", "FP6 E3M2", "FP12 E4M7"]  # by columns
    assert legend._ncols == 3


def test_twenty_runs_look_different():
    seen = [plot_style.run_style(i) for i in range(20)]
    assert len(set(seen)) == 20 and len({style.color for style in seen[:10]}) == 10
