# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Section "speed": sampling and its gradients, as shares of the bandwidth of a copy.

    bandwidth   bytes that have to be moved / time
    copy        w.astype(bfloat16): 4 bytes read and 2 written per weight, as in sampling
    share       bandwidth / that of the copy, of the same round

Several matrices go through one program, so that no matrix is in a cache and launches overlap.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pqt_jax import pallas
from pqt_jax.models.llama2 import LLAMA2_1B
from pqt_jax.numerics.formats import E4M3
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import Implementation
from pqt_jax.transform.perturb import perturb

LAYERS = 6  # of the 18, which are alike: more than any cache holds, and a third of the tracing


def shapes(smoke: bool) -> dict[str, list[tuple[int, int]]]:
    """Name → matrices of one program."""
    if smoke:
        return {"64x96": [(64, 96)] * 2}
    d, f = LLAMA2_1B.d_model, LLAMA2_1B.d_ff
    layer = [(d, d)] * 4 + [(d, f)] * 2 + [(f, d)]
    return {
        "4096x4096": [(4096, 4096)] * 8,
        "8192x28672": [(8192, 28672)] * 2,
        f"Llama2-1B, {LAYERS} layers": layer * LAYERS,
    }


def _forward(name: Implementation, spec: Spec, key, ws, bits, gs):
    return [
        perturb(w, b, key, spec, lead=i, implementation=name)
        for i, (w, b) in enumerate(zip(ws, bits, strict=True))
    ]


def _backward(name: Implementation, key, ws, bits, gs):
    """∂L/∂b alone: ∂L/∂w is the cotangent itself."""
    _, backward = pallas.get_functions(name)
    words = jax.random.key_data(key)
    offset = jnp.zeros(3, jnp.uint32)
    return [backward(Spec(), (g[None], words, offset.at[0].set(i)))[0][0] for i, g in enumerate(gs)]


def _copy(key, ws, bits, gs):
    return [w.astype(jnp.bfloat16) for w in ws]


def programs() -> dict[str, tuple[int, Callable[..., Any]]]:
    """Name → (bytes per weight, function)."""
    rows: dict[str, tuple[int, Callable[..., Any]]] = {"copy": (6, _copy)}
    names: list[Implementation] = [*pallas.KERNELS, "xla"]
    for name in names:
        if pallas.is_supported(name)[0]:
            rows[f"{name} forward to BF16"] = (6, functools.partial(_forward, name, Spec()))
            rows[f"{name} forward to E4M3 values"] = (
                6,
                functools.partial(_forward, name, Spec(dtype=E4M3)),
            )
            rows[f"{name} backward"] = (2, functools.partial(_backward, name))
    return rows


def run(smoke: bool) -> Iterator[dict[str, Any]]:
    """`{matrices: {row: {…}}}`, bandwidths in bytes per second."""
    for name, some in shapes(smoke).items():
        yield {name: _measure(name, some, smoke)}


def _measure(title: str, matrices: list[tuple[int, int]], smoke: bool) -> dict[str, Any]:
    weights = sum(m * n for m, n in matrices)
    keys = jax.random.split(jax.random.key(0), len(matrices))
    make = functools.partial(jax.jit, static_argnums=(1, 2))
    normal = make(jax.random.normal)
    operands = (
        jax.random.key(1),
        [normal(key, shape, jnp.float32) for key, shape in zip(keys, matrices, strict=True)],
        [jnp.ones((-(-m // 32), -(-n // 32))) for m, n in matrices],
        [normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, matrices, strict=True)],
    )
    table: dict[str, Any] = {}
    compiled, times = {}, {}
    for name, (_, function) in programs().items():
        try:
            compiled[name] = jax.jit(function).lower(*operands).compile()
            jax.block_until_ready(compiled[name](*operands))
            times[name] = []
        except Exception as error:  # recorded, and the other rows are measured
            compiled.pop(name, None)
            table[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    calls, rounds = (1, 3) if smoke else (5, 15)
    for _ in range(rounds):
        for name, program in compiled.items():
            jax.block_until_ready(program(*operands))
            start = time.perf_counter()
            for _ in range(calls):
                out = program(*operands)
            jax.block_until_ready(out)
            times[name].append((time.perf_counter() - start) / calls)
    for name, seconds in times.items():
        moved = programs()[name][0] * weights
        shares = [
            moved / kernel / (6 * weights / copy)
            for kernel, copy in zip(seconds, times["copy"], strict=True)
        ]
        low, middle, high = statistics.quantiles(shares, n=4)
        bandwidth = moved / statistics.median(seconds)
        table[name] = {"share": middle, "quartiles": [low, high], "bandwidth": bandwidth}
        line = f"{title:26s} {name:32s} {bandwidth / 1e9:8.0f} GB/s {middle:7.1%} of a copy"
        print(f"{line} ({low:.1%}–{high:.1%})", flush=True)
    return table
