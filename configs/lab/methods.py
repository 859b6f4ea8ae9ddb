# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Does weight sampling narrow the range of learning rates? A small Llama, by method.

Paper     Ahn and Yoo, Gaussian Weight Sampling …, arXiv 2505.11170 (2025), for the method; Lee and
          others, To FP8 and Back Again, arXiv 2405.18710 (2024), for the question
Command   python -m pqt_jax.lab.sweep --config configs/lab/methods.py
Text      source files of the running Python's standard library; each byte is a token
Hardware  one of two CPU cores for an hour (formats.py takes the other); 336 runs
Expect    docs/stability
"""

from ml_collections import ConfigDict

from pqt_jax.lab.sweep_config import default
from pqt_jax.models import Llama2Config


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.lab.sweep --help` explains every field."""
    model = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=160, max_length=64)
    config = default(model)
    config.steps = 400
    config.data.length = 64
    config.data.batch = 8
    config.optimizer.warmup_steps = 40
    config.log.validation_batches = 16
    # The run is short, so bit-widths must go from 6 to their target within a hundred steps.
    config.pqt.learning_rate = 2e-2
    config.pqt.weight_decay = 1.0
    config.sweep.arms = (
        ("BF16", "method=bf16"),
        ("uniform 4", "method=uniform"),
        ("gaussws 5", "method=gaussws", "pqt.target_bits=5"),
        ("gaussws 4", "method=gaussws"),
        ("gaussws 3", "method=gaussws", "pqt.target_bits=3"),
        ("STE FP6", "method=ste", "pqt.dtype=float6_e3m2fn"),
    )
    config.sweep.seeds = (0, 1, 2, 3, 4, 5, 6, 7)
    config.sweep.learning_rates = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    config.sweep.rho = 1e-2
    return config
