# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A Linen model with Flax's `TrainState`.

    python examples/linen_train_state.py

The wrapped model has one collection more, "pqt", which holds the bit-widths. `TrainState.params`
holds both collections, so that one optimizer updates weights and bit-widths, each as its own group.
The rng stream "pqt" decides whether a call samples; without it the bare model runs.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.training.train_state import TrainState

from pqt_jax import Rule, keys, optim, param_transform, pqt_transform

RULES = [Rule(".*kernel", target_bits=4, init_bits=6)]
STEPS = 60


def make_state() -> TrainState:
    """The first state: weights, and a bit-width of 6 for every block."""
    bare = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh, nn.Dense(1)])
    model = pqt_transform(bare, RULES)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    tx = optim.adamw(1e-2, bits_learning_rate=1e-2)
    return TrainState.create(apply_fn=model.apply, params=variables, tx=tx)


@jax.jit
def train_step(state: TrainState, key: jax.Array) -> tuple[TrainState, jax.Array]:
    """One step; `key` is that of the run, and the state has the number of the step."""
    data_key = jax.random.fold_in(jax.random.key(1), state.step)
    x = jax.random.uniform(data_key, (128, 1), minval=-3.0, maxval=3.0)
    rngs = {"pqt": keys.step_key(key, state.step)}

    def loss_of(variables):
        return jnp.mean((state.apply_fn(variables, x, rngs=rngs) - jnp.sin(x)) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


def main() -> TrainState:
    """Train, and print the loss and the bit-widths; returns the last state."""
    state, key, loss = make_state(), jax.random.key(0), jnp.nan
    for step in range(STEPS):
        state, loss = train_step(state, key)
        if step % 20 == 0:
            print(f"step {step}: loss {float(loss):.6f}")
    weights, bits = state.params["params"], state.params["pqt"]["bits"]
    print(f"step {STEPS}: loss {float(loss):.6f}")
    print(param_transform(RULES).summary(weights, bits))
    return state


if __name__ == "__main__":
    main()
