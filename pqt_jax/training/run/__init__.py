# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What does a run keep and tell? Folder, checkpoints, metrics, signals, processes."""
