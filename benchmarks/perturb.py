# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Speed of `perturb`, in multiples of a copy-and-cast of the same matrix (= 1.0).

    python benchmarks/perturb.py [--size 4096] [--rounds 9] [--out FILE.json]    (under a minute)

Every row returns all that it computes (ŵ, and where it says so ∂L/∂w and ∂L/∂b), so that nothing is
dead code. Rows are interleaved: each round runs all of them once, and a row's figure is the median
over rounds of its time divided by the copy's median, with the quartiles as spread.

With qwix installed (extra "bench") its deterministic fake quantization is measured, too.

Floor of the forward: one read of w (4 B per element) and one write of ŵ (2 B), as the copy does.
The block maximum needs a second pass (another 4 B read); the noise codes are written and read
once (½ B each). Backward: read ∂L/∂ŵ (2 B), write ∂L/∂w (4 B); R once more (½ + ½ B).
"""

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import pqt_jax
from pqt_jax.transform.perturb import Spec, perturb


def copy_and_cast(w, b, g, key):
    """What a mixed-precision step does anyway."""
    return w.astype(jnp.bfloat16)


def naive(w, b, g, key):
    """The formula as one would first write it."""
    m, n = w.shape
    absmax = jnp.max(jnp.abs(w).reshape(m // 32, 32, n // 32, 32), axis=(1, 3))
    scale = jax.lax.stop_gradient(absmax) * jnp.exp2(1 - (4 + 2 * b))
    scale = jnp.repeat(jnp.repeat(scale, 32, axis=0), 32, axis=1)
    noise = jnp.round(jax.random.normal(key, w.shape) / 2)
    return (w + noise * scale).astype(jnp.bfloat16)


def ours(spec: Spec) -> Callable[..., Any]:
    """The library's forward."""
    return lambda w, b, g, key: perturb(w, b, key, spec)


def qwix_fake_quantization(qtype: str, tile: int | None) -> Callable[..., Any]:
    """A deterministic peer: qwix's quantize and dequantize, straight through in the backward."""
    import qwix  # extra "bench"  # pyright: ignore[reportMissingImports]

    @jax.custom_vjp
    def fake(w):
        tiles = {0: tile, 1: tile} if tile else {}
        return qwix.dequantize(qwix.quantize(w, qtype, tiled_axes=tiles)).astype(jnp.bfloat16)

    fake.defvjp(lambda w: (fake(w), None), lambda _, g: (g.astype(jnp.float32),))
    return lambda w, b, g, key: fake(w)


def with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    """ŵ, ∂L/∂w and ∂L/∂b of a forward."""

    def both(w, b, g, key):
        w_hat, pullback = jax.vjp(lambda w, b: forward(w, b, g, key), w, b)
        return w_hat, *pullback(g.astype(w_hat.dtype))

    return both


def rows() -> dict[str, Callable[..., Any]]:
    """Name of each row → function of (w, b, g, key)."""
    gauss, uniform = ours(Spec()), ours(Spec(noise="uniform"))
    fp6 = ours(Spec(dtype="float6_e3m2fn"))
    peers = {}
    if importlib.util.find_spec("qwix"):
        for qtype, tile in (("int8", None), ("float8_e4m3fn", 32), ("int4", 32)):
            name = f"qwix {qtype}" + (f" {tile}x{tile}" if tile else "")
            peers[name] = qwix_fake_quantization(qtype, tile)
            peers[f"{name}, + backward"] = with_gradients(peers[name])
    return {
        "copy and cast": copy_and_cast,
        "naive, forward": naive,
        "naive, forward + backward": with_gradients(naive),
        "gauss, forward": gauss,
        "gauss, forward + backward": with_gradients(gauss),
        "uniform, forward": uniform,
        "uniform, forward + backward": with_gradients(uniform),
        "gauss to E3M2, forward": fp6,
        **peers,
    }


def measure(functions: dict[str, Callable[..., Any]], arguments: tuple, rounds: int):
    """Seconds of each function in each of `rounds` interleaved rounds."""
    compiled = {name: jax.jit(f).lower(*arguments).compile() for name, f in functions.items()}
    for f in compiled.values():
        jax.block_until_ready(f(*arguments))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, f in compiled.items():
            jax.block_until_ready(f(*arguments))  # untimed: what ran before it must not matter
            start = time.perf_counter()
            jax.block_until_ready(f(*arguments))
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Speed of perturb.")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    n = options.size
    if n < 32 or n % 32:
        parser.error(f"--size {n}: it must be a positive multiple of 32")
    kw, kg, key = jax.random.split(jax.random.key(0), 3)
    arguments = (
        jax.random.normal(kw, (n, n)),
        jnp.ones((n // 32, n // 32)),
        jax.random.normal(kg, (n, n), jnp.bfloat16),
        key,
    )
    times = measure(rows(), arguments, options.rounds)
    unit = statistics.median(times["copy and cast"])
    table = {}
    print(f"{n} x {n} float32, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print(f"{'':37s} {'ratio':>7s} {'quartiles':>15s} {'ms':>8s}")
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        ratio, spread = middle / unit, [low / unit, high / unit]
        table[name] = {"ratio": ratio, "quartiles": spread, "ms": middle * 1e3}
        print(f"{name:37s} {ratio:7.2f} {spread[0]:7.2f}–{spread[1]:<7.2f} {middle * 1e3:8.1f}")
    if options.out:
        record = {
            "size": n,
            "rounds": options.rounds,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
            "pqt_jax": pqt_jax.__version__,
            "rows": table,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
