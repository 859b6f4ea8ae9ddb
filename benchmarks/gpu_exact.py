# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Section "exact": every implementation against the reference on the CPU, bit for bit."""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax import pallas
from pqt_jax.numerics import reference
from pqt_jax.numerics.formats import BF16, E2M1, E2M3, E3M2, E4M3, E4M7, E5M2, FP32, FloatFormat
from pqt_jax.numerics.spec import Spec
from pqt_jax.pallas import Implementation

FORMATS = (BF16, FP32, E4M7, E4M3, E5M2, E3M2, E2M3, E2M1, FloatFormat(8, 3))
SPECS = (
    *(Spec(dtype=fmt) for fmt in FORMATS),
    *(Spec(dtype=fmt, encoded=True) for fmt in (E4M3, E5M2)),
    Spec(dtype=E4M3, scale="floor"),
    Spec(noise="uniform", dtype=FP32),
)
PLACE = (np.array([0x12345678, 0x9ABCDEF0], np.uint32), np.array([3, 5, 7], np.uint32))
DENORMAL = (0, slice(32, 64), slice(0, 32))  # the CPU takes these for zeros, and a GPU does not
MOST_WORKERS = 6  # nearly all of the time is tracing and compilation, on the CPU


def weights(smoke: bool) -> tuple[np.ndarray, np.ndarray]:
    """A ragged stack with blocks of everything that could go wrong, and b_i for b_t from 1 to 9."""
    m, n = (70, 130) if smoke else (4100, 1090)
    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.02, (2, m, n)).astype(np.float32)
    w[0, 3, 5] = np.nan
    w[0, 7, 40] = np.inf
    w[0, 9, 70], w[0, 9, 71] = -np.inf, np.nan
    w[0, :32, 96:] = -0.0
    w[DENORMAL] *= np.float32(2.0**-130)
    w[0, 32:, 32:64] *= np.float32(2.0**120)
    w[1, :32, :32] = 0
    w[1, 32:64, :32] = np.ldexp(1.0, np.arange(32))
    b_t = rng.uniform(1, 9, (2, -(-m // 32), -(-n // 32)))
    return w, ((b_t - 4) / 2).astype(np.float32)


def run(smoke: bool) -> Iterator[dict[str, Any]]:
    """`{"cases": {name: what differs}, "wrong": names}`; an empty text says that all is equal."""
    specs = (Spec(), Spec(dtype=E4M3, encoded=True)) if smoke else SPECS
    dtypes = (jnp.float32,) if smoke else (jnp.float32, jnp.bfloat16)
    noises = [Spec(noise=noise) for noise in ("gauss", "uniform")]
    checks = [(smoke, "forward", *some) for some in itertools.product(specs, dtypes)]
    checks += [(smoke, "backward", *some) for some in itertools.product(noises, dtypes)]
    workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // 2))
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # in the workers
    cases: dict[str, str] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        # Only one process can have a TPU, and it is this one.
        apply = map if jax.devices()[0].platform == "tpu" else pool.map
        for some in apply(_cases, checks):
            cases |= some
            print("\n".join(f"{what or 'equal':8s} {name}" for name, what in some.items()))
    wrong = [f"{name}: {what}" for name, what in cases.items() if what]
    print(f"exact: {len(cases) - len(wrong)} of {len(cases)} cases are equal", flush=True)
    yield {"cases": cases, "wrong": wrong}


def _cases(check: tuple[bool, str, Spec, Any]) -> dict[str, str]:
    """Name → what differs, of every implementation."""
    smoke, direction, spec, dtype = check
    names: list[Implementation] = [*pallas.KERNELS, "xla"]
    w, b_i = weights(smoke)
    compare, of_cpu, title = _forward, reference.forward, f"to {_title(spec)}"
    operands: tuple[Any, ...] = (jnp.asarray(w, dtype), b_i, *PLACE)
    if direction == "backward":
        compare, of_cpu, title = _backward, reference.backward, spec.noise
        operands = (jnp.asarray(np.random.default_rng(1).normal(size=w.shape), dtype), *PLACE)
    want = _on_cpu(functools.partial(of_cpu, spec), operands)
    with pallas.interpret() if smoke else contextlib.nullcontext():
        return {
            f"{name}: {direction}, {jnp.dtype(dtype)} {title}": _attempt(
                compare, name, spec, operands, want
            )
            for name in names
            if pallas.is_supported(name)[0]
        }


def _title(spec: Spec) -> str:
    default = Spec()
    fields = dataclasses.asdict(spec).items()
    other = [f"{k}={v}" for k, v in fields if k != "dtype" and v != getattr(default, k)]
    return " ".join([str(spec.dtype), *other])


def _attempt(check: Any, *arguments: Any) -> str:
    try:
        return check(*arguments)
    except Exception as error:  # whatever a compiler or a driver may raise is a finding
        return f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"


def _on_cpu(function: Any, operands: tuple[Any, ...]) -> Any:
    return jax.device_get(jax.jit(function)(*jax.device_put(operands, jax.devices("cpu")[0])))


def _on_default(function: Any, operands: tuple[Any, ...]) -> Any:
    return jax.device_get(jax.jit(function)(*jax.device_put(operands, jax.devices()[0])))


def _forward(name: Implementation, spec: Spec, operands: tuple[Any, ...], want: Any) -> str:
    forward, _ = pallas.get_functions(name)

    def ways(w, b_i, *place):
        """Alone, and by a kernel also after another stack in one launch."""
        stack, first = (w, b_i, *place), (w[:1, :64, :96], b_i[:1, :2, :3], *place)
        launches = [(stack,), (first, stack)][: 1 + (name in pallas.KERNELS)]
        return [forward(spec, *stacks)[-1] for stacks in launches]

    got, *shared = _on_default(ways, operands)
    if any(_differs(a, b).any() for way in shared for a, b in zip(got, way, strict=True)):
        return "a shared launch differs from one alone"
    differ = [_differs(a, b) for a, b in zip(got, want, strict=True)]
    differ[0][DENORMAL] = False
    differ[1][0, 1, 0] = False
    if spec.noise == "uniform":  # its product rounds, or is fused into the sum: as |R·scale| goes
        w, a, b = (x.astype(np.float32) for x in (operands[0], got[0], want[0]))
        with np.errstate(invalid="ignore"):
            differ[0] &= ~(np.abs(a - b) <= np.float32(2.0**-23) * (np.abs(w) + np.abs(b)))
    counts = [int(d.sum()) for d in differ]
    return f"{counts[0]} values and {counts[1]} maxima differ" if any(counts) else ""


def _differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Other bits, but for NaN, of which one is as good as another."""
    if a.dtype != b.dtype or a.shape != b.shape:
        raise TypeError(f"{a.dtype}{a.shape} where {b.dtype}{b.shape} should be")
    nan = np.isnan(a.astype(np.float32)) & np.isnan(b.astype(np.float32))
    word = {1: np.uint8, 2: np.uint16, 4: np.uint32}[a.dtype.itemsize]
    return (a.view(word) != b.view(word)) & ~nan


def _backward(name: Implementation, spec: Spec, operands: tuple[Any, ...], want: Any) -> str:
    _, backward = pallas.get_functions(name)

    def ways(cotangent, *place):
        stack, first = (cotangent, *place), (cotangent[:1, :64, :96], *place)
        launches = [(stack,), (first, stack)][: 1 + (name in pallas.KERNELS)]
        return [backward(spec, *stacks)[-1][0] for stacks in launches]

    got, *shared = _on_default(ways, operands)
    if any(_differs(got, way).any() for way in shared):
        return "a shared launch differs from one alone"
    error = float(np.abs(np.subtract(got, want)).max() / np.abs(want).max())
    return "" if error <= 1e-6 else f"off by {error:.1e} of the largest sum"  # order of the sums
