# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The layouts of folders like those of transformers that hold weights in few bits, by name."""

from pqt_jax.interchange.low_bit import LowBitLayout

LAYOUTS: dict[str, LowBitLayout] = {layout.name: layout for layout in ()}
