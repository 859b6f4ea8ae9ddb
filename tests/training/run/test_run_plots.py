# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pictures of one run: what they show of a run that diverged, or that recorded nothing."""

import numpy as np

from pqt_jax.interchange.png import encode_png
from pqt_jax.training.run import run_plots

RECORDS = [{"step": i, "loss": 1.0 if i < 3 else None, "bits_mean": None} for i in range(1, 6)]


def texts_on(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_loss_says_where_a_run_diverged():
    figure = run_plots.draw_losses(RECORDS, "title")
    assert texts_on(figure) == ["not finite from step 3"]
    assert figure.axes[0].get_xlim()[1] == 5


def test_bits_say_that_none_is_finite():
    figure = run_plots.draw_bits(RECORDS, {"a": np.full((1, 2, 2), np.nan)}, "title")
    assert texts_on(figure) == ["not finite from step 1", *["no finite bit-width"] * 2]
    assert not any(len(axes.get_xticks()) or len(axes.get_yticks()) for axes in figure.axes)


def test_numbers_of_blocks_are_whole():
    figure = run_plots.draw_bits(RECORDS, {"a": np.array([[[4.0, 5.0]]])}, "title")
    assert all(tick % 1 == 0 for tick in figure.axes[1].get_yticks())


def test_scales_of_bits_are_never_less_than_one_bit():
    """Bit-widths of an untrained model scatter by a hundredth of a bit, which is no structure."""
    names = ("bits_mean", "bits_min", "bits_max")
    records = [{"step": i, **dict.fromkeys(names, 5.0)} for i in (1, 2)]
    b_t = {"a": 5 + 0.01 * np.random.default_rng(0).normal(size=(3, 4, 4))}
    by_step, histogram, by_layer, _ = run_plots.draw_bits(records, b_t, "title").axes
    scales = [by_step.get_ylim(), histogram.get_xlim(), by_layer.images[0].get_clim()]
    assert all(high - low >= 1 and low < 4.6 and 5.4 < high for low, high in scales)


def test_a_run_without_records_is_drawn():
    for figure in (
        run_plots.draw_losses([], "nothing"),
        run_plots.draw_bits([{"step": 1, "bits_mean": 4.0}], {}, "nothing"),
    ):
        assert encode_png(figure).startswith(b"\x89PNG")
