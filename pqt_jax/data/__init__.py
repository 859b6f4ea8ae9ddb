# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Text → tokens (`prepare`, or bytes as they are, `source`) → streams (`tokens`) → batches."""
