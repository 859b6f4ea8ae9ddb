# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What do other tools read? Safetensors, Hugging Face folders, atomic files and folders."""
