# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The table at the end: the loss of the weights in each format, and who carries what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.quantization.quantize import quantize
from pqt_jax.training import final_evaluation, methods, named_formats, step
from pqt_jax.training import state as states
from pqt_jax.training.config import command_line, schema
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.loss import cross_entropy
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import map_paths, paths_and_leaves
from support import tiny


def test_evaluation_rounds_what_the_rules_name():
    config = from_values(schema.RunConfig, tiny.get_config().to_dict())
    graph, state = states.init_state(config, make_optimizer(config))
    batches = np.stack([np.arange(4 * 17).reshape(4, 17) * i % 101 for i in (3, 4)])
    loss = final_evaluation.make_loss(graph, batches)
    losses = final_evaluation.evaluate_formats(config, loss, state.params)

    @jax.jit
    def by_hand(params):
        model = nnx.merge(graph, params)
        parts = [cross_entropy(model(b[:, :-1]), b[:, 1:]) for b in batches]
        return sum(parts) / 2

    assert losses["master"] == pytest.approx(float(by_hand(state.params)), rel=1e-6)
    rounded = quantize(bit_state.weights(state.params), methods.make_rules(config), "float4_e2m1fn")
    rounded = nnx.merge_state(state.params, rounded)
    assert losses["fp4_e2m1"] == pytest.approx(float(by_hand(rounded)), rel=1e-6)
    names = ["master", "bf16", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1", "mixed"]
    # At b_t = 6 every block takes E4M7, whose mantissa is that of BF16.
    assert losses["mixed"] == pytest.approx(losses["bf16"], rel=1e-5)
    assert len({losses[name] for name in names[:5]}) == 5
    assert losses["mean_bits"] == 6.0 and losses["formats"] == {"E4M7": 1.0}
    shown = final_evaluation.format_table(losses)
    assert all(f"{losses[name]:.4f}" in shown for name in names)


@pytest.mark.parametrize(
    "fields, name, label",
    [
        ({"recipe": "fp6"}, "fp6_e2m3", "FP6 E2M3"),
        ({"recipe": "fp4"}, "fp4_e2m1", "FP4 E2M1"),
        ({"method": "ste", "pqt.dtype": "E2M0"}, "E2M0", "E2M0"),
        ({"method": "ste", "pqt.dtype": "fp8_e5m2", "pqt.block": "16,16"}, "fp8_e5m2", "FP8 E5M2"),
    ],
)
def test_the_table_has_the_format_that_the_run_trained_for(fields, name, label):
    config = command_line.load("quickstart", list(fields.items()))
    model = nnx.eval_shape(lambda: methods.make_model(config, nnx.Rngs(0)))
    kernels = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nnx.state(model))
    path = "h/attn/q/kernel"
    params = map_paths(lambda p, x: x + jnp.linspace(0, 1, x.size).reshape(x.shape), kernels)
    seen = []

    def loss(rounded):
        seen.append(np.asarray(paths_and_leaves(rounded)[path], np.float32))
        return float(len(seen))

    losses = final_evaluation.evaluate_formats(config, loss, params)
    trained = config.pqt.round_to if config.recipe != "none" else config.pqt.dtype
    wanted = quantize(bit_state.weights(params), quantization_rules(config), trained)
    found = seen[int(losses[name]) - 1]
    np.testing.assert_array_equal(found, np.asarray(paths_and_leaves(wanted)[path], np.float32))
    assert losses["trained_format"] == name
    shown = final_evaluation.format_table(losses)
    assert shown.count(label) == 1 and f"{losses[name]:.4f}" in shown


def test_no_distance_is_minus_zero():
    losses = dict.fromkeys(final_evaluation.LABELS, 1.0) | {"bf16": 0.99999, "fp8_e4m3": 0.9}
    shown = final_evaluation.format_table(losses | {"method": "bf16", "formats": None})
    assert "-0.0000" not in shown and "-0.1000" in shown and "learned" not in shown


def test_format_shares_count_weights():
    config = tiny.get_config()
    config.model.d_ff, config.pqt.block, config.pqt.target_bits = 96, (64, 64), 2.0
    _, state = states.init_state(config, make_optimizer(config))
    params = nnx.to_pure_dict(state.params)
    bits = params["h"]["pqt_bits"]["mlp"]["down"]
    # down is 96 × 32: a block of 64 rows, sent to E2M1 in both layers, and one of 32.
    bits["kernel"] = jnp.asarray(bits["kernel"]).at[:, 0].set(0.0)
    nnx.replace_by_pure_dict(state.params, params)
    share = 2 * 64 * 32 / (2 * (4 * 32 * 32 + 3 * 32 * 96))
    found = final_evaluation.format_shares(
        named_formats.make_plan(state.params, methods.make_rules(config), "mixed"), state.params
    )
    assert found == pytest.approx({"E2M1": share, "E4M7": 1 - share})


@pytest.mark.parametrize("end", [7, pytest.param(None, marks=pytest.mark.slow)])
def test_validation_is_cut_as_training_is(end):
    config = tiny.get_config()
    config.model.vocab_size = 4096  # so that logits are most of it
    graph, state = states.init_state(config, make_optimizer(config))
    batches = jnp.asarray(np.random.default_rng(0).integers(0, 99, (3, 8, 33)))

    def measured(parts):
        lowered = final_evaluation.mean_loss(graph, end, parts).lower(state.params, batches)
        compiled = lowered.compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        return float(compiled(state.params, batches)), memory

    whole, much = measured(step.StepSplit())
    for parts in (step.StepSplit(microbatches=4), step.StepSplit(loss_chunk=8)):
        found, little = measured(parts)
        assert found == pytest.approx(whole, rel=1e-6) and little < 0.5 * much, parts
    few = final_evaluation.make_loss(graph, batches[:, :6], None, step.StepSplit(microbatches=4))
    want = final_evaluation.make_loss(graph, batches[:, :6])(state.params)
    assert few(state.params) == pytest.approx(want, rel=1e-6)
