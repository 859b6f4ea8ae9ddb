# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""An NNX model in a training loop of one's own, with Orbax checkpoints.

    python examples/nnx_loop_orbax.py

The model learns sin on [−3, 3]. Its kernels are sampled towards 4 bits. The loop is stopped in the
middle and continued from its checkpoint in a fresh model. No random state is saved: the noise is a
function of the seed, the step and the parameter's path, so both halves see the noise that one
uninterrupted run would have seen, and end with the same bits.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from pqt_jax import Rule, keys, optim, pqt_transform

STEPS, STOP = 300, 150


def make_model() -> tuple[nnx.Module, nnx.Optimizer]:
    """A wrapped model and its optimizer."""
    rngs = nnx.Rngs(0)
    bare = nnx.Sequential(
        nnx.Linear(1, 64, rngs=rngs), nnx.tanh, nnx.Linear(64, 64, rngs=rngs), nnx.tanh,
        nnx.Linear(64, 1, rngs=rngs),
    )  # fmt: skip
    model = pqt_transform(bare, [Rule(".*kernel", target_bits=4, init_bits=6)])
    tx = optim.adamw(1e-2, bits_learning_rate=1e-2)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def batch(step: int) -> tuple[jax.Array, jax.Array]:
    """The inputs and targets of one step, a function of its number."""
    x = jax.random.uniform(jax.random.key(step), (128, 1), minval=-3.0, maxval=3.0)
    return x, jnp.sin(x)


@nnx.jit
def train_step(model, optimizer, x, y, key) -> jax.Array:
    """One step with sampled weights; returns the loss."""

    def loss_of(model):
        return jnp.mean((model(x, pqt_key=key) - y) ** 2)

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


def train(model, optimizer, first: int, last: int) -> float:
    """Train the steps from `first` to `last`; returns the last loss."""
    seed, loss = jax.random.key(0), jnp.nan
    for step in range(first, last):
        loss = train_step(model, optimizer, *batch(step), keys.step_key(seed, step))
    return float(loss)


def save(manager: ocp.CheckpointManager, step: int, model, optimizer) -> None:
    """Write a checkpoint: weights, bit-widths and moments."""
    state = nnx.state((model, optimizer)).to_pure_dict()
    manager.save(step, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager) -> tuple[nnx.Module, nnx.Optimizer, int]:
    """A model and an optimizer with the state of the newest checkpoint, and its step."""
    model, optimizer = make_model()
    step = manager.latest_step()
    assert step is not None, "there is no checkpoint"
    state = nnx.state((model, optimizer))
    saved = manager.restore(step, args=ocp.args.StandardRestore(state.to_pure_dict()))
    nnx.replace_by_pure_dict(state, saved)
    nnx.update((model, optimizer), state)
    return model, optimizer, step


def main(folder: Path) -> tuple[nnx.Module, nnx.Module]:
    """Train straight through, and with a stop in the middle; returns both models."""
    straight, optimizer = make_model()
    print(f"straight through:  loss {train(straight, optimizer, 0, STEPS):.6f}")

    with ocp.CheckpointManager(folder.resolve()) as manager:
        model, optimizer = make_model()
        train(model, optimizer, 0, STOP)
        save(manager, STOP, model, optimizer)
        resumed, optimizer, step = restore(manager)
    print(f"resumed at {step}:     loss {train(resumed, optimizer, step, STEPS):.6f}")

    x, y = batch(STEPS)
    print(f"without noise:     loss {float(jnp.mean((resumed(x) - y) ** 2)):.6f}")
    return straight, resumed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
