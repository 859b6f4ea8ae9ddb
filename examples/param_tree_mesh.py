# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`param_transform` on a plain tree of arrays, on a mesh of eight fake devices.

    python examples/param_tree_mesh.py

No model and no Flax: parameters are a dict, and the network is a function of it. The kernels are
split over a mesh of 4 × 2 devices. The noise depends on the index in the whole matrix, so ŵ on the
mesh has the bits of ŵ on one device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pqt_jax import Rule, keys, optim, param_transform

TRANSFORM = param_transform([Rule("layer.*/kernel", target_bits=4, init_bits=6)])
STEPS = 20


def make_variables() -> dict:
    """Weights of two layers, and their bit-widths."""
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "layer0": {"kernel": jax.random.normal(first, (256, 128)) / 16, "bias": jnp.zeros(128)},
        "layer1": {"kernel": jax.random.normal(second, (128, 64)) / 12, "bias": jnp.zeros(64)},
    }
    return {"params": params, "bits": TRANSFORM.init(params)}


def place(variables: dict, mesh: Mesh) -> dict:
    """Put the kernels on the mesh, split both ways, and the rest on every device."""

    def put(x):
        split = x.ndim == 2 and all(side % 64 == 0 for side in x.shape)
        return jax.device_put(x, NamedSharding(mesh, P("rows", "columns") if split else P()))

    return jax.tree.map(put, variables)


def apply(params: dict, x: jax.Array) -> jax.Array:
    """The network: two layers."""
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"].astype(x.dtype) + layer["bias"])
    return x


def train(variables: dict) -> dict:
    """Train on noise for a few steps; returns the last variables."""
    tx = optim.adamw(1e-3, bits_learning_rate=1e-2)

    @jax.jit
    def train_step(variables, moments, step):
        data = jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (64, 256))

        def loss_of(variables):
            key = keys.step_key(jax.random.key(0), step)
            hats = TRANSFORM.sample(variables["params"], variables["bits"], key)
            return jnp.mean((apply(hats, data) - data[:, :64]) ** 2)

        loss, grads = jax.value_and_grad(loss_of)(variables)
        updates, moments = tx.update(grads, moments, variables)
        return optax.apply_updates(variables, updates), moments, loss

    moments = tx.init(variables)
    for step in range(STEPS):
        variables, moments, loss = train_step(variables, moments, jnp.int32(step))
        if step % 10 == 0:
            print(f"step {step}: loss {float(loss):.4f}")
    return variables


def main() -> tuple[dict, dict]:
    """Compare ŵ on one device and on the mesh, then train there; returns both ŵ."""
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    variables = make_variables()
    on_mesh = place(variables, mesh)
    sample, key = jax.jit(TRANSFORM.sample), keys.step_key(jax.random.key(0), 0)
    one = sample(variables["params"], variables["bits"], key)
    eight = sample(on_mesh["params"], on_mesh["bits"], key)
    kernel = eight["layer0"]["kernel"]
    part = kernel.addressable_shards[0].data.shape
    print(f"ŵ of layer0/kernel: {kernel.shape}, on each device {part}")
    same = all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(eight)))
    print(f"the same bits on one device and on eight: {same}")
    trained = train(on_mesh)
    print(TRANSFORM.summary(trained["params"], trained["bits"]))
    return one, eight


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # before anything runs
    main()
