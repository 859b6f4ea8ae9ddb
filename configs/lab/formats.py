# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Exponent or mantissa? A small Llama whose matrix products have reduced operands.

Paper     Lee and others, To FP8 and Back Again, arXiv 2405.18710 (2024): Llama-120M, E8M3 … E8M7
Command   python -m pqt_jax.lab.sweep --config configs/lab/formats.py
Text      source files of the running Python's standard library; each byte is a token
Hardware  one of two CPU cores for an hour (methods.py takes the other); 504 runs
Expect    docs/stability
"""

from ml_collections import ConfigDict

from pqt_jax.lab.sweep_config import default
from pqt_jax.models import Llama2Config


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.lab.sweep --help` explains every field."""
    model = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=160, max_length=64)
    config = default(model)
    config.method = "bf16"
    config.steps = 400
    config.data.length = 64
    config.data.batch = 8
    config.optimizer.warmup_steps = 40
    config.log.validation_batches = 16
    config.sweep.arms = (
        ("E8M7", "simulate.dtype=E8M7"),  # changes no bfloat16
        ("E8M5", "simulate.dtype=E8M5"),
        ("E8M4", "simulate.dtype=E8M4"),
        ("E8M3", "simulate.dtype=E8M3"),
        ("E8M3 nearest", "simulate.dtype=E8M3", "simulate.rounding=nearest"),
        ("E7M7", "simulate.dtype=E7M7"),
        ("E5M2", "simulate.dtype=E5M2"),
        ("E4M3", "simulate.dtype=E4M3"),
        ("E4M3 scaled", "simulate.dtype=E4M3", "simulate.scale=ceil"),
    )
    config.sweep.seeds = (0, 1, 2, 3, 4, 5, 6, 7)
    config.sweep.learning_rates = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    config.sweep.rho = 1e-2
    return config
