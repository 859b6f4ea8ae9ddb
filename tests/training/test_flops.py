# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The formula for FLOPs against what XLA counts, and bytes against the arrays themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pqt_jax.models import GPT2, Llama2, Llama2Config, partitioning
from pqt_jax.models.gpt2 import GPT2_124M
from pqt_jax.models.llama2 import LLAMA2_1B, LLAMA2_134M
from pqt_jax.training import flops as costs
from pqt_jax.training import state as states
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.transform import bit_state
from support import tiny

WIDE = Llama2Config(512, d_model=128, num_layers=1, num_heads=4, d_ff=320, dtype="float32")
BY_XLA = {  # one layer: XLA counts the body of a scan once, however often it runs
    "llama2": (Llama2, WIDE),
    "few kv heads": (Llama2, dataclasses.replace(WIDE, num_kv_heads=1)),
    "wide heads": (Llama2, dataclasses.replace(WIDE, num_kv_heads=2, head_dim=48)),
    "tied": (Llama2, dataclasses.replace(WIDE, tie_embeddings=True)),
    "gpt2": (
        GPT2,
        dataclasses.replace(
            tiny.GPT2, vocab_size=512, d_model=128, num_layers=1, d_ff=512, max_length=64
        ),
    ),
}


@pytest.mark.parametrize("cls, model", BY_XLA.values(), ids=BY_XLA)
def test_forward_flops_are_those_that_xla_counts(cls, model):
    """XLA has 1 to 2 % more: norms, softmax, rotary positions and activations are counted, too."""
    batch, length = 2, 64
    bare = nnx.eval_shape(lambda: cls(model, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(bare)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    compiled = jax.jit(lambda s, x: nnx.merge(graph, s)(x)).lower(state, tokens).compile()
    counted = compiled.cost_analysis()["flops"] / (batch * length)
    assert 1 < counted / costs.forward_flops(model, length) < 1.03


def test_flops_are_the_sum_over_kernels():
    model = dataclasses.replace(tiny.LLAMA2, num_kv_heads=1, tie_embeddings=True)
    shapes = nnx.state(nnx.eval_shape(lambda: Llama2(model, rngs=nnx.Rngs(0))), nnx.Param)
    matrices = sum(x.size for x in jax.tree.leaves(shapes["h"]) if x.ndim == 3)
    matrices += 256 * 32  # the embedding, as head
    assert costs.forward_flops(model, 16) == 2 * matrices + 2 * (4 * 16 * 32)


@pytest.mark.parametrize("model, number", [(GPT2_124M, 124e6), (LLAMA2_134M, 134e6)])
def test_training_flops_are_near_six_times_the_parameters(model, number):
    """Above by attention, and below by the table of inputs, which multiplies nothing."""
    attention = 12 * 1024 * model.d_model * model.num_layers
    table = 0 if model.tie_embeddings else 6 * model.vocab_size * model.d_model
    found = costs.training_flops(model, 1024)
    assert found == pytest.approx(6 * number + attention - table, rel=0.01)


def test_peaks_by_the_names_of_jax():
    assert costs.peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert costs.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert costs.peak_flops("TPU v6 lite") == 918e12
    for unknown in ("cpu", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA A10G"):
        assert costs.peak_flops(unknown) is None
    assert costs.speed(1e4, 10**9, 4, "cpu") == {"tokens_per_s_per_device": 2500.0}
    flops = costs.training_flops(LLAMA2_1B, 2048)
    found = costs.speed(8 * 6e4, flops, 8, "NVIDIA H100 80GB HBM3")
    assert found["mfu"] == pytest.approx(6e4 * flops / 989.4e12, abs=1e-4)


@pytest.mark.parametrize("name", ["adamw", pytest.param("adam_mini", marks=pytest.mark.slow)])
def test_bytes_are_those_of_the_arrays(name):
    config = tiny.get_config()
    config.optimizer.name = name
    config.mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    with partitioning.use_mesh(partitioning.make_mesh(**config.mesh)):
        optimizer = make_optimizer(config)
        _, abstract = states.abstract_state(config, optimizer)
        _, real = states.init_state(config, optimizer)
        bits = bit_state.collect_bits(real.params)
    found = costs.state_bytes(abstract)
    assert found == costs.state_bytes(real)
    own = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert found.weights == own(bit_state.weights(real.params)) < 4 * 35_000 / 4
    assert found.bits == own(bits) > 0
    assert found.gradients == own(real.params) == found.weights + found.bits
    assert found.moments == own((real.opt_state, real.step))
    assert (found.moments >= 2 * found.gradients) == (name == "adamw")


def test_bytes_without_a_mesh_are_the_whole():
    config = tiny.get_config()
    _, state = states.abstract_state(config, make_optimizer(config))
    assert costs.state_bytes(state).weights == 4 * states.count_parameters(config)
    assert costs.device_memory(jax.devices()[0]) > 1e8
