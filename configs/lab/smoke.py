# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Ten runs of a tiny Llama, to check that a sweep works; the losses mean nothing.

Paper     Lee and others, To FP8 and Back Again, arXiv 2405.18710 (2024)
Command   python -m pqt_jax.lab.sweep --config configs/lab/smoke.py
Text      source files of the running Python's standard library; each byte is a token
Expect    a row for each run in runs/smoke/runs.jsonl, within a minute on two CPU cores
"""

from ml_collections import ConfigDict

from pqt_jax.lab.sweep_config import default
from pqt_jax.models import Llama2Config


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.lab.sweep --help` explains every field."""
    model = Llama2Config(256, d_model=32, num_layers=2, num_heads=2, d_ff=64, max_length=32)
    config = default(model)
    config.steps = 30
    config.data.length = 32
    config.data.batch = 4
    config.optimizer.warmup_steps = 3
    config.log.validation_batches = 2
    config.method = "bf16"
    config.sweep.arms = (("BF16",), ("E4M1", "simulate.dtype=E4M1"))
    config.sweep.seeds = (0, 1, 2, 3, 4)
    config.sweep.learning_rates = (3e-3,)
    config.sweep.at_once = 5
    config.sweep.window = 5
    config.sweep.margin = 1.0  # losses of 128 tokens vary a lot
    config.sweep.sharpness_every = 10
    return config
