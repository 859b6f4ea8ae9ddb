# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Run PTX in NumPy: kernels of Mosaic GPU and Triton, one thread block at a time.

Registers are uint64 of one number for each thread; predicates are bool. All threads of a block must
take the same branches. An instruction that is not known is an error. Tensor cores are modelled as
worse than they are: each sum of `mma` is aligned to the largest of its terms, and cut off after 24
bits.

Source: PTX ISA 8.8.
"""

import re
from collections.abc import Sequence

import ml_dtypes
import numpy as np

WARP = 32
_U64 = np.uint64
_LOW = _U64(0xFFFFFFFF)
_IGNORED = ("bar", "elect", "fence", "griddepcontrol", "label", "ret")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


def run(text: str, buffers: Sequence[np.ndarray], grid: tuple[int, int, int] = (1, 1, 1)) -> None:
    """Run the kernel of a PTX module for every thread block of a grid.

    Args:
      text: the module; its kernel takes one pointer for each buffer.
      buffers: C-contiguous arrays in the order of the parameters; they are changed.
      grid: thread blocks along x, y and z.
    """
    memory = [buffer.reshape(-1).view(np.uint8) for buffer in buffers]
    threads = int(re.findall(r"\.(?:maxntid|reqntid) (\d+)", text)[0])
    instructions = parse(text[text.index("{", text.index(".entry")) :])
    with np.errstate(all="ignore"):
        for index in np.ndindex(*grid):
            _run(_Block(memory, index, threads), instructions)


def run_text(text: str, constants: Sequence[int], word: np.ndarray) -> np.ndarray:
    """Run a text of inline PTX, `word, constants → word`, for each of uint32 words."""
    names = {0: "result", 1: "word"} | {i: f"{c:#x}" for i, c in enumerate(constants, start=2)}
    for i in sorted(names, reverse=True):
        text = text.replace(f"${i}", names[i])
    block = _Block([], (0, 0, 0), word.size)
    block.registers["word"] = word.astype(_U64)
    _run(block, parse(text))
    return block.registers["result"].astype(np.uint32)


def _run(block: "_Block", instructions: list[tuple[str, list[str], list[str]]]) -> None:
    labels = {operands[0]: i for i, (_, op, operands) in enumerate(instructions) if op == ["label"]}
    position = 0
    while position < len(instructions):
        guard, operation, operands = instructions[position]
        position += 1
        if operation[0] != "bra":
            block.execute(operation, operands, guard)
        elif block.takes_branch(guard):
            position = labels[operands[0]]


def parse(body: str) -> list[tuple[str, list[str], list[str]]]:
    """The instructions of a body: the guard, the words of the operation, and its operands."""
    body = re.sub(r"//[^\n]*|^\s*\.(loc|file)[^\n]*", "", body, flags=re.MULTILINE)
    body = re.sub(r"(\$L\w+):", r"label \1;", body)
    found = []
    for statement in re.split(r";|^\s*[{}]|[{}]\s*$", body, flags=re.MULTILINE):
        guard, rest = re.fullmatch(r"\s*(?:@(\S+))?(.*)", statement, flags=re.DOTALL).groups()
        words = rest.split(None, 1)
        if words and not words[0].startswith("."):
            operands = _OPERAND.findall(words[1]) if len(words) > 1 else []
            found.append((guard or "", words[0].replace("::", ".").split("."), operands))
    return found


def _floats(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint32).view(np.float32)


def _words(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).view(np.uint32).astype(_U64)


def _half(values: np.ndarray, i: int, dtype: type) -> np.ndarray:
    bits = (values >> _U64(16 * i)).astype(np.uint16)
    return bits.view(dtype).astype(np.float32)


def _pack(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    halves = [x.astype(ml_dtypes.bfloat16).view(np.uint16).astype(_U64) for x in (low, high)]
    return halves[0] | halves[1] << _U64(16)


class _Block:
    def __init__(self, memory: list[np.ndarray], index: tuple[int, ...], threads: int):
        shared = np.zeros(2**16, np.uint8)
        self.memory, self.registers, self.threads = [*memory, shared], {}, threads
        self.special = {"%tid.x": np.arange(threads), "%laneid": np.arange(threads) % WARP}
        self.special["global_smem"] = np.full(threads, len(memory) << 40)
        for axis, i in zip("xyz", index, strict=True):
            self.special[f"%ctaid.{axis}"] = np.full(threads, i)

    def value(self, name: str) -> np.ndarray:
        """The value of an operand in every thread."""
        if name in self.registers:
            return self.registers[name]
        if name in self.special:
            return self.special[name].astype(_U64)
        literal = int(name[2:], 16) if name.startswith("0f") else int(name.rstrip("U"), 0)
        return np.array(literal % 2**64, _U64)

    def takes_branch(self, guard: str) -> bool:
        """Whether the block jumps, which all of its threads must agree on."""
        if not guard:
            return True
        taken = np.unique(self.registers[guard.lstrip("!")] ^ guard.startswith("!"))
        assert taken.size == 1, f"@{guard}: threads of a block part"
        return bool(taken[0])

    def execute(self, operation: list[str], operands: list[str], guard: str) -> None:
        """Run one instruction in every thread, or a store in those that its guard selects."""
        name, kind = operation[0], operation[-1]
        if guard and name != "st":
            raise NotImplementedError(f"@{guard} {operation}")
        if name in _IGNORED:
            return
        if name == "cvta":
            self.registers[operands[0]] = self.value(operands[1])
        elif name in ("ld", "st"):
            self._move(operation, operands, guard)
        elif name == "stmatrix":
            self._store_matrices(*operands)
        elif name == "redux":
            x = self.value(operands[1]).astype(np.uint32).view(np.int32).reshape(-1, WARP)
            largest = x.max(axis=1, keepdims=True).view(np.uint32).astype(_U64)
            self.registers[operands[0]] = np.repeat(largest, WARP)
        elif name == "mma":
            self._multiply(*([x.strip() for x in group[1:-1].split(",")] for group in operands))
        elif name == "shfl":
            x = np.broadcast_to(self.value(operands[1]), self.threads).reshape(-1, WARP)
            lane, by = np.arange(WARP), int(operands[2])
            self.registers[operands[0]] = x[
                :, lane ^ by if "bfly" in operation else lane * 0 + by
            ].ravel()
        elif name == "setp":
            a, b = (self._typed(kind, x) for x in operands[1:3])
            self.registers[operands[0]] = {
                "eq": a == b,
                "ne": a != b,
                "lt": a < b,
                "gt": a > b,
                "ge": a >= b,
                "le": a <= b,
                "nan": np.isnan(a) | np.isnan(b) if kind == "f32" else None,
            }[operation[1]]
        elif name == "selp":
            a, b, which = (self.value(x) for x in operands[1:4])
            self.registers[operands[0]] = np.where(which, a, b)
        elif name == "mov" and "{" in "".join(operands):
            self._move_halves(_U64(int(kind[1:]) // 2), *operands)
        else:
            values = [self.value(x) for x in operands[1:]]
            self.registers[operands[0]] = self._compute(operation, values)

    def _move_halves(self, bits: np.uint64, to: str, source: str) -> None:
        """Join two registers in one, or split one into two."""
        mask = (_U64(1) << bits) - _U64(1)
        to_names, from_names = ([y.strip() for y in x.strip("{}").split(",")] for x in (to, source))
        if len(to_names) == 2:
            whole = self.value(source)
            self.registers |= dict(zip(to_names, (whole & mask, whole >> bits), strict=True))
        else:
            low, high = (self.value(x) & mask for x in from_names)
            self.registers[to] = low | high << bits

    def _typed(self, kind: str, name: str) -> np.ndarray:
        value = self.value(name)
        if kind == "f32":
            return _floats(value)
        return value.astype(np.uint32).view(np.int32) if kind == "s32" else value

    def _compute(self, operation: list[str], v: list[np.ndarray]) -> np.ndarray:
        name, kind = operation[0], operation[-1]
        if kind == "f32" and name != "cvt":
            a, *rest = (_floats(x) for x in v)
            b, c = (*rest, None, None)[:2]
            propagates = "NaN" in operation
            exact = np.float64
            return _words({
                "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b,
                "fma": lambda: exact(a) * exact(b) + exact(c),
                "abs": lambda: np.abs(a), "neg": lambda: -a,
                "min": lambda: np.minimum(a, b) if propagates else np.fmin(a, b),
                "max": lambda: np.maximum(a, b) if propagates else np.fmax(a, b),
            }[name]())  # fmt: skip
        if kind == "f16x2" and name == "abs":
            return v[0] & _U64(0x7FFF7FFF)
        if kind == "f16x2" and name == "set":
            less = [_half(v[0], i, np.float16) < _half(v[1], i, np.float16) for i in range(2)]
            one = _U64(0xFFFF if operation[-2] == "u32" else 0x3C00)
            return np.where(less[0], one, _U64(0)) | np.where(less[1], one, _U64(0)) << _U64(16)
        if kind in ("bf16", "bf16x2") and name in ("fma", "mul"):
            x = [[_half(y, i, ml_dtypes.bfloat16).astype(np.float64) for y in v] for i in range(2)]
            return _pack(*(y[0] * y[1] + y[2] if name == "fma" else y[0] * y[1] for y in x))
        if name == "cvt":
            return self._convert(operation[-2:], v)
        if name == "lop3":
            out = _U64(0)
            for i in range(8):
                if int(v[3]) >> i & 1:
                    term = [x if i >> (2 - j) & 1 else ~x for j, x in enumerate(v[:3])]
                    out = out | term[0] & term[1] & term[2]
            return out & _LOW
        if name == "shf":  # of two words as one; l keeps the upper, r the lower word
            both, by = (v[0] & _LOW) | v[1] << _U64(32), v[2] & _U64(31)
            return (both << by) >> _U64(32) if "l" in operation else (both >> by) & _LOW
        if name == "bfe":
            return (v[0] >> v[1]) & ((_U64(1) << v[2]) - _U64(1))
        if name == "prmt":
            both, out = (v[0] & _LOW) | v[1] << _U64(32), _U64(0)
            for i in range(4):
                which = v[2] >> _U64(4 * i) & _U64(7)
                out = out | (both >> which * _U64(8) & _U64(255)) << _U64(8 * i)
            return out
        if name in ("mul", "mad") and ("wide" in operation or "hi" in operation):
            a, b = (
                self._integer(kind, x).astype(np.int64 if kind[0] == "s" else _U64) for x in v[:2]
            )
            wide = (a * b).astype(_U64) + (v[2] if name == "mad" else _U64(0))
            return wide >> _U64(32) if "hi" in operation else wide
        signed = kind[0] == "s" and name in ("min", "max", "shr")
        a, *rest = (self._integer(kind, x) for x in v) if signed else v
        b = rest[0] if rest else _U64(0)
        result = {
            "mov": lambda: a, "and": lambda: a & b, "or": lambda: a | b, "xor": lambda: a ^ b,
            "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b,
            "mad": lambda: a * b + v[2], "not": lambda: ~a,
            "shl": lambda: a << b, "shr": lambda: a >> b,
            "min": lambda: np.minimum(a, b), "max": lambda: np.maximum(a, b),
        }[name]()  # fmt: skip
        bits = int(kind[1:]) if kind[1:].isdigit() else 32
        return result.astype(_U64) & _U64(2**bits - 1)

    def _convert(self, kinds: list[str], v: list[np.ndarray]) -> np.ndarray:
        to, source = kinds
        if to == "bf16x2":
            return _pack(_floats(v[1]), _floats(v[0]))
        if to == "bf16":
            return _pack(_floats(v[0]), np.float32(0))
        if source == "bf16":
            return _words(_half(v[0], 0, ml_dtypes.bfloat16))
        if source == "f32":
            return _floats(v[0]).astype(np.int32).view(np.uint32).astype(_U64)
        if to == "f32":
            return _words(self._integer(source, v[0]).astype(np.float32))
        return self._integer(source, v[0]).astype(_U64) & _U64(2 ** int(to[1:]) - 1)

    def _integer(self, kind: str, value: np.ndarray) -> np.ndarray:
        """The integer of a type that the lowest bits of a register are."""
        unsigned = value.astype(f"u{int(kind[1:]) // 8}")
        return unsigned.view(unsigned.dtype.str.replace("u", "i")) if kind[0] == "s" else unsigned

    def _move(self, operation: list[str], operands: list[str], guard: str) -> None:
        if "param" in operation:
            index = int(re.findall(r"_(\d+)\]", operands[1])[0])
            self.registers[operands[0]] = np.full(self.threads, index << 40, _U64)
            return
        loads = operation[0] == "ld"
        registers, place = operands if loads else operands[::-1]
        names = [x.strip() for x in registers.strip("{}").split(",")]
        register, offset = re.fullmatch(r"\[\s*([%\w]+)\s*\+?\s*(-?\d+)?\s*\]", place).groups()
        address = np.broadcast_to(self.value(register), self.threads)
        address = address + _U64(int(offset or 0) % 2**64)
        active = np.broadcast_to(True, self.threads)
        if guard:
            active = self.registers[guard.lstrip("!")] ^ guard.startswith("!")
        size = int(operation[-1][1:]) // 8
        dtype = np.dtype(f"u{size}")
        memory = self.memory[int(address.flat[0] >> _U64(40))].view(dtype)
        at = ((address & _U64(2**40 - 1)) // _U64(size)).astype(np.int64)
        for i, name in enumerate(names):
            if loads:
                self.registers[name] = memory[at + i].astype(_U64)
            else:
                values = np.broadcast_to(self.value(name), self.threads).astype(dtype)
                memory[(at + i)[active]] = values[active]

    def _store_matrices(self, place: str, registers: str) -> None:
        """Store matrices of eight rows of four words; a lane has the address of one row."""
        address = self.value(place.strip("[]")).reshape(-1, WARP)
        lane = np.arange(WARP)
        memory = self.memory[int(address.flat[0] >> _U64(40))].view(np.uint32)
        for i, name in enumerate(registers.strip("{}").split(",")):
            at = (address[:, 8 * i + lane // 4] & _U64(2**40 - 1)) // _U64(4) + lane.astype(
                _U64
            ) % _U64(4)
            words = np.broadcast_to(self.value(name.strip()), self.threads).astype(np.uint32)
            memory[at.astype(np.int64).ravel()] = words

    def _multiply(self, d: list[str], a: list[str], b: list[str], c: list[str]) -> None:
        """m16n8k16 of bfloat16: which lane has which entries is in the PTX ISA."""
        group, member = np.arange(WARP) // 4, np.arange(WARP) % 4
        out = np.zeros((4, self.threads), np.float32)
        for warp in range(self.threads // WARP):
            lanes = slice(WARP * warp, WARP * (warp + 1))

            def lane_values(name, lanes=lanes):
                return np.broadcast_to(self.value(name), self.threads)[lanes]

            left, right, start = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
            for i in range(2):
                for name, row, column in zip(a, (0, 8, 0, 8), (0, 0, 8, 8), strict=True):
                    entry = _half(lane_values(name), i, ml_dtypes.bfloat16)
                    left[group + row, member * 2 + column + i] = entry
                for name, row in zip(b, (0, 8), strict=True):
                    entry = _half(lane_values(name), i, ml_dtypes.bfloat16)
                    right[member * 2 + row + i, group] = entry
            places = [(group + row, member * 2 + i) for row in (0, 8) for i in range(2)]
            for name, place in zip(c, places, strict=True):
                start[place] = _floats(lane_values(name))
            total = _sum_truncated(left[:, :, None] * right[None], start)
            for i, place in enumerate(places):
                out[i, lanes] = total[place]
        for name, values in zip(d, out, strict=True):
            self.registers[name] = _words(values)


def _sum_truncated(products: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Sum over axis 1, each term cut off after 24 bits of the largest."""
    terms = np.concatenate([products, start[:, None]], axis=1)
    largest = np.abs(terms).max(axis=1, keepdims=True)
    finite = np.isfinite(largest) & (largest > 0)
    step = np.exp2(np.floor(np.log2(np.where(finite, largest, 1))) - 23)
    cut = np.where(finite, np.trunc(terms / step) * step, terms)
    return cut.sum(axis=1).astype(np.float32)
