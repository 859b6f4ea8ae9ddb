# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The collectives in the text of a compiled module: how many there are, and their bytes."""

import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"[a-z]+(\d+)\w*\[([\d,]*)\]")


def count_traffic(text: str) -> dict[str, dict[str, int]]:
    """Count the collectives of a module, each once, however often a loop executes it.

    Example:
      >>> line = "%a = (bf16[4,8]{1,0}, bf16[4,64]{1,0}) all-gather-start(%x), dimensions={1}"
      >>> count_traffic(line)
      {'all-gather': {'count': 1, 'bytes': 512}}

    Args:
      text: of the optimized module.

    Returns:
      kind → {"count": …, "bytes": of the results on one device}.
    """
    traffic: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        if match := _COLLECTIVE.search(line):
            counts = traffic.setdefault(match[2], {"count": 0, "bytes": 0})
            counts["count"] += 1
            counts["bytes"] += _result_bytes(match[1], match[2])
    return traffic


def _result_bytes(result: str, kind: str) -> int:
    """Bytes of a result. The start of an all-gather or a permutation has its operand there, too."""
    sizes = [
        math.prod(int(x) for x in extents.split(",") if x) * int(bits) // 8
        for bits, extents in _ARRAY.findall(result)
    ]
    return max(sizes, default=0) if kind in ("all-gather", "collective-permute") else sum(sizes)
