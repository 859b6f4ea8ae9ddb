# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What number does a weight become? Formats, rounding, keys, noise, blocks, bit-widths."""
