# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Llama2-1B with Gaussian weight sampling, its parameters and moments over eight devices.

Paper     Ahn and Yoo, arXiv 2505.11170 (2025); the model: Zhang and others, arXiv 2406.16793 (2024)
Data      python -m pqt_jax.data.prepare --tokenizer tokenizer.json
              --input 'c4/en/c4-train.00[01]*.json.gz' --out data/c4
Command   python -m pqt_jax.train --config configs/llama2_1b.py
Text      26 billion tokens of C4 in Llama 2's vocabulary of 32,000 (docs/train.md, Larger configs)
Hardware  eight GPUs of 80 GB, 8 sequences on each at once; --config.mesh.fsdp=N for N of them, and
          on one device --config.mesh.fsdp=1
Hours     46 on eight A100 at 40 % of their peak, by arithmetic (6 · 1.06 B · 26 B FLOPs)
Expect    the paper shows the curve of BF16 or one below it, without a number; not run here yet
"""

from ml_collections import ConfigDict

from pqt_jax.models.llama2 import LLAMA2_1B
from pqt_jax.training.config import default


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.train --help` explains every field."""
    config = default(LLAMA2_1B)
    config.steps = 50_000
    config.data.tokens = "data/c4"
    config.data.length = 2048
    config.data.batch = 256  # 524,288 tokens
    config.data.microbatches = 4
    config.data.loss_chunk = 512
    config.mesh.fsdp = 8
    config.optimizer.schedule = "linear"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.warmup_steps = 2000
    config.log.validate_every = 1000
    config.log.checkpoint_every = 1000
    return config
