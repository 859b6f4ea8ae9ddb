# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Section "rates": how many of the instructions that the kernels are made of a GPU executes.

Each thread repeats one instruction, in eight chains that do not depend on each other (tensor cores:
four). The yardstick is FFMA, of which a multiprocessor of an A100 executes 64 a clock for all its
threads, and one of an H100 or H200 128, so that no clock needs to be known.
"""

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

UNROLLED, REPEATED = 8, 512  # times that each chain's instruction stands in the loop; of the loop
WARPS, THREADS = 8, 256  # of a program
YARDSTICK = "FFMA"


class Instruction(NamedTuple):
    """One that is measured.

    Attributes:
      chains: how many there are.
      registers: declarations of what the step of chain `{i}` uses.
      start: gives its registers values that come from `$1`, so that nothing is known in advance.
      step: the instruction, which reads what it writes, or what chain `{next}` does.
      result: the register that has the result, 32 bits.
    """

    chains: int
    registers: str
    start: str
    step: str
    result: str


def _on_words(step: str, start: str = "add.u32 a{i}, $1, {i};", kind: str = "b32") -> Instruction:
    return Instruction(8, f".reg .{kind} a{{i}};", start, step, "a{i}")


INSTRUCTIONS = {
    YARDSTICK: _on_words("fma.rn.f32 a{i}, a{i}, a{i}, a{i};"),
    "IADD3": _on_words("add.u32 a{i}, a{i}, a{next};"),
    "LOP3": _on_words("lop3.b32 a{i}, a{i}, $1, 0x5BD1E995, 0x6A;"),
    "IMAD": _on_words("mad.lo.u32 a{i}, a{i}, a{i}, $1;"),
    "IMAD.HI": _on_words("mad.hi.u32 a{i}, a{i}, 0xD2511F53, $1;"),
    "IMAD.WIDE": Instruction(
        8,
        ".reg .b64 w{i}; .reg .b32 a{i}, b{i};",
        "mul.wide.u32 w{i}, $1, 0x9E3779B{i};",
        "mov.b64 {{b{i}, a{i}}}, w{i}; mad.wide.u32 w{i}, a{i}, 0xD2511F53, w{i};",
        "a{i}",
    ),
    "HSET2": _on_words("set.lt.f16x2.f16x2 a{i}, a{i}, $1;"),
    "HFMA2.BF16": _on_words("fma.rn.bf16x2 a{i}, a{i}, a{i}, $1;"),
    "HMMA 16x8x16": Instruction(
        4,
        ".reg .b32 d{i}, e{i}, f{i}, a{i};",
        "mov.b32 d{i}, $1; mov.b32 e{i}, $1; mov.b32 f{i}, $1; mov.b32 a{i}, $1;",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{d{i}, e{i}, f{i}, a{i}}}, "
        "{{$1, $1, $1, $1}}, {{$1, $1}}, {{d{i}, e{i}, f{i}, a{i}}};",
        "a{i}",
    ),
}


def text(instruction: Instruction) -> str:
    """Inline PTX, a word → a word, that repeats an instruction."""
    each = range(instruction.chains)

    def of_chains(line: str) -> str:
        return "\n".join(line.format(i=i, next=(i + 1) % len(each)) for i in each)

    mixed = of_chains(f"xor.b32 $0, $0, {instruction.result};")
    steps = "\n".join([of_chains(instruction.step)] * UNROLLED)
    return f"""{{
.reg .pred more; .reg .b32 left;
{of_chains(instruction.registers)}
{of_chains(instruction.start)}
mov.b32 left, {REPEATED};
again:
{steps}
sub.s32 left, left, 1;
setp.ne.s32 more, left, 0;
@more bra again;
mov.b32 $0, 0;
{mixed}
}}"""


def make_program(name: str, programs: int) -> Callable[[jax.Array], jax.Array]:
    """A function of int32[programs · THREADS] that repeats an instruction in each thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jax has deprecated this back-end
        from jax.experimental.pallas import triton as plt
    like = [jax.ShapeDtypeStruct((THREADS,), jnp.int32)]
    inline = functools.partial(
        plt.elementwise_inline_asm, constraints="=&r,r", pack=1, result_shape_dtypes=like
    )

    def kernel(x_ref, out_ref):
        (out_ref[...],) = inline(text(INSTRUCTIONS[name]), args=[x_ref[...]])

    piece = pl.BlockSpec((THREADS,), lambda i: (i,))
    return pl.pallas_call(
        kernel,
        grid=(programs,),
        in_specs=[piece],
        out_specs=piece,
        out_shape=jax.ShapeDtypeStruct((programs * THREADS,), jnp.int32),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
    )


def run(smoke: bool) -> Iterator[dict[str, Any]]:
    """`{instruction: {…}}`: executed per second by all threads, and as a share of FFMA's."""
    del smoke
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda"):
        reason = f"needs an NVIDIA GPU, and the default platform is {device.platform}"
        print(f"rates: {reason}", flush=True)
        yield {"not_run": reason}
        return
    programs = 8 * int(getattr(device, "core_count", 128))
    x = jnp.arange(programs * THREADS, dtype=jnp.int32)
    compiled = {
        name: jax.jit(make_program(name, programs)).lower(x).compile() for name in INSTRUCTIONS
    }
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for program in compiled.values():
        jax.block_until_ready(program(x))
    for _ in range(15):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(x))
            times[name].append(time.perf_counter() - start)
    table = {}
    for name, seconds in times.items():
        executed = programs * THREADS * INSTRUCTIONS[name].chains * UNROLLED * REPEATED
        low, middle, high = statistics.quantiles([executed / s for s in seconds], n=4)
        table[name] = {"per_second": middle, "quartiles": [low, high]}
    for name, row in table.items():
        row["share"] = row["per_second"] / table[YARDSTICK]["per_second"]
        print(
            f"{name:14s} {row['per_second']:9.3g} a second, {row['share']:6.1%} of FFMA's",
            flush=True,
        )
    yield table
