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


def rounding_of(rules):
    (rule,) = rules
    label = rule.spec.rounding_label
    return label, rule.spec.scale if rule.spec.dtype.exponent_bits < 8 else None


def test_a_model_goes_from_phase_to_phase():
    phases = recipes.fp4("kernel")
    bare = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
    models = [pqt_transform(bare, phase.rules) for phase in phases]
    optimizer = nnx.Optimizer(models[0], optim.adamw(1e-2), wrt=nnx.Param)
    x, steps, last = jax.random.normal(jax.random.key(1), (8, 64)), 20, 0
    for step in range(steps):
        now = recipes.phase_at(phases, step, steps)
        if now != last:
            nnx.update(models[now], nnx.state(models[last]))
        before = np.asarray(models[now].kernel[...])
        train_step(models[now], optimizer, x, jax.random.key(step))
        assert (np.asarray(models[now].kernel[...]) != before).all()
        last = now
    assert last == 2
    kernel = models[2].kernel[...]
    rounded = quantize({"kernel": kernel}, phases[2].rules, "fp4_e2m1")["kernel"]
    assert not np.allclose(rounded, kernel)
    found = models[2](x, pqt_key=jax.random.key(0)) - models[2].bias[...]
    np.testing.assert_allclose(found, x @ rounded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [None, 0.8, 1.0])
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_trainer_has_the_phases_of_the_library(name, share):
    given = [("recipe", name), ("steps", "1000")]
    options = {} if share is None else {"round_share": share}
    config = load("quickstart", [*given, *((f"pqt.{k}", f"{v}") for k, v in options.items())])
    wanted = getattr(recipes, name)("h/.*/kernel", **options)
    phases = list_phases(config)
    assert [phase.first / 1000 for phase in phases] == [phase.begin for phase in wanted]
    assert {phase.config.method for phase in phases[1:]} == {"ste"}
    for phase, own in zip(phases, wanted, strict=True):
        assert rounding_of(methods.make_rules(phase.config)) == rounding_of(own.rules)


def test_the_recipe_for_fp4_rounds_half_of_the_blocks_and_then_all():
    (first,), (half,), (last,) = (phase.rules for phase in recipes.fp4(".*"))
    assert [rule.spec.dtype.name for rule in (first, half, last)] == ["BF16", "E2M1", "E2M1"]
    assert (half.spec.round_share, last.spec.round_share) == (0.5, 1)
    assert [phase.begin for phase in recipes.fp4(".*", round_share=1)] == [0, 0.85]


@pytest.mark.parametrize("share", [0, 1.5, True, "half", None])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=re.escape(f"round_share={share!r}; it must be a number")):
        recipes.fp4(".*", round_share=share)


@pytest.mark.parametrize("steps", [11, 12, 13, 29, 30, 1000])
def test_the_trainer_changes_phase_at_the_step_of_the_library(steps):
    config = load("quickstart", [("recipe", "fp4"), ("steps", f"{steps}"), NO_WARMUP])
    ours, phases = recipes.fp4("h/.*/kernel"), list_phases(config)
    for step in range(steps):
        phase = phases[phase_index(phases, 1 + step)]
        wanted = ours[recipes.phase_at(ours, step, steps)].rules
        assert rounding_of(methods.make_rules(phase.config)) == rounding_of(wanted)


@pytest.mark.parametrize(
    "step, steps, message",
    [
        (-1, 20, "step=-1; it must be from 0 to below steps=20"),
        (20, 20, "step=20; it must be from 0 to below steps=20"),
        (9, 10, "steps=10; too few for a step after the share 0.95 of them"),
    ],
)
def test_steps_that_no_phase_has_are_refused(step, steps, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.phase_at(recipes.fp4("kernel"), step, steps)


@pytest.mark.parametrize(
    "given, message",
    [
        (("pqt.round_at", "1"), "config.pqt.round_at=1.0; it must be below 1 with config.recipe="),
        (("pqt.round_to", "fp8_e4m3"), "config.pqt.round_to='fp8_e4m3'; it must be float4_e2m1fn "),
        (
            ("pqt.round_at", "0.97"),
            "config.pqt.round_all_at=0.95; it must be above config.pqt.round_at=0.97, or "
            "config.pqt.round_share 1; config.recipe='fp4' sets config.pqt.round_all_at",
        ),
        (
            ("pqt.begin_at", "0.5"),
            "it must be 0 with config.method='bf16', which needs no begin; "
            "config.recipe='fp4' sets config.method",
        ),
    ],
)
def test_fields_that_contradict_the_recipe_are_refused(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load("quickstart", [("recipe", "fp4"), given])


def test_what_is_given_stays():
    given = [("recipe", "fp6"), ("method", "gaussws"), ("pqt.round_at", "0.8")]
    config = load("quickstart", given)
    assert (config.method, config.pqt.round_at, config.pqt.round_all_at) == ("gaussws", 0.8, 0.95)
    assert (config.pqt.round_to, config.pqt.scale) == ("float6_e2m3fn", "mse")


def test_a_recipe_of_another_method_rounds_to_its_own_format():
    config = load("quickstart", [("recipe", "fp4"), ("method", "ste")])
    assert (config.pqt.dtype, config.pqt.round_to) == ("float4_e2m1fn", "float4_e2m1fn")


def test_a_recipe_for_all_blocks_has_two_phases():
    config = load("quickstart", [("recipe", "fp4"), ("pqt.round_share", "1")])
    assert config.pqt.round_all_at == 1 and len(list_phases(config)) == 2


@pytest.mark.parametrize("steps", range(1, 130))
def test_a_run_has_a_step_in_each_phase_or_is_refused(steps):
    fields = [("pqt.begin_at", "0.6"), ("pqt.round_at", "0.9"), ("pqt.round_share", "0.5")]
    fields += [("pqt.round_all_at", "0.95"), NO_WARMUP, ("steps", str(steps))]
    try:
        phases = list_phases(load("quickstart", fields))
    except InputError as error:
        fewest = int(re.search(r"at least (\d+)", str(error))[1])
        assert steps < fewest < 40
        assert len(list_phases(load("quickstart", [*fields[:-1], ("steps", str(fewest))]))) == 4
    else:
        assert len(phases) == 4
