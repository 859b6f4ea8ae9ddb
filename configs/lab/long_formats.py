# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Do runs with few mantissa bits diverge late? The model of formats.py, a hundred times longer.

Paper     Lee and others, To FP8 and Back Again, arXiv 2405.18710 (2024)
Command   python -m pqt_jax.lab.sweep --config configs/lab/long_formats.py
Text      source files of the running Python's standard library; each byte is a token
Length    40,000 steps of 512 tokens, 20 million for each run
Expect    half an hour of a CPU core for four of its 48 runs. E8M7 and E8M3 were run at 0.3: three
          of eight of each diverge late, and come back; see docs/stability

Two rates near the edge: in 400 steps BF16 learns at both, and half of its runs diverge at the next
rate of formats.py, 1. Operands are truncated. Sharpness is measured to see whether it warns.
"""

from ml_collections import ConfigDict

from pqt_jax.lab.sweep_config import default
from pqt_jax.models import Llama2Config


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.lab.sweep --help` explains every field."""
    model = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=160, max_length=64)
    config = default(model)
    config.method = "bf16"
    config.steps = 40_000
    config.data.length = 64
    config.data.batch = 8
    config.optimizer.warmup_steps = 40
    config.log.validation_batches = 16
    config.sweep.arms = (
        ("E8M7", "simulate.dtype=E8M7"),  # changes no bfloat16
        ("E8M3", "simulate.dtype=E8M3"),
        ("E8M4", "simulate.dtype=E8M4"),
    )
    config.sweep.seeds = (0, 1, 2, 3, 4, 5, 6, 7)
    config.sweep.learning_rates = (1e-1, 3e-1)
    config.sweep.sharpness_every = 1000
    config.sweep.record_every = 100
    return config
