# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How few bits, how large, how far off? Plans, sizes, packed codes, error reports."""
