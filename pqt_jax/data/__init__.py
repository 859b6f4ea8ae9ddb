# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Text files → bytes (`source`) → batches of tokens (`pipeline`)."""
