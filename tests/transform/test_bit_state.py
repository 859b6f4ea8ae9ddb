# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What moves bit-widths beside their gradient: penalties, and the snap to formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.numerics import bit_width
from pqt_jax.quantization import quantize, sizes
from pqt_jax.training import methods, step
from pqt_jax.training import state as states
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny

pytestmark = pytest.mark.jax_version


def noise_key():
    return jax.random.key(7)


def batch(i=0):
    return (np.arange(4 * 17).reshape(4, 17) * (i + 3) % 101).astype(np.uint8)


def setup(**pqt):
    config = tiny.get_config()
    for name, value in pqt.items():
        config.pqt[name] = value
    graph, state = states.init_state(config, make_optimizer(config))
    return config, state, step.build_train_step(config, graph)


def b_t_of(config, params):
    return bit_state.bit_widths(params, methods.make_rules(config))


@pytest.mark.slow
@pytest.mark.parametrize("name, first", [("layer", 14 * 2.0), ("average", 1.5**2), ("size", 9.0)])
def test_a_penalty_is_added_to_the_loss_and_moves_bits_alone(name, first):
    """At the start every b_t is 6: 14 matrices 2 above the target, and 9 bits by interpolation."""
    given = {"penalty": name, "penalty_weight": 0.5, "weight_decay": 0.0, "average_bits": 4.5}
    config, state, train_step = setup(**given)
    _, plain_state, plain_step = setup(weight_decay=0.0)
    after, measured = train_step(state, batch(), noise_key())
    plain_after, plain = plain_step(plain_state, batch(), noise_key())
    assert float(measured["penalty"]) == pytest.approx(0.5 * first, rel=1e-6)
    assert float(measured["loss"]) == float(plain["loss"]) and "penalty" not in plain
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7),
        nnx.to_pure_dict(bit_state.weights(after.params)),
        nnx.to_pure_dict(bit_state.weights(plain_after.params)),
    )
    for i in range(1, 40):
        after, measured = train_step(after, batch(i % 3), noise_key())
        plain_after, _ = plain_step(plain_after, batch(i % 3), noise_key())
    mean, plain_mean = (
        float(bit_width.statistics(b_t_of(config, s.params))["mean"]) for s in (after, plain_after)
    )
    assert mean < plain_mean - 0.1


def test_size_is_that_of_blocks_of_whole_formats():
    config, state, _ = setup(penalty="size", penalty_weight=1.0, target_bits=4.0, init_bits=9.0)
    penalty = methods.get_method(config).make_penalty(config)
    plan = quantize.plan_mixed(
        bit_state.weights(state.params),
        bit_state.collect_bits(state.params),
        methods.make_rules(config),
    )
    total = sizes.total_size(sizes.parameter_sizes(plan, bit_state.weights(state.params)).values())
    assert float(penalty(state.params)) == total.codes / total.weights == 12.0


def test_methods_without_bits_have_no_penalty_and_no_snap():
    config = tiny.get_config()
    config.method, config.pqt.penalty, config.pqt.snap_at = "bf16", "layer", 0.5
    assert (
        methods.get_method(config).make_penalty(config) is None
        and methods.snap_step(config) is None
    )


def test_bits_snap_once_and_stay():
    config, state, train_step = setup(snap_at=0.1)  # after 6 of 60 steps
    assert methods.snap_step(config) == 6
    seen = []
    for i in range(10):
        state, measured = train_step(state, batch(i % 3), noise_key())
        seen.append(jax.device_get(paths_and_leaves(b_t_of(config, state.params))))
    moving = np.concatenate([x.ravel() for x in seen[5].values()])
    assert not np.isin(moving, [3, 4, 5, 9]).any()
    for path, leaf in seen[6].items():
        want = np.array([3, 4, 5, 9])[np.asarray(quantize.format_index(jnp.asarray(seen[5][path])))]
        np.testing.assert_allclose(leaf, want, rtol=1e-6)
        for later in seen[7:]:
            np.testing.assert_array_equal(later[path], leaf)
    # The step that snaps them already samples by them.
    mean = np.concatenate([x.ravel() for x in seen[6].values()]).mean()
    assert float(measured["bits_mean"]) == pytest.approx(mean, rel=1e-6)
