# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Decoding with a cache gives what reading the whole sequence gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import Rule
from pqt_jax.models import GPT2, Llama2
from support import tiny

GROUPED = dataclasses.replace(tiny.LLAMA2, num_heads=4, num_kv_heads=2)
TIED = dataclasses.replace(tiny.LLAMA2, tie_embeddings=True)
MODELS = {
    "llama2": (Llama2, tiny.LLAMA2),
    "grouped": (Llama2, GROUPED),
    "tied": (Llama2, TIED),
    "others": (Llama2, tiny.OTHERS),
    "gpt2": (GPT2, dataclasses.replace(tiny.GPT2, bias=True)),
}
GPT2_SLOW = pytest.param("gpt2", marks=pytest.mark.slow)  # the cache is the code of Llama2
TOKENS = np.random.default_rng(0).integers(0, 256, (3, 12), dtype=np.int32)


@functools.cache
def build(name, dtype="float32"):
    """A model whose every parameter counts, and its two ways to read, jitted."""
    cls, config = MODELS[name]
    graph, params = nnx.split(cls(dataclasses.replace(config, dtype=dtype), rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    model = nnx.merge(graph, jax.tree.unflatten(tree, leaves))
    return model, jax.jit(lambda t: model(t)), jax.jit(lambda t, c: model.decode(t, c))


def in_parts(name, tokens, sizes, dtype="float32", capacity=None):
    model, _, decode = build(name, dtype)
    cache, parts, start = model.init_cache(len(tokens), capacity), [], 0
    for size in sizes:
        logits, cache = decode(tokens[:, start : start + size], cache)
        parts.append(logits)
        start += size
    assert int(cache.length) == start
    return jnp.concatenate(parts, axis=1)


# Each size of a part is one more program of each model: the quick cases share those of 7 and 1.
SIZES = [[7] + [1] * 5, [1] * 5 + [7]]
SIZES += [pytest.param(sizes, marks=pytest.mark.slow) for sizes in ([1] * 12, [12], [3, 4, 5])]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
# `others` has fewer heads of keys too; `tied` differs in the last product alone.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("grouped", "tied") else ())
        for name in MODELS
    ],
)
def test_logits_in_parts_are_those_of_the_whole(name, sizes):
    expected = build(name)[1](TOKENS)
    found = in_parts(name, TOKENS, sizes)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    "name", ["grouped", GPT2_SLOW, pytest.param("others", marks=pytest.mark.slow)]
)
def test_in_bfloat16_the_cache_is_bfloat16(name):
    model, forward, _ = build(name, "bfloat16")
    cache = model.init_cache(3, 16)
    layers, heads = 2, 2
    assert cache.keys.dtype == jnp.bfloat16
    width = {"grouped": 8, "gpt2": 16, "others": 24}[name]
    assert cache.values.shape == (layers, 3, 16, heads, width)
    found, expected = in_parts(name, TOKENS, [5] + [1] * 7, "bfloat16", 16), forward(TOKENS)
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_what_lies_beyond_the_length_is_never_seen(name):
    model, _, decode = build(name)
    cache = model.init_cache(3)
    dirty = cache._replace(keys=cache.keys + 1e3, values=cache.values - 1e3)
    np.testing.assert_array_equal(decode(TOKENS, cache)[0], decode(TOKENS, dirty)[0])


@pytest.mark.parametrize("name", ["llama2", GPT2_SLOW])
def test_a_cache_that_is_full_takes_no_more(name):
    model, _, decode = build(name)
    with pytest.raises(ValueError, match="holds 0 of 8 tokens; 12 more do not fit"):
        model.decode(TOKENS, model.init_cache(3, 8))
    _, cache = decode(TOKENS[:, :8], model.init_cache(3, 8))
    with pytest.raises(ValueError, match="holds 8 of 8 tokens; 1 more do not fit"):
        model.decode(TOKENS[:, 8:9], cache)
    assert np.isnan(decode(TOKENS[:, 8:9], cache)[0]).all()  # jit hides the length
    with pytest.raises(ValueError, match="2 rows, and the cache 3"):
        model.decode(TOKENS[:2], model.init_cache(3))
    for capacity in (0, 33):
        with pytest.raises(ValueError, match=f"capacity={capacity}.*max_length=32"):
            model.init_cache(1, capacity)


@pytest.mark.parametrize("name", ["llama2", GPT2_SLOW])
def test_a_wrapped_model_decodes_as_the_bare_one(name):
    cls, config = MODELS[name]
    wrapped = cls(config, [Rule("h/.*/kernel"), Rule("embed/.*")], rngs=nnx.Rngs(0))
    bare = cls(config, rngs=nnx.Rngs(0))
    found, expected = (m.decode(TOKENS, m.init_cache(3))[0] for m in (wrapped, bare))
    np.testing.assert_array_equal(found, expected)


def test_decoding_does_without_cudnn():
    model = Llama2(dataclasses.replace(tiny.LLAMA2, attention="cudnn"), rngs=nnx.Rngs(0))
    logits, _ = model.decode(TOKENS, model.init_cache(3))
    np.testing.assert_array_equal(logits.shape, (3, 12, 256))
