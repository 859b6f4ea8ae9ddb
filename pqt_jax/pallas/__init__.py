# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Kernels for sampling, and the choice between them. Kernels are imported on first use.

"mosaic"       Pallas on Mosaic GPU    Ampere and newer, jax 0.11 and newer
"triton"       Pallas on Triton        Ampere and newer, while jax still has it
"mosaic_tpu"   Pallas on Mosaic TPU    v5e, v5p and newer; compiled and interpreted, not run yet
"xla"          `pqt_jax.numerics.reference`     everywhere
"""

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
from jax.sharding import AxisType

from pqt_jax.numerics import reference
from pqt_jax.numerics.partition import Stack
from pqt_jax.numerics.spec import Spec

Implementation = Literal["mosaic", "triton", "mosaic_tpu", "xla"]
KERNELS: tuple[Implementation, ...] = ("mosaic", "triton", "mosaic_tpu")  # the best first
BLOCK = (32, 32)
MAX_SHARED = 2**23  # weights of several matrices that one launch samples

_interpreting = False


@contextlib.contextmanager
def interpret() -> Iterator[None]:
    """Run the kernels in their interpreters, on any platform: slow, for tests.

    A function that is compiled in this context keeps the interpreted kernel afterwards. Give
    `jax.jit` a new function here. Inside `jax.shard_map` the interpreters need `check_vma=False`.
    """
    global _interpreting
    previous, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = previous


def is_supported(implementation: Implementation, spec: Spec = Spec()) -> tuple[bool, str]:
    """Whether an implementation supports a spec on the default platform, and if not, why.

    Example:
      >>> is_supported("xla")
      (True, '')
      >>> is_supported("mosaic", Spec(block=(16, 16)))
      (False, 'blocks are 16x16, and the kernels take 32x32 alone')

    Args:
      implementation: "mosaic", "triton", "mosaic_tpu" or "xla".
      spec: how a parameter is sampled.

    Returns:
      (supported, reason); the reason is empty if it is supported.

    Raises:
      ValueError: for another name.
    """
    if implementation == "xla":
        return True, ""
    if implementation not in KERNELS:
        names = ", ".join((*KERNELS, "xla"))
        raise ValueError(f"implementation={implementation!r}; it must be one of {names}, or None")
    if spec.noise == "none":
        return False, "noise='none' is a cast alone, which XLA does"
    if spec.block != BLOCK:
        sides = "x".join(map(str, spec.block))
        return False, f"blocks are {sides}, and the kernels take 32x32 alone"
    reason = None
    if not _interpreting:
        reason = _unsuited_device(implementation) or _cannot_partition(implementation, spec)
    reason = reason or _import_problem(implementation)
    return reason is None, reason or ""


def needs_sharding() -> bool:
    """Whether the default device's kernel needs `Spec.sharding` on a mesh with Auto axes."""
    return not _interpreting and _unsuited_device("mosaic_tpu") is None


def _cannot_partition(implementation: str, spec: Spec) -> str | None:
    """Return why a kernel may meet arrays here that nothing can partition for it, or None.

    `custom_partitioning` does not work on TPUs (jax issue 38196, open with jax 0.12.0.1): a program
    for several devices would end in an error of the compiler. How many a program is for is not
    known before it is compiled.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = {*mesh.axis_types}
    if implementation != "mosaic_tpu" or jax.device_count() == 1 or AxisType.Explicit in types:
        return None
    if AxisType.Manual in types:
        if AxisType.Auto not in types:
            return None
        return "XLA partitions no kernel on a TPU; let jax.shard_map map all axes of the mesh"
    if not mesh.empty and (mesh.size == 1 or spec.sharding is not None):
        return None
    return (
        "XLA partitions no kernel on a TPU; set a mesh by jax.set_mesh and give "
        "sharding=PartitionSpec(…), or use a mesh with Explicit axes, or jax.shard_map"
    )


@functools.cache
def _import_problem(implementation: str) -> str | None:
    """Import the module of a kernel; return why that fails, or None."""
    if implementation == "mosaic" and jax.__version_info__ < (0, 11):
        return f"Mosaic GPU needs jax 0.11, and this is {jax.__version__}"
    try:
        importlib.import_module(f"pqt_jax.pallas.{implementation}")
    except (ImportError, AttributeError) as error:
        return f"jax {jax.__version__} does not have it: {error}"
    return None


def _unsuited_device(implementation: str) -> str | None:
    """Return why the default device cannot run a kernel, or None."""
    device = jax.devices()[0]
    if implementation == "mosaic_tpu":
        if device.platform != "tpu":
            return f"the kernel needs a TPU, and the default platform is {device.platform}"
        if re.match(r"TPU v[234]\b", device.device_kind):  # they multiply no 32 bits
            return f"the kernel needs a TPU v5e, v5p or newer, and this is {device.device_kind}"
        return None
    if device.platform not in ("gpu", "cuda"):
        return f"the kernels need an NVIDIA GPU, and the default platform is {device.platform}"
    capability = getattr(device, "compute_capability", None)
    try:
        recent = float(capability or 0) >= 8.0
    except ValueError:  # a GPU of another vendor, such as "gfx90a"
        recent = False
    if not recent:
        return f"the kernels need compute capability 8.0, and {device.device_kind} has {capability}"
    return None


def choose_implementation(implementation: Implementation | None, spec: Spec) -> Implementation:
    """Return the named implementation, or the best supported one for None.

    Raises:
      ValueError: if the named one is not supported; the message says why.
    """
    if implementation is None:
        best: list[Implementation] = [name for name in KERNELS if is_supported(name, spec)[0]]
        return best[0] if best else "xla"
    supported, reason = is_supported(implementation, spec)
    if not supported:
        raise ValueError(f"implementation={implementation!r}: {reason}")
    return implementation


def share_launches(
    implementation: Implementation, stacks: Mapping[str, Stack]
) -> list[tuple[str, ...]]:
    """Choose which stacks of one spec and dtype are sampled by one launch.

    A launch takes about two microseconds beyond its bytes. A matrix of 2²⁰ weights takes as long on
    an H200, so that small matrices gain by sharing one, and large ones lose nothing without. What
    shares a launch is in memory at the same time: at most 16 MB of ŵ in bfloat16.

    Args:
      implementation: a kernel, or "xla". XLA launches nothing, and a launch on a TPU is part of
        the program, which costs nothing beyond its work.
      stacks: path → operands, the matrices first.

    Returns:
      Paths, in the order of `stacks`: together while they have at most `MAX_SHARED` weights.
    """
    if implementation in ("xla", "mosaic_tpu"):
        return [(path,) for path in stacks]
    groups: list[list[str]] = []
    weights = 0
    for path, (matrices, *_) in stacks.items():
        weights += matrices.size
        if not groups or weights > MAX_SHARED:
            groups.append([])
            weights = matrices.size
        groups[-1].append(path)
    return [tuple(group) for group in groups]


def get_functions(implementation: Implementation) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return (forward, backward) of an implementation, for any number of stacks of matrices.

    A kernel takes all of them in one launch; they must have one dtype.

        forward    (spec, *(w, b_i, words, offset))    → ((ŵ, max_B|w|), …)
        backward   (spec, *(∂L/∂ŵ, words, offset))     → ((block sums,), …)

    The operands of a stack are those of `reference`.
    """
    if implementation == "xla":
        return _forward_by_xla, _backward_by_xla
    from pqt_jax.pallas import launch

    return (
        functools.partial(launch.forward, implementation, _interpreting),
        functools.partial(launch.backward, implementation, _interpreting),
    )


def _forward_by_xla(spec: Spec, *stacks: Stack) -> tuple[Stack, ...]:
    return tuple(reference.forward(spec, *stack) for stack in stacks)


def _backward_by_xla(spec: Spec, *stacks: Stack) -> tuple[Stack, ...]:
    return tuple((reference.backward(spec, *stack),) for stack in stacks)
