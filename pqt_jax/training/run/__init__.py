# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What does a run save and report? Its folder, checkpoints, metrics, signals and processes."""
