# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Documents in one window are read and predicted as each would be alone."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import Rule
from pqt_jax.models import GPT2, Llama2, document_mask
from pqt_jax.training import final_evaluation
from pqt_jax.training import state as states
from pqt_jax.training.loss import chunked_cross_entropy, cross_entropy, token_losses
from pqt_jax.training.optimizer import make_optimizer
from pqt_jax.training.step import build_train_step
from support import tiny

END = 200
GROUPED = dataclasses.replace(tiny.LLAMA2, num_heads=4, num_kv_heads=2)
MODELS = {
    "llama2": (Llama2, tiny.LLAMA2),
    "grouped": (Llama2, dataclasses.replace(GROUPED, remat=True)),
    "gpt2": (GPT2, dataclasses.replace(tiny.GPT2, bias=True)),
}
SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("grouped", "gpt2")]
# Ends in the middle, side by side, at both borders of a window, and nowhere. No token is twice.
LENGTHS = ([5, 1, 1, 9], [1, 16], [17], [4, 12], [16, 1])
TOKENS = np.random.default_rng(0).permutation(200)[: 5 * 17].reshape(5, 17)
for row, sizes in zip(TOKENS, LENGTHS, strict=True):
    row[[at - 1 for at in np.cumsum(sizes) if at < 17]] = END
TOKENS[3, 16] = END


@functools.cache
def noise_key():
    return jax.random.key(7)


@functools.cache
def build(name, rules=()):
    """A model whose every parameter counts."""
    cls, config = MODELS[name]
    model = cls(config, rules, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, lambda path, _: "pqt_bits" not in path, ...)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)


def documents(tokens=TOKENS):
    """(row, start, tokens) of every document that the windows' inputs hold."""
    for i, row in enumerate(tokens):
        starts = [0, *(np.flatnonzero(row[:-1] == END) + 1)]
        for start, stop in zip(starts, [*starts[1:], len(row)], strict=True):
            if start < 16:
                yield i, start, row[start:stop]


def alone():
    """Every document in a row of its own, which zeros that it cannot see fill up."""
    return jnp.asarray(np.stack([np.resize([*own, *[0] * 17], 17) for *_, own in documents()]))


def test_windows_are_cut_at_ends():
    inputs, targets, of, counted = document_mask.make_windows(jnp.asarray(TOKENS), END)
    np.testing.assert_array_equal(inputs, TOKENS[:, :-1])
    np.testing.assert_array_equal(targets, TOKENS[:, 1:])
    assert of.dtype == jnp.int32 and counted.dtype == bool
    at = document_mask.positions(of)
    expected = np.zeros((3, *inputs.shape), int)
    for number, (i, start, own) in enumerate(documents()):
        n = min(len(own), 16 - start)
        expected[0, i, start : start + n] = number
        expected[1, i, start : start + n] = np.arange(n)
        expected[2, i, start : start + len(own) - 1] = 1  # all of a document but its first token
    first = expected[0] - expected[0][:, :1]
    np.testing.assert_array_equal(of, first)
    np.testing.assert_array_equal(at, expected[1])
    np.testing.assert_array_equal(counted, expected[2])
    same = np.asarray(document_mask.attention_mask(of))[:, 0]
    np.testing.assert_array_equal(same, first[:, :, None] == first[:, None, :])
    assert (
        float(document_mask.count_targets(jnp.asarray(TOKENS, jnp.uint8), END, 2))
        == expected[2].sum() / 2
    )


def test_without_an_end_every_target_counts():
    _, _, of, counted = document_mask.make_windows(jnp.asarray(TOKENS), None)
    assert of is counted is document_mask.count_targets(jnp.asarray(TOKENS), None, 2) is None


@pytest.mark.parametrize(
    "name, sampled",
    [*((name, False) for name in MODELS), pytest.param("gpt2", True, marks=pytest.mark.slow)],
)
def test_logits_of_a_document_are_those_of_it_alone(name, sampled):
    """Up to the order of sums in float32: matrix products of other sizes are cut otherwise.

    What is masked adds exp(−∞) = 0 to a softmax, exactly.
    """
    rules = (Rule("h/.*/kernel"), Rule(".*embedding")) if sampled else ()
    model, key = build(name, rules), noise_key() if sampled else None
    read = jax.jit(lambda tokens, of=None: model(tokens, of, pqt_key=key))
    inputs, _, of, _ = document_mask.make_windows(jnp.asarray(TOKENS), END)
    packed, plain, own = (np.asarray(x) for x in (read(inputs, of), read(inputs), read(alone())))
    scale = np.abs(packed).max()
    for (i, start, tokens), expected in zip(documents(), own, strict=True):
        at = slice(start, min(start + len(tokens), 16))
        found, expected = packed[i, at], expected[: at.stop - start]
        np.testing.assert_allclose(found, expected, atol=2e-5 * scale)
        np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
        if start:
            assert np.abs(plain[i, at] - expected).max() > 1e-2 * scale


@pytest.mark.jax_version
@pytest.mark.parametrize("name", ["llama2", *SLOWER])
def test_no_gradient_crosses_a_boundary(name):
    model = build(name)
    graph, params = nnx.split(model)
    inputs, _, of, _ = document_mask.make_windows(jnp.asarray(TOKENS[:1]), END)

    def grown(params, of):
        # What is before the head: a tied embedding is read as one there.
        return jnp.sum(nnx.merge(graph, params).hidden(inputs, of)[:, 7:] ** 2)

    apart, joined = (
        np.abs(jax.jit(jax.grad(grown))(params, x)["embed"]["embedding"][...]).max(-1)
        for x in (of, None)
    )
    before = TOKENS[0, :4]  # the first document but its end, which is a token of others
    assert not apart[before].any() and apart[TOKENS[0, 7:16]].all()
    assert joined[before].all()


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_the_loss_is_the_mean_over_documents_tokens(name):
    model, own = build(name), alone()
    losses = np.asarray(jax.jit(lambda x: token_losses(model(x[:, :-1]), x[:, 1:]))(own))
    scored = [len(tokens) - 1 for *_, tokens in documents()]
    nats = sum(row[:n].sum() for row, n in zip(losses, scored, strict=True))
    inputs, targets, of, counted = document_mask.make_windows(jnp.asarray(TOKENS), END)
    assert sum(scored) == int(counted.sum()) < counted.size
    x = jax.jit(lambda x, of: model.hidden(x, of))(inputs, of)
    whole = cross_entropy(model.logits(x), targets, counted)
    assert float(whole) == pytest.approx(nats / sum(scored), rel=2e-6)
    for chunk in (2, 16):
        found = chunked_cross_entropy(model.logits, x, targets, chunk, counted)
        assert float(found) == pytest.approx(float(whole), rel=2e-6)
    each = counted.sum() / 5
    rows = zip(model.logits(x), targets, counted, strict=True)
    parts = [cross_entropy(*row, each) for row in rows]
    assert float(sum(parts) / 5) == pytest.approx(float(whole), rel=2e-6)


def test_weights_are_a_mean_s():
    logits = jax.random.normal(noise_key(), (2, 4, 8))
    targets, weights = jnp.ones((2, 4), int), jnp.arange(8.0).reshape(2, 4)
    expected = np.average(token_losses(logits, targets), weights=weights)
    assert float(cross_entropy(logits, targets, weights)) == pytest.approx(expected, rel=1e-6)
    chunked = chunked_cross_entropy(lambda x: x, logits, targets, 2, weights)
    assert float(chunked) == pytest.approx(expected, rel=1e-6)
    ones = jnp.ones_like(weights)
    plain = float(cross_entropy(logits, targets))
    assert float(cross_entropy(logits, targets, ones)) == pytest.approx(plain, rel=1e-6)
    assert float(cross_entropy(logits, targets, 0 * ones)) == 0


@functools.cache
def setup(name="llama2", **fields):
    config = tiny.get_config(tiny.GPT2 if name == "gpt2" else tiny.LLAMA2)
    config.pqt.dtype = "float32"  # the gradient of a bfloat16 ŵ is rounded in each microbatch
    config.data.update(fields)
    optimizer = make_optimizer(config)
    graph, state = states.init_state(config, optimizer)
    step = build_train_step(config, graph, optimizer, end=END)
    return graph, jax.tree.map(np.asarray, state), step


def batch():
    return TOKENS[:4].astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2"])  # llama2: test_partitioning.py
def test_a_step_in_parts_is_the_step(name):
    """Windows 0 and 2 have fewer targets than 1 and 3: each target counts alike nevertheless."""
    _, state, step = setup(name)
    after, expected = step(state, batch(), noise_key())
    _, state, step = setup(name, microbatches=4, loss_chunk=4)
    found, measured = step(state, batch(), noise_key())
    for metric, value in expected.items():
        assert float(measured[metric]) == pytest.approx(float(value), rel=2e-6), metric
    moments = lambda state: jax.tree.leaves(state.opt_state)  # noqa: E731
    for got, want in zip(moments(found), moments(after), strict=True):
        scale = np.abs(np.asarray(want)).max()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("chunk, microbatches", [(0, 1), (4, 2)])
def test_windows_in_which_nothing_counts_are_no_nan(chunk, microbatches):
    _, state, step = setup(loss_chunk=chunk, microbatches=microbatches)
    after, measured = step(state, np.full((4, 17), END, np.uint8), noise_key())
    assert float(measured["loss"]) == 0 == float(measured["grad_norm"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))
    # And beside windows in which targets count they change nothing.
    half = batch()
    half[1::2] = END
    found = float(step(state, half, noise_key())[1]["loss"])
    both = float(step(state, np.repeat(half[::2], 2, axis=0), noise_key())[1]["loss"])
    assert found == pytest.approx(both, rel=2e-6) and found > 1


def test_the_validation_loss_has_the_same_rule():
    graph, state, _ = setup()
    batches = np.stack([TOKENS[:2], TOKENS[2:4]]).astype(np.uint8)
    found = final_evaluation.make_loss(graph, batches, END)(state.params)
    inputs, targets, of, counted = document_mask.make_windows(jnp.asarray(TOKENS[:4]), END)
    logits = nnx.merge(graph, state.params)(inputs, of)
    assert found == pytest.approx(float(cross_entropy(logits, targets, counted)), rel=2e-6)
    assert counted[:2].sum() != counted[2:].sum()
    assert found != final_evaluation.make_loss(graph, batches)(state.params)


@pytest.mark.parametrize("cls, config", [MODELS["llama2"], MODELS["gpt2"]])
def test_both_implementations_are_given_the_mask(monkeypatch, cls, config):
    given = []

    def attend(q, k, v, **options):
        given.append(options)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    inputs, _, of, _ = document_mask.make_windows(jnp.asarray(TOKENS), END)
    for name in ("xla", "cudnn"):
        own = dataclasses.replace(config, attention=name)
        model = nnx.eval_shape(lambda own=own: cls(own, rngs=nnx.Rngs(0)))
        for segment in (of, None):
            given.clear()
            jax.eval_shape(lambda m, s: m(inputs, s), model, segment)
            assert given and all(x["implementation"] == name and x["is_causal"] for x in given)
            masks = {x["mask"] if x["mask"] is None else x["mask"].shape for x in given}
            assert masks == {None if segment is None else (5, 1, 16, 16)}


@pytest.mark.parametrize("remat", [False, True])
def test_no_layer_keeps_a_mask(remat):
    """What the scan stacks up over its layers is of the same shapes with segments and without."""

    def stacked(end):
        config = dataclasses.replace(tiny.LLAMA2, num_layers=7, remat=remat)
        graph, params = nnx.split(nnx.eval_shape(lambda: Llama2(config, rngs=nnx.Rngs(0))))

        def loss(params, tokens):
            inputs, targets, of, counted = document_mask.make_windows(tokens, end)
            return cross_entropy(nnx.merge(graph, params)(inputs, of), targets, counted)

        shape = jax.ShapeDtypeStruct((5, 17), jnp.int32)
        return set(
            re.findall(r"\w+\[7,5,[\d,]*\]", str(jax.make_jaxpr(jax.grad(loss))(params, shape)))
        )

    assert stacked(END) == stacked(None) and "f32[7,5,16,32]" in stacked(END)
