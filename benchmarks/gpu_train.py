# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Section "train": the training step of Llama 2 and GPT2 with each method, interleaved.

overhead   time of a step / that of bf16 in the same round − 1
memory     arguments, results and temporaries of the compiled step, what is donated counted once
peak       largest memory in use at once, by the compiler; the CPU's leaves temporaries out
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from pqt_jax.models.gpt2 import GPT2_124M, GPT2Config
from pqt_jax.models.llama2 import LLAMA2_1B, LLAMA2_134M, Llama2Config
from pqt_jax.training.config.schema import default
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.state import abstract_state, init_state
from pqt_jax.training.step import build_train_step

METHODS = ("bf16", "gaussws", "uniform")


class Case(NamedTuple):
    """A model, and how its steps are timed.

    Attributes:
      model: its shapes.
      batch: sequences in a step.
      length: tokens in a sequence.
      rounds: number of rounds, each with every method in turn.
      steps: number of steps of a method in a round.
      loss_chunk, microbatches: as in `config.data`.
      sample_once: `config.pqt.sample_once` of the methods that sample.
    """

    model: Llama2Config | GPT2Config
    batch: int
    length: int
    rounds: int
    steps: int
    loss_chunk: int = 0
    microbatches: int = 1
    sample_once: bool = False


def cases(smoke: bool) -> dict[str, Case]:
    """The cases by name. A step of Llama 2 has 16384 tokens, of GPT2 65536, as in `gpt2_text`."""
    if smoke:
        return {
            "tiny": Case(Llama2Config(256, 64, 2, 2, 96), batch=2, length=32, rounds=2, steps=1),
            "tiny GPT2": Case(
                GPT2Config(256, 64, 2, 2, 96), batch=2, length=32, rounds=2, steps=1, loss_chunk=16
            ),
        }
    return {
        "GPT2-124M": Case(GPT2_124M, batch=64, length=1024, rounds=12, steps=4, loss_chunk=256),
        "Llama2-1B": Case(LLAMA2_1B, batch=8, length=2048, rounds=8, steps=3),
        "Llama2-134M": Case(LLAMA2_134M, batch=8, length=2048, rounds=12, steps=8),
    }


def run(smoke: bool) -> Iterator[dict[str, Any]]:
    """`{model: {"batch": …, method: {…}}}`; a model that does not fit has its error instead."""
    for name, case in cases(smoke).items():
        fused = jax.devices()[0].platform == "gpu"
        batch, table = case.batch, {}
        while not table:
            model = dataclasses.replace(case.model, attention="cudnn" if fused else "xla")
            try:
                table[name] = measure(name, case._replace(model=model, batch=batch))
            except Exception as error:  # out of memory, or a driver without this attention
                what = f"{type(error).__name__}: {str(error)[:300]}"
                print(f"{name}: batch {batch}, attention {model.attention}: {what}", flush=True)
                if fused and "RESOURCE_EXHAUSTED" not in what:
                    fused = False
                elif batch > 1:
                    batch //= 2
                else:
                    table[name] = {"error": what}
        yield table


def make_config(case: Case, method: str) -> Any:
    """The configuration of a case's step by one method."""
    config = default(case.model)
    config.method = method
    config.data.loss_chunk, config.data.microbatches = case.loss_chunk, case.microbatches
    config.pqt.sample_once = case.sample_once and method != "bf16"
    return config


def measure(name: str, case: Case) -> dict[str, Any]:
    """`{method: {"tokens_per_second", "overhead", "quartiles", "memory_bytes", "peak_bytes"}}`."""
    model, batch, length, rounds, steps, *_ = case
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (batch, length + 1), np.int32)
    key, data = jax.random.key(0), jax.device_put(tokens)
    compiled, states, times = {}, {}, {method: [] for method in METHODS}
    for method in METHODS:
        config = make_config(case, method)
        optimizer = make_optimizer(config)
        kind = method == "bf16"  # the other two differ in nothing but the noise, and share a state
        if kind in states:
            graph, _ = abstract_state(config, optimizer)
        else:
            graph, states[kind] = init_state(config, optimizer)
        step = build_train_step(config, graph, optimizer)
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
        ratios = [
            method_seconds / bf16
            for method_seconds, bf16 in zip(seconds, times["bf16"], strict=True)
        ]
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
    """Bytes of a compiled step: arguments, results and temporaries, and the compiler's peak."""
    stats = compiled.memory_analysis()
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return {
        "memory_bytes": total - stats.alias_size_in_bytes,
        "peak_bytes": stats.peak_memory_in_bytes,
    }
