# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sampling: which tokens are kept, how often each is drawn, and that keys decide alone."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import generate
from pqt_jax.analysis.sampling import generate_tokens, sample_token, truncate_logits
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface
from pqt_jax.models import GPT2, Llama2
from support import tiny
from support.command import refused

PROBABILITIES = np.array([0.1, 0.4, 0.2, 0.05, 0.25])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 3
MODELS = {
    "llama2": (Llama2, dataclasses.replace(tiny.LLAMA2, num_heads=4, num_kv_heads=2)),
    "gpt2": (GPT2, tiny.GPT2),
}
PROMPT = np.arange(10).reshape(2, 5) * 37 % 256


def build(name):
    """Structure and parameters that make no two logits alike."""
    cls, config = MODELS[name]
    graph, params = nnx.split(cls(config, rngs=nnx.Rngs(0)))
    return graph, jax.tree.map(lambda w: w * 3, params)


@pytest.mark.parametrize(
    "options, kept_tokens",
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 4, 2}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 1e-6}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 4}),
        ({"top_p": 0.64}, {1, 4}),
        ({"top_p": 0.66}, {1, 4, 2}),
        ({"top_p": 0.96}, {0, 1, 2, 3, 4}),
        # Of 0.4, 0.25 and 0.2 the first two have 0.76 of the mass.
        ({"top_k": 3, "top_p": 0.7}, {1, 4}),
        ({"top_k": 3, "top_p": 0.8}, {1, 4, 2}),
    ],
    ids=str,
)
def test_what_is_left(options, kept_tokens):
    result = truncate_logits(LOGITS, **options)
    assert set(np.flatnonzero(np.isfinite(result))) == kept_tokens
    kept = np.array(sorted(kept_tokens))
    np.testing.assert_array_equal(result[kept], LOGITS[kept])
    batch = truncate_logits(jnp.stack([LOGITS, LOGITS[::-1]]), **options)
    np.testing.assert_array_equal(batch, jnp.stack([result, result[::-1]]))


def test_of_equal_logits_the_lower_tokens_are_left():
    logits = jnp.array([1.0, 2.0, 1.0, 1.0])
    assert np.isfinite(truncate_logits(logits, top_k=2)).tolist() == [True, True, False, False]
    assert np.isfinite(truncate_logits(jnp.zeros(4), top_p=0.5)).tolist() == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"temperature": 0.7, "top_k": 3},
        # At this temperature tokens 1, 4 and 2 have 0.54, 0.21 and 0.13 of the mass.
        {"temperature": 0.65, "top_p": 0.7},
    ],
    ids=str,
)
def test_tokens_are_as_frequent_as_the_temperature_says(options):
    count = 20_000
    keys = jax.random.split(jax.random.key(0), count)
    tokens = jax.jit(jax.vmap(lambda key: sample_token(LOGITS, key, **options)))(keys)
    weights = PROBABILITIES ** (1 / options.get("temperature", 1.0))
    kept_by_option = {"top_k": [1, 4, 2], "top_p": [1, 4]}
    (kept,) = [kept_by_option[name] for name in kept_by_option if name in options] or [range(5)]
    kept = list(kept)
    expected = np.zeros(5)
    expected[kept] = count * weights[kept] / weights[kept].sum()
    drawn = np.bincount(np.asarray(tokens), minlength=5)
    assert not drawn[expected == 0].any()
    chi2 = ((drawn - expected)[kept] ** 2 / expected[kept]).sum()
    # Beyond this with a probability of 1e-4 at four degrees of freedom, and less at fewer.
    assert chi2 < 23.5


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_the_argmax_of_whole_forward_passes(name):
    graph, params = build(name)
    forward = jax.jit(lambda tokens: nnx.merge(graph, params)(tokens))
    for prompt in (PROMPT, PROMPT[:, :1]):
        tokens = np.zeros((2, 32), int)  # what follows is not seen
        tokens[:, : prompt.shape[1]] = prompt
        for t in range(prompt.shape[1], 32):
            tokens[:, t] = np.asarray(forward(tokens))[:, t - 1].argmax(-1)
        steps = 32 - prompt.shape[1]
        result = generate_tokens(
            graph, params, prompt, steps=steps, key=jax.random.key(0), temperature=0
        )
        assert result.dtype == jnp.int32
        np.testing.assert_array_equal(result, tokens[:, prompt.shape[1] :])


@pytest.mark.slow
def test_a_token_depends_on_key_row_and_position_alone():
    graph, params = build("llama2")

    def run(prompt, steps, seed=0):
        key = jax.random.key(seed)
        tokens = generate_tokens(graph, params, prompt, steps=steps, key=key, top_k=50)
        return np.asarray(tokens)

    same = np.tile(PROMPT[:1], (3, 1))
    result = run(same, 12)
    np.testing.assert_array_equal(run(same[:1], 12), result[:1])  # rows do not know of each other
    np.testing.assert_array_equal(run(same, 5), result[:, :5])
    longer = np.concatenate([same, result[:, :4]], axis=1)
    np.testing.assert_array_equal(run(longer, 8), result[:, 4:])  # t counts from the text's start
    assert (result[0] != result[1]).any() and (result[1] != result[2]).any()
    assert (run(same, 12, seed=1) != result).any(axis=1).all()


def test_what_the_model_has_no_room_for_is_refused():
    graph, params = build("gpt2")
    for prompt, steps, message in (
        (PROMPT, 28, "5 tokens and 28 more; the model has max_length=32"),
        (PROMPT, 0, "steps=0; both must be 1 or more"),
        (PROMPT[:, :0], 3, "a prompt of 0 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_tokens(graph, params, prompt, steps=steps, key=jax.random.key(0))


def test_the_command(trained_run, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_bytes("quick é\xff".encode("latin-1"))

    def run(*options):
        assert generate.main([f"--workdir={trained_run}", *options]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    two = run("--prompt=quick", "--tokens=12", "--samples=2", "--top-k=20", "--top-p=0.9")
    first, second = two.split("--- sample 2 of 2\n")
    first = first.removeprefix("--- sample 1 of 2\n")
    assert first.startswith("quick") and second.startswith("quick") and first != second
    options = ("--prompt=quick", "--tokens=12", "--top-k=20", "--top-p=0.9")
    assert run(*options) == first != run(*options, "--seed=1")
    greedy = [
        run(f"--prompt-file={tmp_path / 'prompt.txt'}", "--temperature=0", f"--weights={weights}")
        for weights in ("master", "mixed")
    ]
    assert all(text.startswith("quick \ufffd\ufffd") for text in greedy)
    assert len(run("--temperature=0").encode()) >= 32  # a line break, and as many as there is room


BAD_OPTIONS = {
    "--weights=int4": "--weights: invalid choice: 'int4'",
    "--tokens=0": "--tokens: '0'; it must be a whole number from 1 on",
    "--temperature=-1": "--temperature: '-1'; it must be 0, or from 0.001 to 1000",
    "--temperature=nan": "--temperature: 'nan'",
    "--top-k=x": "--top-k: 'x'; it must be a whole number from 1 on",
    "--top-p=1.5": "--top-p: '1.5'; it must be above 0 and at most 1",
    "--seed=-1": "--seed: '-1'; it must be a whole number from 0",
    "--samples=0": "--samples: '0'",
    "more": "unrecognized arguments: more",
}


@pytest.mark.parametrize("argument", BAD_OPTIONS)
def test_options_that_cannot_be_used_are_refused(argument):
    with pytest.raises(InputError, match=re.escape(BAD_OPTIONS[argument])):
        generate.parser().parse_args(["--workdir=run", argument])


BAD_INPUT = {
    "--workdir=nowhere": "--workdir=nowhere does not exist",
    "--workdir=": "--workdir= is empty",
    "--prompt=": "--prompt= is empty; give at least one byte",
    "--prompt=" + "x" * 32: "--prompt: 32 bytes, and the model sees 32 in all",
    "--prompt-file=nowhere": "--prompt-file='nowhere' cannot be read: No such file",
    "--tokens=32": "--tokens=32; it must be at most 31",
}


@pytest.mark.parametrize("argument", BAD_INPUT, ids=lambda a: a[:20])
def test_bad_input_is_one_line_and_compiles_nothing(
    trained_run, tmp_path, monkeypatch, capsys, argument
):
    monkeypatch.chdir(tmp_path)  # an empty folder
    arguments = [f"--workdir={trained_run}", argument]
    assert BAD_INPUT[argument] in refused(generate.main, arguments, capsys)


def test_a_model_of_other_tokens_is_refused(tmp_path, capsys):
    config = dataclasses.replace(tiny.GPT2, vocab_size=300)
    huggingface.save(tmp_path / "m", config, nnx.state(GPT2(config, rngs=nnx.Rngs(0))))
    assert generate.main([f"--hf={tmp_path / 'm'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        f"error: --tokenizer is missing; the model of {tmp_path}/m has 300 tokens"
    )


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_p": 0.0}, {"temperature": -1.0}], ids=str)
def test_options_that_leave_nothing_to_draw_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        sample_token(LOGITS, jax.random.key(0), **options)


def test_tokens_of_a_padded_vocabulary_are_never_drawn():
    graph, params = build("gpt2")
    options = {"steps": 8, "key": jax.random.key(0), "temperature": 1e3}
    assert (generate_tokens(graph, params, PROMPT, **options) >= 40).any()
    for temperature in (1e3, 0.0):
        options["temperature"] = temperature
        assert (generate_tokens(graph, params, PROMPT, vocab_size=40, **options) < 40).all()
    everything = generate_tokens(graph, params, PROMPT, **options)
    size = MODELS["gpt2"][1].vocab_size
    same = generate_tokens(graph, params, PROMPT, vocab_size=size, **options)
    np.testing.assert_array_equal(everything, same)
