# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What did a run give me? Trained weights loaded, scored and compared."""
