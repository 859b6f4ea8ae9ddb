# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Section "train": the training step of Llama 2 with each method, interleaved.

overhead   time of a step / that of bf16 in the same round − 1
memory     arguments, results and temporaries of the compiled step, what is donated counted once
peak       what the compiler says is held at most at once; a CPU's leaves temporaries out
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np

from pqt_jax.config import default, rules
from pqt_jax.models.llama2 import LLAMA2_1B, LLAMA2_134M, Llama2Config
from pqt_jax.state import abstract_state, init_state
from pqt_jax.step import make_optimizer, make_train_step

TOKENS = 16384  # per step
METHODS = ("bf16", "gaussws", "uniform")


def models(smoke: bool) -> dict[str, tuple[Llama2Config, int, int, int]]:
    """Name → (model, tokens in a sequence, rounds, steps of each method in a round)."""
    if smoke:
        return {"tiny": (Llama2Config(256, 64, 2, 2, 96), 32, 2, 1)}
    return {"Llama2-1B": (LLAMA2_1B, 2048, 8, 3), "Llama2-134M": (LLAMA2_134M, 2048, 12, 8)}


def run(smoke: bool) -> dict[str, Any]:
    """`{model: {"batch": …, method: {…}}}`; a model that does not fit has its error instead."""
    table = {}
    for name, (model, length, rounds, steps) in models(smoke).items():
        fused = jax.devices()[0].platform == "gpu"
        batch = 2 if smoke else TOKENS // length
        while name not in table:
            model = dataclasses.replace(model, attention="cudnn" if fused else "xla")
            try:
                table[name] = measure(name, model, batch, length, rounds, steps)
            except Exception as error:  # out of memory, or a driver without this attention
                what = f"{type(error).__name__}: {str(error)[:300]}"
                print(f"{name}: batch {batch}, attention {model.attention}: {what}", flush=True)
                if fused and "RESOURCE_EXHAUSTED" not in what:
                    fused = False
                elif batch > 1:
                    batch //= 2
                else:
                    table[name] = {"error": what}
    return table


def measure(
    name: str, model: Llama2Config, batch: int, length: int, rounds: int, steps: int
) -> dict[str, Any]:
    """`{method: {"tokens_per_second", "overhead", "quartiles", "memory_bytes", "peak_bytes"}}`."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (batch, length + 1), np.int32)
    key, data = jax.random.key(0), jax.device_put(tokens)
    compiled, states, times = {}, {}, {method: [] for method in METHODS}
    for method in METHODS:
        config = default(model)
        config.method = method
        optimizer = make_optimizer(config)
        kind = method == "bf16"  # the other two differ in nothing but the noise, and share a state
        if kind in states:
            graph, _ = abstract_state(config, optimizer)
        else:
            graph, states[kind] = init_state(config, optimizer)
        step = make_train_step(graph, optimizer, rules(config))
        compiled[method] = step.lower(states[kind], data, key).compile()
        states[kind] = jax.block_until_ready(compiled[method](states[kind], data, key)[0])
    for _ in range(rounds):
        for method in METHODS:
            kind = method == "bf16"
            state, _ = jax.block_until_ready(compiled[method](states[kind], data, key))
            start = time.perf_counter()
            for _ in range(steps):
                state, metrics = compiled[method](state, data, key)
            jax.block_until_ready(metrics)
            times[method].append((time.perf_counter() - start) / steps)
            states[kind] = state
    table: dict[str, Any] = {"batch": batch, "length": length, "attention": model.attention}
    for method, seconds in times.items():
        ratios = [own / bf16 for own, bf16 in zip(seconds, times["bf16"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rate = batch * length / statistics.median(seconds)
        table[method] = {
            "tokens_per_second": rate,
            "overhead": middle - 1,
            "quartiles": [low - 1, high - 1],
            **memory(compiled[method]),
        }
        size = table[method]["memory_bytes"] / table["bf16"]["memory_bytes"] - 1
        line = f"{name:12s} {method:8s} {rate:10.0f} tokens/s, overhead {middle - 1:+.2%}"
        print(f"{line} ({low - 1:+.2%} to {high - 1:+.2%}), memory {size:+.2%}", flush=True)
    return table


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled step: all that it touches, and the compiler's peak."""
    stats = compiled.memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return {
        "memory_bytes": held - stats.alias_size_in_bytes,
        "peak_bytes": stats.peak_memory_in_bytes,
    }
