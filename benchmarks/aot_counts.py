# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What compiled GPU programs cost, read from their text: SASS instructions and HLO traffic."""

import collections
import re

# Opcodes, up to the first dot, by the unit that executes them. An opcode in no set counts as ALU:
# a forgotten opcode makes the figures worse, not better.
FMA = frozenset("FADD FMUL FFMA IMAD HADD2 HMUL2 HFMA2 IDP".split())
MEMORY = frozenset("LD LDG LDS LDL LDC LDSM ST STG STS STL ATOM ATOMG ATOMS RED CCTL".split())
CONTROL = frozenset(
    "BRA BRX JMP EXIT RET CALL BAR BSSY BSYNC BREAK BMOV WARPSYNC NANOSLEEP YIELD DEPBAR MEMBAR "
    "FENCE ERRBAR ELECT ENDCOLLECTIVE KILL PREEXIT ACQBULK SYNCS NOP".split()
)
OTHER = frozenset(  # across lanes, special registers, and the unit for conversions and roots
    "SHFL VOTE REDUX MATCH S2R S2UR CS2R R2UR MUFU F2F F2I I2F FRND POPC FLO BREV".split()
)

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w]*)")
_LABEL = re.compile(r"^\s*(\.\w+):")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.\w+)\)")


def pipe(opcode: str) -> str:
    """The unit that executes an opcode: "alu", "fma", "memory", "control", "uniform" or "other".

    Example:
      >>> [pipe(opcode) for opcode in ("LOP3", "IMAD", "LDG", "UIADD3", "SHFL")]
      ['alu', 'fma', 'memory', 'uniform', 'other']
    """
    for name, opcodes in (("fma", FMA), ("memory", MEMORY), ("control", CONTROL), ("other", OTHER)):
        if opcode in opcodes:
            return name
    return "uniform" if opcode.startswith("U") else "alu"


def count_sass(listing: str) -> tuple[collections.Counter[str], bool]:
    """Instructions of one kernel by pipe, and whether it has a loop.

    Args:
      listing: what `nvdisasm -c` prints. NOP and the branch to itself that pads a kernel are left
        out; an instruction counts whether or not its predicate holds.

    Returns:
      (counts, loop): with a loop the counts say little.
    """
    counts, labels, loop = collections.Counter(), {}, False
    position = 0
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = position
        if not (instruction := _INSTRUCTION.match(line)):
            continue
        target = _BRANCH.search(line)
        back = labels.get(target[1]) if target else None
        padding = instruction[1] == "NOP" or back == position
        position += 1
        if not padding:
            loop |= back is not None
            counts[pipe(instruction[1])] += 1
    return counts, loop


_FREE = frozenset("parameter constant tuple get-tuple-element bitcast after-all".split())
_ASSIGNMENT = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.+?) ([a-z][\w-]*)\(([^)]*)")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


def _bytes_of(types: str) -> float:
    total = 0.0
    for kind, bits, shape in _ARRAY.findall(types):
        size = 8 if kind == "pred" else int(bits or 0)
        for extent in filter(None, shape.split(",")):
            size *= int(extent)
        total += size / 8
    return total


def hlo_traffic(text: str) -> float:
    """Bytes that the entry computation of a compiled module moves to and from device memory.

    Every operand and every result of each of its instructions once: what is fused moves nothing,
    and nothing is taken to stay in a cache between two kernels.

    Args:
      text: the text of the module after optimization.
    """
    sizes, total = {}, 0.0
    for line in text[text.index("\nENTRY ") :].splitlines():
        if not (match := _ASSIGNMENT.match(line)):
            continue
        name, types, opcode, operands = match.groups()
        sizes[name] = _bytes_of(types)
        if opcode not in _FREE:
            used = re.findall(r"%([\w.-]+)", operands)
            total += sizes[name] + sum(sizes[operand] for operand in used)
    return total


def count_launches(module: str) -> dict[str, int]:
    """Fusions, custom calls and copies of a training step's optimized module, by where they are.

    Args:
      module: text, with a loop over layers in the forward and one in the backward pass.

    Returns:
      {"forward": of a layer, "backward": of a layer, "once": outside the loops}.
    """
    counts: dict[str, int] = {}
    loops: dict[str, str] = {}
    name = main = ""
    for line in module.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name, counts[head[2]] = head[2], 0
            main = name if head[1] else main
        elif re.search(r" (fusion|custom-call|copy)\(", line):
            counts[name] += 1
        elif body := re.search(r" while\(.* body=%?([\w.-]+)", line):
            loops["backward" if "transpose(jvp" in line else "forward"] = body[1]
    return {way: counts[loops[way]] for way in ("forward", "backward")} | {"once": counts[main]}
