# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Figures as PNG files."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pqt_jax.interchange import files

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.figure import Figure


def encode_png(figure: "Figure") -> bytes:
    """Render a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # the font may lack letters of a run's name
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure to a PNG file, atomically.

    Raises:
      OutputError: if it cannot be written.
    """
    files.write(path, encode_png(figure))
