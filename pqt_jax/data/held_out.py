# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which documents are held out for validation: by their text alone, so that copies stay together.

text → SHA-256 → position from 0 to 2⁶⁴ → held out if it is below share · 2⁶⁴
"""

import hashlib
from collections.abc import Sequence

_END = 2**64


def position(text: bytes) -> int:
    """The first eight bytes of the SHA-256 of a text, as a number."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8])


def is_held_out(position: int, share: float) -> bool:
    """Whether a document is for validation if a share of all documents is."""
    return position < share * _END


def keep_outermost(positions: Sequence[int], new: int) -> list[int]:
    """Of the positions seen so far, the two smallest and the two largest.

    Example:
      >>> kept = []
      >>> for position in (5, 1, 9, 5, 3, 7):
      ...     kept = keep_outermost(kept, position)
      >>> kept
      [1, 3, 7, 9]
    """
    kept = sorted({*positions, new})
    return kept if len(kept) <= 4 else kept[:2] + kept[-2:]


def suggest_share(outermost: Sequence[int], split: str) -> str:
    """The shortest share that gives a split one of the documents, and the other split the rest.

    Example:
      >>> suggest_share([2**62, 2**63], "validation")
      '0.4'

    Args:
      outermost: from `keep_outermost`, two positions at least.
      split: the split that has no document, "train" or "validation".
    """
    low, high = outermost[:2] if split == "validation" else outermost[-2:]
    share = ""
    for digits in range(1, 18):
        share = f"{(low + high) / 2 / _END:.{digits}g}"
        if is_held_out(low, float(share)) and not is_held_out(high, float(share)):
            break
    return share
