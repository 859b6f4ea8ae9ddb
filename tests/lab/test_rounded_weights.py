# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Names of rounded weights: what they round to, and which are refused."""

import jax
import numpy as np
import pytest
from flax import nnx

from pqt_jax.lab import rounded_weights
from pqt_jax.lab.rounded_weights import make_rounding
from pqt_jax.quantization import sizes
from pqt_jax.quantization.quantize import quantize
from pqt_jax.training import methods, named_formats
from pqt_jax.training.config import schema
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny


def run_config(method):
    config = tiny.get_config()
    config.method = method
    return from_values(schema.RunConfig, config.to_dict())


@pytest.mark.parametrize(
    "name, options",
    [
        ("fp4_e2m1", {}),
        ("E2M1/mse", {"scale": "mse"}),
        ("E1M1/floor/matrix", {"scale": "floor", "block": (64, 64)}),
        ("E2M3/matrix", {"block": (64, 64)}),
        ("fp4_e2m1/exact/32x1", {"scale": "exact", "block": (32, 1)}),
    ],
)
def test_a_name_rounds_as_quantize_does(name, options):
    config = run_config("gaussws")
    params = nnx.state(methods.make_model(config, nnx.Rngs(0)))
    found = paths_and_leaves(make_rounding(config, name)(params))
    weights, rules = bit_state.weights(params), quantization_rules(config)
    wanted = paths_and_leaves(quantize(weights, rules, name.split("/")[0], **options))
    assert found.keys() == wanted.keys() == paths_and_leaves(weights).keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], np.asarray(leaf, np.float32))


def test_weights_as_they_are_and_by_learned_bits():
    params = nnx.state(methods.make_model(run_config("gaussws"), nnx.Rngs(0)))
    master = make_rounding(run_config("gaussws"), "master")(params)
    jax.tree.map(np.testing.assert_array_equal, master, bit_state.weights(params))
    mixed = paths_and_leaves(make_rounding(run_config("gaussws"), "mixed")(params))
    assert any((leaf != paths_and_leaves(master)[path]).any() for path, leaf in mixed.items())
    assert make_rounding(run_config("bf16"), "mixed") is None
    assert make_rounding(run_config("diffq"), "mixed/error") is None


@pytest.mark.parametrize(
    "name, options",
    [
        ("mixed/error", {"match": "error"}),
        ("mixed/tensor", {"granularity": "tensor"}),
        ("mixed/error/tensor", {"match": "error", "granularity": "tensor"}),
    ],
)
def test_learned_bits_by_other_limits_and_by_matrix(name, options):
    config = run_config("gaussws")
    params = nnx.state(methods.make_model(config, nnx.Rngs(0)))
    bits, weights = nnx.split_state(params, bit_state.BitParam, ...)
    spread = jax.tree.map(lambda b: np.linspace(-1, 1, b.size).reshape(b.shape), bits)
    params = nnx.merge_state(spread, weights)
    rules = quantization_rules(config)
    plan = named_formats.make_plan(params, rules, "mixed", **options)
    wanted = named_formats.round_by_plan(params, plan)
    rounding = make_rounding(config, name)
    assert rounding is not None
    jax.tree.map(np.testing.assert_array_equal, rounding(params), wanted)
    plain = named_formats.make_plan(params, rules, "mixed")
    assert any((plan[path].index != plain[path].index).any() for path in plan)
    by_path = sizes.parameter_sizes(plan, weights)
    size = sizes.total_size(by_path.values()).mean_bits
    assert rounded_weights.stored_bits(config, params, name) == size


@pytest.mark.parametrize(
    "names, wanted",
    [
        ((), "it must begin with master"),
        (("fp4_e2m1",), "it must begin with master"),
        (("master", "E2M1", "E2M1"), "each name once"),
        (("master", "float7"), "float7"),
        (("master", "E2M1/median"), "scale='median'; it must be one of floor, ceil, exact, mse"),
        (("master", "E2M1/33x1"), "'33x1'; it must be two sides such as 32x32 or 1x32"),
        (("master", "mixed/mse"), "what follows mixed must be of error, tensor"),
        (("master/mse",), "master stands alone"),
        (("master", "E2M1/mse/ceil"), "'E2M1/mse/ceil': 'ceil' is a second scale"),
        (("master", "E2M1/32x1/matrix"), "'matrix' is a second block"),
        (("master", "mixed/error/error"), "'error' is a second match"),
        (("master", "bf16/mse/32x1"), "bf16 stands alone, since it has no scales"),
    ],
)
def test_other_names_are_refused(names, wanted):
    with pytest.raises(ValueError, match=wanted):
        rounded_weights.check(names)


def test_stored_bits_are_those_of_the_formats_that_carry_the_learned_bits():
    config = run_config("gaussws")
    params = nnx.state(methods.make_model(config, nnx.Rngs(0)))
    for b_i, codes in ((1.0, 12), (0.0, 6), (-0.5, 4)):  # b_t is 6, 4 and 3
        bits, weights = nnx.split_state(params, bit_state.BitParam, ...)
        learned = nnx.merge_state(jax.tree.map(lambda b, b_i=b_i: b * 0 + b_i, bits), weights)
        plan = named_formats.make_plan(learned, quantization_rules(config), "mixed")
        found = sizes.parameter_sizes(plan, weights).values()
        blocks, count = sum(x.tags for x in found) / 4, sum(x.weights for x in found)
        wanted = codes + (8 + 4) * blocks / count
        found = rounded_weights.stored_bits(config, learned, "mixed")
        assert found == pytest.approx(wanted, rel=1e-9)
    assert rounded_weights.stored_bits(run_config("bf16"), params, "mixed") is None
    assert rounded_weights.stored_bits(run_config("diffq"), params, "mixed") is None
