# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which fields does a run have? Defaults, checks, files, command line."""

from pqt_jax.training.config.schema import default as default
