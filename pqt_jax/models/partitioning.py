# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The device mesh, and how parameters, batches and activations are sharded over it.

    mesh axis   shards
    data        the batch
    fsdp        the batch, and one axis of every matrix: the one that `tensor` does not shard
    tensor      heads, hidden units and the vocabulary

ŵ, the bit-widths and the optimizer's moments are sharded as their weight is, so sampling adds no
communication. An array axis that a mesh axis does not divide is replicated along that mesh axis.
"""

import bisect
import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import pallas
from pqt_jax.console import format_quantity
from pqt_jax.errors import InputError
from pqt_jax.transform.rules import Rule, rules_of_paths
from pqt_jax.transform.tree_paths import map_paths

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
# The end of a parameter's path → the mesh axes of the parameter's last two axes.
_MATRICES = {
    r"attn/[qkv]/kernel|mlp/(gate|up)/kernel": ("fsdp", "tensor"),
    r"attn/out/kernel|mlp/down/kernel": ("tensor", "fsdp"),
    r"embed/embedding": ("tensor", "fsdp"),
    r"pos/embedding": (None, "fsdp"),
    r"head/kernel": ("fsdp", "tensor"),
}


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1) -> Mesh | None:
    """The device mesh of a run.

    Args:
      data, fsdp, tensor: number of devices along each mesh axis. With data=0, `data` takes all
        devices that the other two leave.

    Returns:
      A mesh with Auto axes, or None for a single device.

    Raises:
      InputError: if the devices do not make up such a mesh.
    """
    devices = jax.devices()
    shape = (data or len(devices) // (fsdp * tensor), fsdp, tensor)
    wanted = math.prod(shape)
    fits = wanted == len(devices) or (0 < wanted < len(devices) and jax.process_count() == 1)
    if not fits or (not data and wanted != len(devices)):
        remedy = "give sizes whose product is that number"
        if not data and len(devices) % tensor == 0:
            remedy = f"give --config.mesh.fsdp={len(devices) // tensor}, or other {remedy[5:]}"
        raise InputError(
            f"config.mesh.data={data}, config.mesh.fsdp={fsdp}, config.mesh.tensor={tensor}: JAX "
            f"has {format_quantity(len(devices), 'device')}; {remedy}, or data=0 for all devices "
            "that the other two leave"
        )
    if wanted == 1:
        return None
    return Mesh(np.array(devices[:wanted]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def partition_spec(path: str, shape: tuple[int, ...], mesh: Any) -> P:
    """The sharding of a parameter, of its bit-widths or of a moment of it.

    Example:
      >>> mesh = jax.sharding.AbstractMesh((1, 4, 2), AXES)
      >>> tuple(partition_spec("h/attn/q/kernel", (12, 768, 768), mesh))
      (None, 'fsdp', 'tensor')

    Args:
      path: a path that ends with the parameter's.
      shape: the array's shape.
      mesh: a mesh with the axes `AXES`.

    Returns:
      One mesh axis or None for each array axis; empty for an array that is replicated.
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
    """A context that makes a mesh the active one; with None it does nothing.

    The `constrain_*` functions, `add_shardings` and `gather_rows` shard over the active mesh.
    """
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def constrain_state(tree: Any) -> Any:
    """Constrain every array of a training state, under jit, to the sharding of its path.

    Args:
      tree: pytree of arrays.

    Returns:
      The same pytree; unchanged if no mesh is active.
    """
    if (mesh := _active_mesh()) is None:
        return tree

    def constrain(path, x):
        return lax.with_sharding_constraint(x, partition_spec(path, x.shape, mesh))

    return map_paths(constrain, tree)


def add_shardings(shapes: Any) -> Any:
    """Add to the shapes of a training state the shardings that `constrain_state` gives it.

    Args:
      shapes: pytree of `jax.ShapeDtypeStruct`.

    Returns:
      The same pytree; unchanged if no mesh is active.
    """
    if _active_mesh() is None:
        return shapes
    mesh = jax.sharding.get_mesh()

    def add(path, x):
        sharding = NamedSharding(mesh, partition_spec(path, x.shape, mesh))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return map_paths(add, shapes)


def shard_rules(rules: Sequence[Rule], shapes: Mapping[str, Any]) -> Sequence[Rule]:
    """Let rules know how each parameter is sharded, where kernels need that.

    Args:
      rules: ordered rules.
      shapes: path → an object with `shape`.

    Returns:
      A rule for each path that is sampled; the same rules if no mesh is active, and on GPUs.
    """
    if (mesh := _active_mesh()) is None or not pallas.needs_sharding():
        return rules
    return rules_of_paths(rules, shapes, lambda path, shape: partition_spec(path, shape, mesh))


def replicates_parameters() -> bool:
    """Whether each device has whole parameters: it is the only one, or the mesh shards no axis."""
    if (mesh := _active_mesh()) is None:
        return jax.device_count() == 1
    return mesh.shape["fsdp"] == mesh.shape["tensor"] == 1


def constrain_activations(x: jax.Array) -> jax.Array:
    """Constrain activations [batch, …] to be sharded along the batch only.

    Without the constraint XLA may move the activations to the weights, which are smaller. Returns x
    unchanged if no mesh is active, or if the mesh does not divide the batch.
    """
    mesh = _active_mesh()
    if mesh is None or x.shape[0] % math.prod(mesh.shape[name] for name in BATCH):
        return x
    return lax.with_sharding_constraint(x, P(BATCH, *[None] * (x.ndim - 1)))


def attention_sharding(batch: int, heads: int, kv_heads: int) -> tuple[Any, Any] | None:
    """The mesh axes of the batch and of the heads, for a kernel that XLA cannot partition.

    Returns:
      (axes of the batch, axis of the heads), each None where the mesh does not divide; None if no
      mesh is active.
    """
    if (mesh := _active_mesh()) is None:
        return None
    splits_batch = batch % math.prod(mesh.shape[name] for name in BATCH) == 0
    splits_heads = heads % mesh.shape["tensor"] == kv_heads % mesh.shape["tensor"] == 0
    return BATCH if splits_batch else None, "tensor" if splits_heads else None


def gather_rows(table: jax.Array) -> jax.Array:
    """Gather a table of vectors [tokens, width] along its width, for looking vectors up in it.

    Each device then looks up the vectors of its share of the batch. In a table that is sharded
    along its width XLA would look up the vectors of the whole batch, and move those.
    """
    if (mesh := _active_mesh()) is None:
        return table
    rows = "tensor" if table.shape[0] % mesh.shape["tensor"] == 0 else None
    return lax.with_sharding_constraint(table, P(rows, None))


def local_rows(mesh: Mesh | None, batch: int) -> Sequence[int]:
    """The sequences of a batch that are on devices of this process: their indices, ascending."""
    if mesh is None:
        return range(batch)
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch, 1))
    return sorted({row for index in indices.values() if index for row in range(batch)[index[0]]})


def put_batch(local: np.ndarray, mesh: Mesh | None, batch: int | None = None) -> Any:
    """Put a batch of tokens on the devices.

    Args:
      local: int[rows, T + 1], the sequences of this process, in the order of `local_rows`.
      mesh: the device mesh, or None for a single device.
      batch: number of sequences in all processes together; None if `local` has all of them.

    Returns:
      int[batch, T + 1], sharded along the batch; without a mesh, `local` itself.
    """
    if mesh is None:
        return local
    batch = batch or len(local)
    rows, shape = local_rows(mesh, batch), (batch, *local.shape[1:])

    def shard(index: Any) -> np.ndarray:
        wanted = range(batch)[index[0]]
        start = bisect.bisect(rows, wanted[0] - 1)
        return local[start : start + len(wanted)]

    return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)


def put_batches(batches: np.ndarray, mesh: Mesh | None) -> Any:
    """Put batches of tokens that every process has on the devices.

    Args:
      batches: int[N, batch, T + 1].
      mesh: the device mesh, or None for a single device.

    Returns:
      The same shape; sharded along the batch if the mesh divides it, else replicated.
    """
    if mesh is None:
        return batches
    fits = batches.shape[1] % math.prod(mesh.shape[name] for name in BATCH) == 0
    sharding = NamedSharding(mesh, P(None, BATCH if fits else None, None))
    return jax.make_array_from_callback(batches.shape, sharding, lambda at: batches[at])


def fetch_whole(tree: Any, mesh: Mesh | None) -> Any:
    """Fetch small arrays to the host: numpy arrays, whole in every process."""
    if mesh is not None:
        tree = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.device_get(tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of tokens [batch, T + 1]: along the batch only."""
    return NamedSharding(mesh, P(BATCH, None))


def _active_mesh() -> Any:
    """The active mesh if it is one of `make_mesh`, else None."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = mesh.axis_names == AXES and set(mesh.axis_types) == {AxisType.Auto}
    return mesh if ours else None
