# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What holds for every model that is wrapped, of Linen and of NNX.

The model computes what the bare one computes from the ŵ of `param_transform`, bit for bit; without
a key it is the bare model; its parameters are those of the bare one; weights and bits have finite
gradients; and jit samples the same ŵ.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax import BitParam, param_transform, pqt_transform


def make_key():
    return jax.random.key(7)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return not jax.tree.all(jax.tree.map(np.array_equal, a, b))


def sample(rules, params, bits):
    """ŵ of a tree, eager and under jit."""
    transform = param_transform(rules)
    w_hat = transform.sample(params, bits, make_key())
    same(jax.jit(transform.sample)(params, bits, make_key()), w_hat)
    return w_hat


def mean_square(out):
    """A loss of all that a model returns."""
    return sum(jnp.mean(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(out))


def assert_finite(grads):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def count_nonzero(tree):
    """(leaves that are not all zero, leaves)."""
    nonzero = [bool((leaf != 0).any()) for leaf in jax.tree.leaves(tree)]
    return sum(nonzero), len(nonzero)


def check_linen(bare, model, variables, rules, call):
    """Check a wrapped Linen model.

    Args:
      bare, model: the bare module, and `pqt_transform` of it.
      variables: of the wrapped one.
      rules: of the wrapped one.
      call: called with one of the modules, its variables and options of `apply`.

    Returns:
      How many arrays of bits have a gradient, and how many there are.
    """
    bits, rest = variables["pqt"]["bits"], {k: v for k, v in variables.items() if k != "pqt"}
    w_hat = sample(rules, rest["params"], bits)
    sampled, plain = call(model, variables, rngs={"pqt": make_key()}), call(bare, rest)
    same(sampled, call(bare, {**rest, "params": w_hat}))
    same(call(model, variables), plain)
    assert differ(sampled, plain)

    @jax.jit
    def gradient(trained, key):
        def loss(trained):
            out = call(model, {**rest, **trained}, rngs={"pqt": key})
            return mean_square(out[0] if isinstance(out, tuple) else out)

        return jax.grad(loss)(trained)

    grads = gradient({k: variables[k] for k in ("params", "pqt")}, make_key())
    assert_finite(grads)
    return count_nonzero(grads["pqt"])


def check_nnx(make, rules, call, **options):
    """Check a wrapped NNX model.

    Args:
      make: makes the bare module, the same each time.
      rules, options: for `pqt_transform`.
      call: called with a module and options of its call.

    Returns:
      How many arrays of bits have a gradient, and how many there are.
    """
    bare = make()
    model = pqt_transform(bare, rules, **options)
    params = nnx.to_pure_dict(nnx.state(bare, nnx.Param))
    same(nnx.to_pure_dict(nnx.state(model, nnx.All(nnx.Param, nnx.Not(BitParam)))), params)
    wanted = make()
    nnx.update(wanted, sample(rules, params, param_transform(rules).init(params)))
    sampled = call(model, pqt_key=make_key())
    same(sampled, call(wanted))
    model = pqt_transform(make(), rules, **options)  # new statistics
    plain = call(make())
    same(call(model), plain)
    assert differ(sampled, plain)

    @nnx.jit
    def gradient(model, key):
        return nnx.grad(lambda model: mean_square(call(model, pqt_key=key)))(model)

    grads = gradient(model, make_key())
    assert_finite(grads)
    return count_nonzero(nnx.filter_state(grads, BitParam))
