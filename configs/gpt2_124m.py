# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""GPT2-124M with Gaussian weight sampling, by nanoGPT's schedule.

Paper     Ahn and Yoo, arXiv 2505.11170 (2025)
Data      python -m pqt_jax.data.prepare --tokenizer tokenizer.json
              --input 'openwebtext/*.parquet' --out data/openwebtext
Command   python -m pqt_jax.train --config configs/gpt2_124m.py
Text      295 billion tokens of GPT-2's vocabulary (docs/train.md, Larger configs); nanoGPT's files
          with --config.data.tokens='openwebtext/*.bin'
Hardware  eight GPUs of 80 GB, 60 sequences on each; with fewer, --config.data.microbatches=N
Hours     60 on eight A100 at 40 % of their peak, by arithmetic (6 · 124 M · 295 B FLOPs)
Expect    nanoGPT reports a validation loss near 2.85 on OpenWebText in BF16; not run here yet
"""

from ml_collections import ConfigDict

from pqt_jax.models.gpt2 import GPT2_124M
from pqt_jax.training.config import default


def get_config() -> ConfigDict:
    """Defaults and changes; `python -m pqt_jax.train --help` explains every field."""
    config = default(GPT2_124M)
    config.steps = 600_000
    config.data.tokens = "data/openwebtext"
    config.data.length = 1024
    config.data.batch = 480  # 491,520 tokens
    config.data.loss_chunk = 256
    config.optimizer.learning_rate = 6e-4
    config.optimizer.final_learning_rate = 6e-5
    config.optimizer.warmup_steps = 2000
    config.log.validate_every = 1000
    config.log.checkpoint_every = 1000
    return config
