# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which operand fails in E5M2 and E4M3 without scales? The model of formats.py at one rate.

Paper     Lee and others, To FP8 and Back Again, arXiv 2405.18710 (2024), for the question
Command   python -m pqt_jax.lab.sweep --config configs/lab/operands.py
Text      source files of the running Python's standard library; each byte is a token
Hardware  two CPU cores, about ten minutes; 64 runs
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
    forward, gradients = "simulate.operands=activations,weights", "simulate.operands=gradients"
    config.sweep.arms = (
        ("E8M7", "simulate.dtype=E8M7"),
        ("E5M2", "simulate.dtype=E5M2"),
        ("E5M2 gradients", "simulate.dtype=E5M2", gradients),
        ("E5M2 forward", "simulate.dtype=E5M2", forward),
        ("E5M2 nearest", "simulate.dtype=E5M2", "simulate.rounding=nearest"),
        ("E5M2 scaled", "simulate.dtype=E5M2", "simulate.scale=ceil"),
        ("E4M3 gradients", "simulate.dtype=E4M3", gradients),
        ("E4M3 forward", "simulate.dtype=E4M3", forward),
    )
    config.sweep.learning_rates = (1e-2,)
    config.sweep.sharpness_every = 0
    return config
