# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Which part of what is on which device.

    axis of the mesh    splits
    data                the batch
    fsdp                the batch, and every matrix along the axis that tensor leaves
    tensor              heads, hidden units and the vocabulary

Moments and bit-widths lie as the weights do that they belong to, and ŵ as its weight; so sampling
adds no communication. What an axis does not divide is whole on every device of it.
"""

import bisect
import contextlib
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax.errors import InputError
from pqt_jax.transform.tree_paths import map_paths

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
# The end of a parameter's path → its last two axes.
_MATRICES = {
    r"attn/[qkv]/kernel|mlp/(gate|up)/kernel": ("fsdp", "tensor"),
    r"attn/out/kernel|mlp/down/kernel": ("tensor", "fsdp"),
    r"embed/embedding": ("tensor", "fsdp"),
    r"pos/embedding": (None, "fsdp"),
    r"head/kernel": ("fsdp", "tensor"),
}


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1) -> Mesh | None:
    """The mesh of a config.

    Args:
      data, fsdp, tensor: devices along each axis; data=0 for all that the others leave.

    Returns:
      A mesh with Auto axes; None for one device alone.

    Raises:
      InputError: if there are not so many devices.
    """
    devices = jax.devices()
    shape = (data or len(devices) // (fsdp * tensor), fsdp, tensor)
    wanted = math.prod(shape)
    fits = wanted == len(devices) or (0 < wanted < len(devices) and jax.process_count() == 1)
    if not fits or (not data and wanted != len(devices)):
        raise InputError(
            f"config.mesh.data={data}, config.mesh.fsdp={fsdp}, config.mesh.tensor={tensor}: JAX "
            f"has {len(devices)} devices, which these do not make up; give sizes of that product, "
            "or data=0 for all that are left"
        )
    if wanted == 1:
        return None
    return Mesh(np.array(devices[:wanted]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def partition_spec(path: str, shape: tuple[int, ...], mesh: Any) -> P:
    """How a parameter, a moment or the bits of one are split.

    Example:
      >>> mesh = jax.sharding.AbstractMesh((1, 4, 2), AXES)
      >>> tuple(partition_spec("h/attn/q/kernel", (12, 768, 768), mesh))
      (None, 'fsdp', 'tensor')

    Args:
      path: ends as a parameter's does.
      shape: of the array.
      mesh: with `AXES`.
    """
    path = re.sub(r"pqt_bits/", "", path)
    for pattern, axes in _MATRICES.items():
        if len(shape) >= 2 and re.search(f"(^|/)({pattern})$", path):
            split = [
                name if name and shape[i] % mesh.shape[name] == 0 else None
                for i, name in zip((-2, -1), axes, strict=True)
            ]
            return P(*[None] * (len(shape) - 2), *split)
    return P()


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """A context in which `held` and `on_batch` place arrays on the mesh; None: they do nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def constrain_state(tree: Any) -> Any:
    """A state under jit, every array of it split by its path, where such a mesh is entered."""
    if (mesh := _mesh()) is None:
        return tree
    place = lambda path, x: lax.with_sharding_constraint(x, partition_spec(path, x.shape, mesh))  # noqa: E731
    return map_paths(place, tree)


def add_shardings(shapes: Any) -> Any:
    """`ShapeDtypeStruct`s of a state with the shardings that `held` gives, on the entered mesh."""
    if _mesh() is None:
        return shapes
    mesh = jax.sharding.get_mesh()
    place = lambda path, x: jax.ShapeDtypeStruct(  # noqa: E731
        x.shape, x.dtype, sharding=NamedSharding(mesh, partition_spec(path, x.shape, mesh))
    )
    return map_paths(place, shapes)


def constrain_activations(x: jax.Array) -> jax.Array:
    """Activations [batch, …] split by the batch alone, where such a mesh is entered.

    Else XLA may move activations to where the weights are, which are the smaller.
    """
    mesh = _mesh()
    if mesh is None or x.shape[0] % math.prod(mesh.shape[name] for name in BATCH):
        return x
    return lax.with_sharding_constraint(x, P(BATCH, *[None] * (x.ndim - 1)))


def gather_rows(table: jax.Array) -> jax.Array:
    """A table of vectors [tokens, width] with whole vectors on every device, to look up in.

    Each device then looks up its own part of the batch. From rows in parts XLA would make the
    vectors of the whole batch, and move those.
    """
    if (mesh := _mesh()) is None:
        return table
    rows = "tensor" if table.shape[0] % mesh.shape["tensor"] == 0 else None
    return lax.with_sharding_constraint(table, P(rows, None))


def local_rows(mesh: Mesh | None, batch: int) -> Sequence[int]:
    """Which sequences of a batch the devices of this process hold, in order."""
    if mesh is None:
        return range(batch)
    held = batch_sharding(mesh).addressable_devices_indices_map((batch, 1))
    return sorted({row for at in held.values() if at for row in range(batch)[at[0]]})


def put_batch(own: np.ndarray, mesh: Mesh | None, batch: int | None = None) -> Any:
    """Tokens on their devices.

    Args:
      own: [rows, T + 1], those of `rows`.
      mesh: as there.
      batch: sequences in all processes together; None if these are all.

    Returns:
      [batch, T + 1].
    """
    if mesh is None:
        return own
    batch = batch or len(own)
    here, shape = local_rows(mesh, batch), (batch, *own.shape[1:])

    def part(at: Any) -> np.ndarray:
        wanted = range(batch)[at[0]]
        start = bisect.bisect(here, wanted[0] - 1)
        return own[start : start + len(wanted)]

    return jax.make_array_from_callback(shape, batch_sharding(mesh), part)


def put_batches(batches: np.ndarray, mesh: Mesh | None) -> Any:
    """Batches [N, batch, T + 1], known to every process, on their devices; split if they can be."""
    if mesh is None:
        return batches
    fits = batches.shape[1] % math.prod(mesh.shape[name] for name in BATCH) == 0
    sharding = NamedSharding(mesh, P(None, BATCH if fits else None, None))
    return jax.make_array_from_callback(batches.shape, sharding, lambda at: batches[at])


def fetch_whole(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays as numpy, all of them in every process; for small ones."""
    if mesh is not None:
        tree = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.device_get(tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of tokens [batch, T + 1]."""
    return NamedSharding(mesh, P(BATCH, None))


def _mesh() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    ours = mesh.axis_names == AXES and set(mesh.axis_types) == {AxisType.Auto}
    return mesh if ours else None
