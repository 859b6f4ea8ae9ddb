# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The stability lab: does training stay stable with fewer bits?

    operands → gemms → simulate             models whose matrix products have reduced operands
    sweep_config → sweep_arms               what a sweep trains: arms × learning rates × seeds
    programs → saved_states → runs          training of one work unit, with states to go on from
    work_units → train_sweep → sweep        training of all units, by any number of processes
    run_records, outcomes                   measurements; did a run learn, or diverge?
    sweep_table → statistics, prediction    results, confidence intervals, early warning
    figures, tables → report_page → report  the page about a sweep

Source: Lee and others, To FP8 and Back Again, arXiv 2405.18710 (2024).
"""
