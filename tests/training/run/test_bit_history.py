# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Bits over training: what is measured on any mesh, and the file that holds it."""

import dataclasses
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.models import partitioning
from pqt_jax.training import final_evaluation, methods, named_formats
from pqt_jax.training import state as states
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.run import bit_history, metrics
from pqt_jax.transform import bit_state
from pqt_jax.transform.nnx_wrapper import BitParam
from pqt_jax.transform.tree_paths import BITS, map_paths, paths_and_leaves
from support import tiny

# Ragged at the edges: 80 = 2·32 + 16 and 48 = 32 + 16.
RAGGED = dataclasses.replace(tiny.LLAMA2, d_model=80, d_ff=48, num_layers=3)


def make_params(model=RAGGED, **pqt):
    """Parameters of which every block has a bit-width of its own, and the rules."""
    config = tiny.get_config(model)
    config.pqt.update(pqt)
    _, state = states.init_state(config, make_optimizer(config))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.uniform(-1.5, 3, x.shape), jnp.float32)  # noqa: E731
    bits = jax.tree.map(draw, nnx.filter_state(state.params, BitParam))
    return config, nnx.merge_state(state.params, bits)


def test_layers_and_formats_are_those_of_every_block():
    config, params = make_params()
    rules = methods.make_rules(config)
    found = bit_history.measure(params, rules)
    b_t = paths_and_leaves(bit_state.bit_widths(params, rules))
    assert list(found["layers"]) == list(b_t) and len(b_t) == 7
    for path, means in found["layers"].items():
        by_hand = [np.asarray(layer, np.float64).mean() for layer in b_t[path]]
        assert len(means) == 3
        np.testing.assert_allclose(means, by_hand, rtol=1e-6)
    # Exactly the shares of the table at the end, though that counts on the host.
    plan = named_formats.make_plan(params, quantization_rules(config), "mixed")
    assert found["formats"] == final_evaluation.format_shares(plan, params)
    assert len(found["formats"]) == 5


def test_a_bit_width_that_is_nan_has_no_format_and_spoils_its_layer_alone():
    config, params = make_params(tiny.LLAMA2)  # matrices of 1·1 or 1·2 blocks
    whole = bit_history.measure(params, methods.make_rules(config))

    def spoil(path, leaf):
        return leaf.at[1].set(jnp.nan) if re.search(f"{BITS}/(.*/)?q/kernel$", path) else leaf

    params = map_paths(spoil, params)
    found = bit_history.measure(params, methods.make_rules(config))
    first, second = found["layers"].pop("h/attn/q/kernel")
    assert first == whole["layers"].pop("h/attn/q/kernel")[0] and np.isnan(second)
    assert found["layers"] == whole["layers"]
    lost = 32 * 32 / (2 * (4 * 32 * 32 + 3 * 32 * 64))
    assert sum(found["formats"].values()) == pytest.approx(1 - lost)


def test_every_mesh_measures_the_same_and_hands_out_whole_results():
    wide = dataclasses.replace(tiny.LLAMA2, d_model=256, num_heads=8, d_ff=512)
    config, params = make_params(wide)
    rules = tuple(methods.make_rules(config))
    alone = bit_history.measure(params, rules)
    mesh = partitioning.make_mesh(data=1, fsdp=4, tensor=2)
    with partitioning.use_mesh(mesh):
        placed = jax.jit(partitioning.constrain_state)(params)
        reduced = jax.jit(bit_history.reduce_bit_widths, static_argnums=1)(placed, rules)
        found = bit_history.measure(placed, rules)
    assert not any(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed)[:1])
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(reduced))
    assert sum(leaf.size for leaf in jax.tree.leaves(reduced)) == 14 + 14 * 6
    assert found["formats"] == alone["formats"]
    for path, means in found["layers"].items():
        np.testing.assert_allclose(means, alone["layers"][path], rtol=1e-6)


def test_records_come_back(tmp_path):
    path = tmp_path / "bits.jsonl"
    assert bit_history.read(path) == []
    config, params = make_params()
    measured = bit_history.measure(params, methods.make_rules(config))
    measured["layers"]["h/attn/q/kernel"][1] = float("nan")
    for step in (4, 8):
        bit_history.append(path, step, 64 * step, measured)
    json.loads(path.read_text().splitlines()[0], parse_constant=pytest.fail)  # strict JSON
    first, second = bit_history.read(path)
    assert (first.step, first.tokens, second.step, second.tokens) == (4, 256, 8, 512)
    for name, means in measured["layers"].items():
        np.testing.assert_allclose(first.layers[name], means, atol=5.1e-5)
    assert first.formats == pytest.approx(measured["formats"], abs=5.1e-5)
    assert list(first.formats) == list(measured["formats"])
    assert len(path.read_text()) < 1400


def test_methods_without_bits_write_nothing(tmp_path):
    config = tiny.get_config()
    config.method = "bf16"
    _, state = states.init_state(config, make_optimizer(config))
    measured = bit_history.measure(state.params, methods.make_rules(config))
    assert measured == {}
    bit_history.append(tmp_path / "bits.jsonl", 1, 64, measured)
    assert metrics.truncate(tmp_path / "bits.jsonl", 1) == 0
    assert os.listdir(tmp_path) == []


def test_what_is_no_record_is_passed_over_and_later_steps_are_dropped(tmp_path):
    path = tmp_path / "bits.jsonl"
    good = (
        '{"step": 4, "layers": {"w": [1, null]}, "formats": {"E4M3": 1, "other": 2, "BF16": "x"}}'
    )
    bad = ('{"step": 5, "layers": [1], "formats": {}}', '{"step": 5, "layers": {"w": ["x"]}}')
    bad += ('{"step": 5, "layers": {"w": [[1]]}, "formats": {}}', '{"step": 5, "formats": {}}')
    bad += ('{"step": 5, "layers": {"w": 1}, "formats": {}}', '{"step": 5, "layers": {"w": [1]}}')
    bad += ('{"step": 5, "layers": {"w": [1' + 400 * "0" + ']}, "formats": {}}', "3", "\x00")
    bad += ('{"step": 5, "layers": {}, "formats": {}}',)
    later, torn = (
        '{"step": 6, "layers": {"w": [2]}, "formats": {}}',
        '{"step": 8, "layers": {"w": [1.',
    )
    path.write_text("\n".join((good, *bad, later, torn)))
    first, last = bit_history.read(path)
    assert first.tokens is None and first.formats == {"E4M3": 1} and last.step == 6
    np.testing.assert_array_equal(first.layers["w"], [1, np.nan])
    assert metrics.truncate(path, 5) == 3
    assert [record.step for record in bit_history.read(path)] == [4]
