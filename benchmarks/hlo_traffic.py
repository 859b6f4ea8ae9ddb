# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The traffic in the text of a compiled module: its collectives, and the bytes of HBM."""

import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ARRAY = re.compile(r"[a-z]+(\d+)\w*\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)\)")
_NOTHING_MOVES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done"}


def count_traffic(text: str) -> dict[str, dict[str, int]]:
    """Count the collectives of a module, each once, however often a loop executes it.

    A TPU's compiler spreads an asynchronous collective over the operations that run meanwhile:
    each of their fusions has a line of it, all with the same channel. They count as one.

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
    channels: set[str] = set()
    for line in text.splitlines():
        if match := _COLLECTIVE.search(line):
            if channel := _CHANNEL.search(line):
                if channel[1] in channels:
                    continue
                channels.add(channel[1])
            counts = traffic.setdefault(match[2], {"count": 0, "bytes": 0})
            counts["count"] += 1
            counts["bytes"] += _result_bytes(match[1], match[2])
    return traffic


def _result_bytes(result: str, kind: str) -> int:
    """Bytes of a result. The start of an all-gather or a permutation has its operand there, too."""
    sizes = [size for size, _ in _arrays(result)]
    return max(sizes, default=0) if kind in ("all-gather", "collective-permute") else sum(sizes)


def bytes_of_hbm(text: str) -> int:
    r"""Bytes that the entry of a module for a TPU reads from HBM and writes to it.

    Example:
      >>> lines = [
      ...     "ENTRY %main (w: f32[8,128]) -> bf16[8,128] {",
      ...     "  %w = f32[8,128]{1,0:T(8,128)} parameter(0)",
      ...     "  %a = f32[8,128]{1,0:T(8,128)S(1)} copy(%w)",
      ...     "  ROOT %b = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%a), kind=kLoop, calls=%f",
      ...     "}",
      ... ]
      >>> bytes_of_hbm("\n".join(lines))  # w is read, and the result is written
      6144

    Args:
      text: of the optimized module. An operand of a fusion counts whole, and a loop once.

    Returns:
      bytes of the operands and results without a memory space, which are those in HBM.
    """
    arrays: dict[str, list[tuple[int, bool]]] = {}
    total = 0
    entry = re.search(r"^ENTRY.*?^}", text, re.MULTILINE | re.DOTALL)
    for line in entry[0].splitlines() if entry else ():
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, result, kind, operands = match.groups()
        arrays[name] = _arrays(result)
        if kind == "copy-start":  # (copy, what is copied, context)
            arrays[name] = arrays[name][:1]
        if kind in _NOTHING_MOVES:
            continue
        read = [arrays[operand] for operand in re.findall(r"%([\w.-]+)", operands)]
        total += sum(size for moved in (arrays[name], *read) for size, in_hbm in moved if in_hbm)
    return total


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """Bytes of each array of a shape, and whether it is in HBM."""
    return [
        (math.prod(int(x) for x in extents.split(",") if x) * int(bits) // 8, "S(" not in layout)
        for bits, extents, layout in _ARRAY.findall(shape)
    ]
