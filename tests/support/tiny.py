# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A config file for tests: a model that compiles in seconds. `write_text` makes text for it."""

import dataclasses

from pqt_jax.models import GPT2Config, Llama2Config
from pqt_jax.training.config.schema import default

LLAMA2 = Llama2Config(
    vocab_size=256, d_model=32, num_layers=2, num_heads=2, d_ff=64, max_length=32, dtype="float32"
)
# Everything in which other models differ from Llama 2; of the frequencies in a head some are kept,
# some divided, and some between.
OTHERS = dataclasses.replace(
    LLAMA2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=24,
    attention_bias="all",
    qk_norm=True,
    rope_theta=500.0,
    rope_scaling="llama3",
    rope_factor=8.0,
    rope_original_length=48,
)
GPT2 = GPT2Config(
    vocab_size=256, d_model=32, num_layers=2, num_heads=2, d_ff=64, max_length=32, dtype="float32"
)


def get_config(model=LLAMA2):
    config = default(model)
    config.steps = 60
    config.data.length = 16
    config.data.batch = 4
    config.mesh.data = 1  # tests have eight fake devices
    config.optimizer.warmup_steps = 2
    config.optimizer.learning_rate = 1e-2
    config.optimizer.final_learning_rate = 1e-3
    config.pqt.learning_rate = 1e-2
    config.pqt.weight_decay = 2.0
    config.log.every = 1
    config.log.validate_every = 4
    config.log.checkpoint_every = 4
    config.log.validation_batches = 2
    return config


def write_text(path, size=6000):
    """Text with something to learn, without a random number."""
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    text = " ".join(words[i * i % 7] for i in range(size))
    path.write_text(text[:size])
    return path
