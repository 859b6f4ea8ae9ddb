# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How do I put it into my model? Rules, sampling, Flax wrappers, optimizers."""
