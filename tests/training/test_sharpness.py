# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sharpness: the corner is the maximum, searches find it, and the bounds hold."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.analysis import load
from pqt_jax.data import pipeline, source
from pqt_jax.models import Llama2, Llama2Config, document_mask
from pqt_jax.training import sharpness
from pqt_jax.training.run import metrics
from pqt_jax.training.sharpness import logit_sharpness, sharpness_bounds, weight_sharpness
from support.command import main
from support.random_model import make_random


def case(seed=0, batch=6, size=12, spread=3.0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(0, spread, (batch, size)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, size, batch))


@pytest.mark.parametrize("epsilon", [5e-4, 0.05, 1.0])
def test_no_corner_of_the_box_is_higher(epsilon):
    logits, targets = case(size=7)
    phi = logit_sharpness(logits, targets, epsilon=epsilon)
    radius = epsilon * (jnp.abs(logits) + 1)
    z, radius = np.asarray(logits, np.float64), np.asarray(radius, np.float64)

    def loss_at(y):
        return np.log(np.exp(z + y).sum(-1)) - (z + y)[range(6), targets]

    f, corners = loss_at(0), itertools.product((-1, 1), repeat=7)
    # f is convex, so its maximum over the box is at a corner.
    best = np.max([loss_at(np.array(signs) * radius) for signs in corners], 0)
    np.testing.assert_allclose(
        phi, 100 * (best - f) / (1 + f), rtol=2e-3 if epsilon < 1e-3 else 1e-4
    )


@pytest.mark.parametrize("epsilon", [1e-6, 5e-4, 0.1])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_the_bounds_hold(epsilon, spread):
    logits, targets = case(batch=50, spread=spread)
    below, above = jax.jit(sharpness_bounds)(logits, targets, epsilon)
    phi = logit_sharpness(logits, targets, epsilon=epsilon)
    slack = 1e-4 * np.asarray(above)
    assert (phi >= below - slack).all() and (phi <= above + slack).all() and (phi > 0).any()
    if epsilon == 1e-6 and spread < 30:
        np.testing.assert_allclose(phi, below, rtol=1e-3)  # f is nearly linear there


def test_two_equal_logits_by_hand():
    """f = ln 2; both move by ε: ln(1 + e^{2ε}) − ln 2 = ε + ε²/2 + …"""
    phi = logit_sharpness(jnp.zeros((1, 2)), jnp.array([1]), epsilon=1e-3)
    np.testing.assert_allclose(phi, 100 * (1e-3 + 0.5e-6) / (1 + np.log(2)), rtol=1e-5)


@pytest.mark.parametrize("maximizer", ["gradient", "lbfgsb"])
@pytest.mark.parametrize("epsilon", [5e-4, 0.05])
def test_searches_find_the_maximum_and_nothing_above_it(maximizer, epsilon):
    logits, targets = case()
    exact = logit_sharpness(logits, targets, epsilon=epsilon)
    found = logit_sharpness(logits, targets, epsilon=epsilon, iterations=30, maximizer=maximizer)
    assert (found <= exact * (1 + 1e-5)).all()
    np.testing.assert_allclose(found, exact, rtol=0.02)
    fewer = logit_sharpness(logits, targets, epsilon=epsilon, iterations=1, maximizer=maximizer)
    assert (fewer <= exact * (1 + 1e-5)).all() and (fewer > 0).all()


@pytest.mark.parametrize("maximizer", ["corner", "gradient", "lbfgsb"])
def test_it_can_be_jitted_and_vmapped(maximizer):
    logits, targets = case()
    both = jnp.stack([logits, 2 * logits])
    phi = jax.jit(jax.vmap(lambda z: logit_sharpness(z, targets, maximizer=maximizer)))(both)
    for got, z in zip(phi, both, strict=True):
        np.testing.assert_allclose(got, logit_sharpness(z, targets, maximizer=maximizer), rtol=1e-6)


@pytest.mark.parametrize("maximizer", ["corner", "gradient", "lbfgsb"])
@pytest.mark.parametrize("target, epsilon", [(1, 5e-4), (0, 5e-4), (2, 0.9)])
def test_huge_logits_do_not_overflow(maximizer, target, epsilon):
    """f in float64, at the corner that maximizes it."""
    z = jnp.array([[2e5, 0.0, 1.0]])
    phi = logit_sharpness(z, jnp.array([target]), epsilon=epsilon, maximizer=maximizer)
    y = epsilon * (np.array([2e5, 0.0, 1.0]) + 1) * np.where(np.arange(3) == target, -1, 1)
    moved = np.array([2e5, 0.0, 1.0]) + y
    f, after = (np.logaddexp.reduce(x) - x[target] for x in (np.array([2e5, 0, 1]), moved))
    np.testing.assert_allclose(phi, 100 * (after - f) / (1 + f), rtol=1e-4, atol=1e-6)
    assert phi >= 0


def sum_of_squares(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def test_small_steps_of_bfloat16_weights_are_not_rounded_away():
    params = {"a": jnp.full((3, 2), 1.7, jnp.bfloat16), "b": jnp.full(4, 0.3, jnp.bfloat16)}
    before = sum(np.sum(np.asarray(x, np.float64) ** 2) for x in params.values())
    want = 100 * before * (1.001**2 - 1) / (1 + before)
    measure = jax.jit(functools.partial(weight_sharpness, sum_of_squares, rho=1e-3))
    np.testing.assert_allclose(measure(params), want, rtol=1e-4)


@pytest.mark.parametrize("maximizer", ["corner", "gradient", "lbfgsb"])
def test_a_nan_affects_only_its_own_sequence(maximizer):
    logits, targets = case()
    phi = logit_sharpness(logits.at[2, 3].set(jnp.nan), targets, maximizer=maximizer)
    assert np.isnan(phi[2]) and np.isfinite(np.delete(phi, 2)).all()


def test_the_sharpness_of_a_model_is_that_of_its_last_logits():
    model = make_random(Llama2, Llama2Config(300, 32, 1, 2, 64, max_length=8))
    graph, params = nnx.split(model)
    tokens = np.random.default_rng(0).integers(0, 300, (5, 9), np.int32)
    # Token 7 ends a document. The first token of the next document has no target that counts.
    tokens[:, 3] = 7
    tokens[1, 7] = 7

    @jax.jit
    def measure(params, tokens):
        model = nnx.merge(graph, params)
        inputs, targets, documents, _ = document_mask.make_windows(tokens, 7)
        one_document = model(tokens[:, :-1])[:, -1]
        several = model(inputs, documents)[:, -1]
        return (
            logit_sharpness(one_document, tokens[:, -1], epsilon=0.01),
            sharpness.model_sharpness(graph, params, tokens, epsilon=0.01),
            logit_sharpness(several, targets[:, -1]),
            sharpness.model_sharpness(graph, params, tokens, 7),
        )

    each, mean, each_with_ends, mean_with_ends = measure(params, tokens)
    np.testing.assert_allclose(mean, each.mean(), rtol=1e-5)
    np.testing.assert_allclose(mean_with_ends, np.delete(each_with_ends, 1).mean(), rtol=1e-5)
    assert abs(mean_with_ends - each_with_ends.mean()) > 1e-4 * mean_with_ends


@pytest.mark.slow
def test_the_trainer_logs_it(tmp_path):
    options = ("--config.steps=5", "--config.log.sharpness_every=2", "--config.method=bf16")
    assert main(tmp_path, *options) == 0
    path = tmp_path / "run" / "metrics.jsonl"
    logged = {r["step"]: r["sharpness"] for r in metrics.read(path) if "sharpness" in r}
    assert list(logged) == [2, 4, 5] and len(set(logged.values())) == 3
    run, text = load.load_run(tmp_path / "run"), source.load(str(tmp_path / "text.txt"))
    data, count = run.config.data, run.config.log.validation_batches
    options = {"length": data.length, "batch": data.batch, "count": count}
    rows = pipeline.validation_batches(text.validation, **options)
    got = sharpness.model_sharpness(run.graph, run.params, jnp.asarray(rows[0], jnp.int32))
    np.testing.assert_allclose(got, logged[5], rtol=1e-5)


def test_weights_of_a_quadratic_by_hand():
    """The gradient is parallel to w, so every array grows by ρ times its own norm."""
    params = {"a": jnp.full((3, 2), 2.0), "b": jnp.full(4, 0.5), "zero": jnp.zeros(3)}
    before = 24.0 + 1.0
    want = 100 * before * (1.1**2 - 1) / (1 + before)
    for iterations in (1, 3):
        ascend = functools.partial(weight_sharpness, sum_of_squares, rho=0.1, iterations=iterations)
        got = jax.jit(ascend)(params)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_scaling_one_layer_up_and_the_next_down_changes_nothing():
    """relu(x A) B = relu(x cA) B/c, and the radii are proportional to the norms of A and B."""
    rng = np.random.default_rng(0)
    x, a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((9, 5), (5, 7), (7, 3)))

    @jax.jit
    def measure(params):
        def loss(p):
            return jnp.mean(jnp.square(jax.nn.relu(x @ p[0]) @ p[1]))

        return weight_sharpness(loss, params, rho=0.01, iterations=4)

    np.testing.assert_allclose(measure((4 * a, b / 4)), measure((a, b)), rtol=1e-3)
    assert measure((a, b)) > 0.5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"maximizer": "newton"}, "maximizer='newton'"),
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_invalid_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        sharpness.logit_sharpness(*case(), **options)


def test_radii_must_be_positive():
    with pytest.raises(ValueError, match="rho=-1"):
        weight_sharpness(jnp.sum, jnp.ones(3), rho=-1)
