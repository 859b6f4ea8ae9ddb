# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What do other tools read? Safetensors files and Hugging Face folders.

`files` and `folders` write files and folders atomically. They lie here because `data` and all
packages above it write with them.
"""
