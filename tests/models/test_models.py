# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The models against numpy transcriptions, their sizes, and where ŵ is made."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax import Rule, param_transform
from pqt_jax.models import GPT2, Llama2, gpt2, llama2, rotary
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import tiny, transcription
from support.paths import ROOT

pytestmark = pytest.mark.jax_version

MODELS = {"llama2": (Llama2, tiny.LLAMA2), "gpt2": (GPT2, tiny.GPT2)}
FEW = [Rule("h/(attn/q|mlp/down)/kernel")]  # compiles sooner than all seven
# Not ".*": it matches stacked norm scales, which are refused.
EVERYTHING = [Rule("h/.*/kernel"), Rule(".*(kernel|embedding)", target_bits=3)]


def tokens(batch=2, length=8):
    return jnp.asarray(np.arange(batch * length).reshape(batch, length) * 37 % 256)


def size(cls, config):
    model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    "cls, config, expected",
    [
        (Llama2, llama2.LLAMA2_134M, 134_105_856),
        (Llama2, llama2.LLAMA2_1B, 1_055_991_808),
        (GPT2, dataclasses.replace(gpt2.GPT2_124M, bias=True), 124_475_904),
        # Without biases: 12 layers of 3·768 + 768 + 3072 + 768 and twice 768, and the last norm's.
        (GPT2, gpt2.GPT2_124M, 124_475_904 - 12 * (6912 + 2 * 768) - 768),
    ],
)
def test_parameter_counts(cls, config, expected):
    assert size(cls, config) == expected


@pytest.mark.parametrize("pattern", [".*", "h/.*norm/scale"])
def test_stacked_vectors_are_refused_unless_another_rule_decides(pattern):
    def build(*rules):
        nnx.eval_shape(lambda: Llama2(tiny.LLAMA2, rules, rngs=nnx.Rngs(0)))

    with pytest.raises(ValueError, match="matches 'h/attn_norm/scale', a stack of vectors"):
        build(Rule("h/.*/kernel"), Rule(pattern))
    build(Rule(".*scale", None), Rule(".*"))


def test_paths_are_those_that_rules_are_written_for():
    linear = {"h/attn/q", "h/attn/k", "h/attn/v", "h/attn/out", "h/mlp/up", "h/mlp/down"}
    norms = {"h/attn_norm/scale", "h/mlp_norm/scale", "norm/scale"}
    expected = {
        "llama2": {f"{name}/kernel" for name in linear | {"h/mlp/gate", "head"}},
        "gpt2": {f"{name}/kernel" for name in linear} | {"pos/embedding"},
    }
    for name, (cls, config) in MODELS.items():
        params = nnx.state(cls(config, rngs=nnx.Rngs(0)))
        found = dict(paths_and_leaves(params))
        assert set(found) == expected[name] | norms | {"embed/embedding"}
        assert found["h/mlp/up/kernel"].shape == (config.num_layers, config.d_model, config.d_ff)


def test_options_add_biases_and_norms_of_queries_and_keys():
    def added(**options):
        model = Llama2(dataclasses.replace(tiny.LLAMA2, **options), rngs=nnx.Rngs(0))
        found = {path: leaf.shape for path, leaf in paths_and_leaves(nnx.state(model)).items()}
        return {path: shape for path, shape in found.items() if path not in plain}

    plain = dict(paths_and_leaves(nnx.state(Llama2(tiny.LLAMA2, rngs=nnx.Rngs(0)))))
    qkv = {f"h/attn/{name}/bias": (2, 32) for name in "qkv"}
    assert added(attention_bias="qkv") == qkv
    assert added(attention_bias="all") == qkv | {"h/attn/out/bias": (2, 32)}
    assert added(qk_norm=True) == {f"h/attn/{name}_norm/scale": (2, 16) for name in "qk"}


def test_llama2_initial_values():
    config = dataclasses.replace(tiny.LLAMA2, d_model=128, d_ff=256, num_layers=3)
    params = nnx.to_pure_dict(nnx.state(Llama2(config, rngs=nnx.Rngs(0))))
    std = lambda x: np.std(np.asarray(x), axis=(-2, -1))  # noqa: E731
    np.testing.assert_allclose(std(params["embed"]["embedding"]), 1.0, rtol=0.03)
    for part, name in (("attn", "q"), ("attn", "k"), ("attn", "v"), ("mlp", "gate")):
        np.testing.assert_allclose(std(params["h"][part][name]["kernel"]), [0.02] * 3, rtol=0.03)
    by_depth = 0.02 / np.sqrt(2 * np.array([1, 2, 3]))
    for part, name in (("attn", "out"), ("mlp", "up"), ("mlp", "down")):
        np.testing.assert_allclose(std(params["h"][part][name]["kernel"]), by_depth, rtol=0.03)
    head = np.asarray(params["head"]["kernel"]) * 128**0.5
    np.testing.assert_allclose(head.std(), 0.98658, rtol=0.02)  # of a normal cut off at 3
    assert 2.8 < np.abs(head).max() <= 3.0
    layers_differ = np.asarray(params["h"]["attn"]["q"]["kernel"])
    assert not (layers_differ[0] == layers_differ[1]).any()


def test_gpt2_initial_values():
    config = dataclasses.replace(tiny.GPT2, d_model=128, d_ff=256, num_layers=3, bias=True)
    params = nnx.to_pure_dict(nnx.state(GPT2(config, rngs=nnx.Rngs(0))))
    std = lambda x: np.std(np.asarray(x), axis=(-2, -1))  # noqa: E731
    np.testing.assert_allclose(std(params["embed"]["embedding"]), 0.02, rtol=0.03)
    np.testing.assert_allclose(std(params["h"]["mlp"]["up"]["kernel"]), [0.02] * 3, rtol=0.03)
    for part, name in (("attn", "out"), ("mlp", "down")):
        kernels = params["h"][part][name]["kernel"]
        np.testing.assert_allclose(std(kernels), [0.02 / 6**0.5] * 3, rtol=0.03)
    assert not np.asarray(params["h"]["mlp"]["up"]["bias"]).any()


@pytest.mark.parametrize(
    "cls, config, by_hand",
    [
        (Llama2, tiny.LLAMA2, transcription.llama2),
        (
            Llama2,
            dataclasses.replace(tiny.LLAMA2, num_heads=4, num_kv_heads=2),
            transcription.llama2,
        ),
        (Llama2, tiny.OTHERS, transcription.llama2),
        (
            Llama2,
            dataclasses.replace(
                tiny.LLAMA2, attention_bias="qkv", rope_scaling="linear", rope_factor=4.0
            ),
            transcription.llama2,
        ),
        (GPT2, dataclasses.replace(tiny.GPT2, bias=True), transcription.gpt2),
    ],
)
def test_logits_are_those_of_a_transcription(cls, config, by_hand):
    graph, params = nnx.split(cls(config, rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(params)
    # Larger values than the initial ones, so that every term counts, biases and scales included.
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.normal(0.3, 0.4, leaf.shape), jnp.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, leaves)
    logits = nnx.merge(graph, params)(tokens())
    assert logits.dtype == jnp.float32
    wide = {path: np.asarray(leaf, np.float64) for path, leaf in paths_and_leaves(params).items()}
    for row, sequence in zip(logits, np.asarray(tokens()), strict=True):
        expected = by_hand(wide, config, sequence)
        error = np.abs(np.asarray(row) - expected).max()
        assert error < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_close_to_float32(name):
    cls, config = MODELS[name]
    graph, params = nnx.split(cls(config, rngs=nnx.Rngs(0)))
    narrow = nnx.split(cls(dataclasses.replace(config, dtype="bfloat16"), rngs=nnx.Rngs(0)))[0]
    a, b = nnx.merge(graph, params)(tokens()), nnx.merge(narrow, params)(tokens())
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_tied_embeddings_are_one_parameter():
    config = dataclasses.replace(tiny.LLAMA2, tie_embeddings=True)
    assert size(Llama2, tiny.LLAMA2) - size(Llama2, config) == 256 * 32
    assert Llama2(config, rngs=nnx.Rngs(0))(tokens()).shape == (2, 8, 256)
    untied = dataclasses.replace(tiny.GPT2, tie_embeddings=False)
    assert size(GPT2, untied) - size(GPT2, tiny.GPT2) == 256 * 32


@pytest.mark.parametrize(
    "name, rules, remat",
    [
        pytest.param("llama2", FEW, True, id="llama2-few-remat"),
        pytest.param("gpt2", FEW, True, id="gpt2-few-remat", marks=pytest.mark.slow),
        pytest.param("others", EVERYTHING, False, id="others-everything", marks=pytest.mark.slow),
        pytest.param("llama2", EVERYTHING, False, id="llama2-everything", marks=pytest.mark.slow),
        pytest.param("gpt2", EVERYTHING, False, id="gpt2-everything", marks=pytest.mark.slow),
    ],
)
def test_sampling_in_the_scan_equals_sampling_the_whole_tree(name, rules, remat):
    cls, config = (MODELS | {"others": (Llama2, tiny.OTHERS)})[name]
    config = dataclasses.replace(config, remat=remat)
    key = jax.random.key(5)
    bare, params = nnx.split(cls(config, rngs=nnx.Rngs(0)))
    graph, wrapped = nnx.split(cls(config, rules, rngs=nnx.Rngs(0)))
    transform = param_transform(rules)
    bits = transform.init(params)

    def whole(params):
        logits = nnx.merge(bare, transform.sample(params, bits, key))(tokens())
        return jnp.mean(logits**2), logits

    def in_scan(params):
        logits = nnx.merge(graph, params)(tokens(), pqt_key=key)
        return jnp.mean(logits**2), logits

    expected, logits = jax.jit(jax.grad(whole, has_aux=True))(params)
    found, scanned = jax.jit(jax.grad(in_scan, has_aux=True))(wrapped)
    np.testing.assert_array_equal(logits, scanned)
    assert not (logits == nnx.merge(bare, params)(tokens())).all()
    expected, found = dict(paths_and_leaves(expected)), dict(paths_and_leaves(found))
    assert expected.keys() == found.keys()
    for path, gradient in expected.items():
        scale = np.abs(gradient).max()
        assert scale > 0, path
        # The same ŵ on both sides; only sums over the batch may be ordered differently. A bfloat16
        # ŵ's gradient is rounded after that, so that a sum near a tie may end in the next bfloat16.
        # A tied embedding is sampled at both of its uses: the whole tree adds its two bfloat16
        # gradients in bfloat16, the scan in float32.
        tied = name == "gpt2" and rules is EVERYTHING and path == "embed/embedding"
        tolerance = (2.0**-8 if tied else 1e-5) * scale
        next_bfloat16 = 2.0**-7
        np.testing.assert_allclose(
            found[path], gradient, rtol=next_bfloat16, atol=tolerance, err_msg=path
        )
        assert (np.abs(found[path] - gradient) > tolerance).mean() < 0.002, path


@pytest.mark.parametrize("name", MODELS)
def test_without_a_key_the_wrapped_model_is_the_bare_one(name):
    cls, config = MODELS[name]
    bare, wrapped = cls(config, rngs=nnx.Rngs(0)), cls(config, EVERYTHING, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(bare(tokens()), wrapped(tokens()))
    assert (
        dict(paths_and_leaves(nnx.state(wrapped))).keys()
        == dict(paths_and_leaves(nnx.state(bare))).keys()
    )


def temporaries(rules, *, num_layers, remat):
    config = llama2.Llama2Config(
        64, 256, num_layers, num_heads=4, d_ff=512, dtype="bfloat16", remat=remat
    )
    graph, params = nnx.split(nnx.eval_shape(lambda: Llama2(config, rules, rngs=nnx.Rngs(0))))

    def loss(params, tokens, key):
        return jnp.mean(nnx.merge(graph, params)(tokens, pqt_key=key))

    key = jax.eval_shape(lambda: jax.random.key(0))
    shape = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(params, shape, key).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_w_hat_exists_for_one_layer_at_a_time(remat):
    w_hat = 2 * (256 * 256 + 256 * 512)  # bytes of one layer's ŵ in bfloat16
    sampled = {n: temporaries(FEW, num_layers=n, remat=remat) for n in (4, 12)}
    bare = temporaries((), num_layers=12, remat=remat)
    # Eight more layers may keep eight times the activations of eight tokens, but no ŵ. (The
    # difference from the bare model would not tell: what keeps ŵ also keeps the bare casts.)
    assert (sampled[12] - sampled[4]) / 8 < w_hat / 2
    assert sampled[12] - bare < 4 * w_hat  # one ŵ, its noise codes and its gradient


@pytest.mark.parametrize("cls, config", MODELS.values())
def test_tokens_do_not_see_what_follows(cls, config):
    model = cls(config, rngs=nnx.Rngs(0))
    changed = tokens().at[:, 5].add(1)
    a, b = model(tokens()), model(changed)
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] != b[:, 5:]).any(axis=-1).all()


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 16))
    turning = rotary.Rotary(10000.0)
    at_all = lambda x: rotary.rotate(jnp.tile(x, (1, 12, 1, 1)), turning)[0, :, 0]  # noqa: E731
    scores = np.asarray(at_all(q) @ at_all(k).T)
    for distance in (0, 1, 7):
        np.testing.assert_allclose(np.diagonal(scores, -distance), scores[distance, 0], atol=1e-5)
    assert abs(scores[7, 0] - scores[0, 0]) > 1e-3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_heads=3 does not fit d_model=32"):
        Llama2(dataclasses.replace(tiny.LLAMA2, num_heads=3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="even"):
        Llama2(dataclasses.replace(tiny.LLAMA2, num_heads=32), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="head_dim=7; it must be even"):
        Llama2(dataclasses.replace(tiny.LLAMA2, head_dim=7), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="max_length=32"):
        GPT2(tiny.GPT2, rngs=nnx.Rngs(0))(tokens(1, 33))
    with pytest.raises(ValueError, match="'layers/.*'.*matches no parameter"):
        Llama2(tiny.LLAMA2, [Rule("layers/.*")], rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_models_work_in_the_coming_default_of_nnx():
    code = (
        "import jax; from flax import nnx; from pqt_jax import Rule; from support import tiny; "
        "from pqt_jax.models import Llama2; "
        "m = Llama2(tiny.LLAMA2, [Rule('h/.*/kernel')], rngs=nnx.Rngs(0)); "
        "print(m(jax.numpy.zeros((1, 4), int), pqt_key=jax.random.key(0)).shape)"
    )
    env = {**os.environ, "NNX_GRAPH_MODE": "false", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "(1, 4, 256)\n", done.stderr
