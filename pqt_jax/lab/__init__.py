# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The stability lab: reduced formats, sharpness, and sweeps over seeds and learning rates.

    operands → gemms → simulate   models whose matrix products have operands of fewer bits
    sharpness  how much the loss rises around a point
    grid → runs → sweep    arms × learning rates × seeds, trained side by side
    outcomes   what became of a run
    cells → statistics, forecasts, panels, summaries → report    what a sweep says

Source: Lee and others, To FP8 and Back Again, arXiv 2405.18710 (2024).
"""
