# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Quick start: a byte-level Llama 2 of 0.9 M parameters, trained with Gaussian weight sampling.

Paper     Ahn and Yoo, "Gaussian Weight Sampling for Scalable, Efficient and Stable
          Pseudo-Quantization Training", arXiv 2505.11170 (2025)
Command   python -m pqt_jax.train --config configs/quickstart.py
Text      the standard library's source of the running Python, read byte by byte
Expect    about two minutes on two idle CPU cores; a validation loss of 1.5 nats per byte, and
          bit-widths that have come down from 6 to a mean of about 4.4

Compare   --config.method=bf16 (no sampling) and --config.method=uniform (uniform noise)
"""

from ml_collections import ConfigDict

from pqt_jax.models import Llama2Config
from pqt_jax.training.config import default


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.train --help` explains every field."""
    model = Llama2Config(
        vocab_size=256,
        d_model=128,
        num_layers=4,
        num_heads=4,
        d_ff=384,
        max_length=128,
        dtype="float32",
    )
    config = default(model)
    config.steps = 800
    config.data.length = 128
    config.data.batch = 8
    config.optimizer.learning_rate = 3e-3
    config.optimizer.final_learning_rate = 3e-4
    config.optimizer.warmup_steps = 40
    config.pqt.learning_rate = 4e-3
    config.pqt.weight_decay = 1.0
    config.log.validation_batches = 64
    return config
