# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Recipes: a model of one's own goes through the phases, and the trainer has the same ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import optim, pqt_transform, recipes
from pqt_jax.errors import InputError
from pqt_jax.quantization.quantize import quantize
from pqt_jax.training import methods
from pqt_jax.training.config.command_line import load
from pqt_jax.training.phases import list_phases, phase_index

NO_WARMUP = ("optimizer.warmup_steps", "0")


@nnx.jit
def train_step(model, optimizer, x, key):
    def loss(model):
        return jnp.mean((model(x, pqt_key=key) - 1) ** 2)

    optimizer.update(model, nnx.grad(loss)(model))


def test_a_model_goes_from_phase_to_phase():
    phases = recipes.fp4("kernel")
    bare = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
    models = [pqt_transform(bare, phase.rules) for phase in phases]
    optimizer = nnx.Optimizer(models[0], optim.adamw(1e-2), wrt=nnx.Param)
    x, steps, last = jax.random.normal(jax.random.key(1), (8, 64)), 10, 0
    for step in range(steps):
        now = recipes.phase_at(phases, step, steps)
        if now != last:
            nnx.update(models[now], nnx.state(models[last]))
        before = np.asarray(models[now].kernel[...])
        train_step(models[now], optimizer, x, jax.random.key(step))
        assert (np.asarray(models[now].kernel[...]) != before).all()
        last = now
    assert last == 1
    kernel = models[1].kernel[...]
    rounded = quantize({"kernel": kernel}, phases[1].rules, "fp4_e2m1")["kernel"]
    assert not np.allclose(rounded, kernel)
    found = models[1](x, pqt_key=jax.random.key(0)) - models[1].bias[...]
    np.testing.assert_allclose(found, x @ rounded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_trainer_has_the_phases_of_the_library(name):
    fields = [("recipe", name), ("steps", "1000"), ("pqt.round_share", "0.5")]
    config = load("quickstart", fields)
    wanted = getattr(recipes, name)("h/.*/kernel", round_share=0.5)
    phases = list_phases(config)
    assert [phase.first / 1000 for phase in phases] == [phase.begin for phase in wanted]
    assert [phase.config.method for phase in phases] == ["bf16", "ste"]
    last, rule = phases[-1].config.pqt, wanted[-1].rules[0]
    assert (last.dtype, last.scale) == (recipes.RECIPES[name].dtype, rule.spec.scale)
    for phase, own in zip(phases, wanted, strict=True):
        (rule,) = methods.make_rules(phase.config)
        assert rule.spec.round_share == own.rules[0].spec.round_share
    assert rule.spec.round_share == 0.5


@pytest.mark.parametrize("steps", [1, 3, 10, 13, 1000])
def test_the_trainer_changes_phase_at_the_step_of_the_library(steps):
    config = load("quickstart", [("recipe", "fp4"), ("steps", f"{steps}"), NO_WARMUP])
    ours = [recipes.phase_at(recipes.fp4(".*"), step, steps) for step in range(steps)]
    phases = list_phases(config)
    assert ours == [phase_index(phases, 1 + step) for step in range(steps)]


@pytest.mark.parametrize(
    "given, message",
    [
        (("pqt.round_at", "1"), "config.pqt.round_at=1.0; it must be below 1 with config.recipe="),
        (("pqt.round_to", "fp8_e4m3"), "config.pqt.round_to='fp8_e4m3'; it must be float4_e2m1fn "),
        (("pqt.begin_at", "0.5"), "it must be 0 with config.method='bf16' of config.recipe='fp4'"),
    ],
)
def test_fields_that_contradict_the_recipe_are_refused(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load("quickstart", [("recipe", "fp4"), given])


def test_what_is_given_stays():
    given = [("recipe", "fp6"), ("method", "gaussws"), ("pqt.round_at", "0.95")]
    config = load("quickstart", given)
    assert (config.method, config.pqt.round_at) == ("gaussws", 0.95)
    assert (config.pqt.round_to, config.pqt.scale) == ("float6_e2m3fn", "mse")
