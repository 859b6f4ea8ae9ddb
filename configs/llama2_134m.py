# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Llama2-134M with Gaussian weight sampling, on C4 by the recipe of Adam-mini's authors.

Paper     Ahn and Yoo, arXiv 2505.11170 (2025); recipe: Zhang and others, arXiv 2406.16793 (2024)
Data      python -m pqt_jax.data.prepare --tokenizer tokenizer.json
              --input 'c4/en/c4-train.00[01]*.json.gz' --out data/c4
Command   python -m pqt_jax.train --config configs/llama2_134m.py
Text      26 billion tokens of C4 in Llama 2's vocabulary of 32,000 (docs/train.md, Larger configs)
Hardware  eight GPUs of 40 GB, 8 sequences on each; with fewer, --config.data.microbatches=N
Hours     6 on eight A100 at 40 % of their peak, by arithmetic (6 · 134 M · 26 B FLOPs)
Expect    the paper shows the curve of BF16 or one below it, without a number; not run here yet

Compare   --config.optimizer.name=adam_mini, --config.method=bf16, --config.method=uniform
"""

from ml_collections import ConfigDict

from pqt_jax.models.llama2 import LLAMA2_134M
from pqt_jax.training.config import default


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.train --help` explains every field."""
    config = default(LLAMA2_134M)
    config.steps = 200_000
    config.data.tokens = "data/c4"
    config.data.length = 2048
    config.data.batch = 64  # 131,072 tokens
    config.data.loss_chunk = 512
    config.optimizer.schedule = "linear"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.warmup_steps = 2000
    config.log.validate_every = 1000
    config.log.checkpoint_every = 1000
    return config
