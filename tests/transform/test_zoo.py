# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models of well-known architectures, as others write them, wrapped without a change.

Each computes what the bare model computes from the ŵ of `param_transform`, bit for bit; without a
key it is the bare model; weights and bits have finite gradients; and jit samples the same ŵ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from pqt_jax import BitParam, Rule, param_transform, pqt_transform, presets
from support import zoo_linen, zoo_nnx

pytestmark = [pytest.mark.slow, pytest.mark.jax_version]

TOKENS = np.arange(12).reshape(2, 6) % zoo_linen.VOCABULARY
IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
EINSUMS = [
    Rule("table", None),
    Rule("layers/(q|kv|gating)"),
    Rule("layers/out", matrix_axes=(2, 1)),
    Rule("layers/linear"),
]

# model, input, rules (None: presets.flax), collections that a call writes, the call
LINEN = {
    "encoder-decoder": (zoo_linen.EncoderDecoder(), TOKENS, None, (), "__call__"),
    "encode of the class": (
        zoo_linen.EncoderDecoder(),
        TOKENS,
        None,
        (),
        zoo_linen.EncoderDecoder.encode,
    ),
    "decode after encode": (
        zoo_linen.EncoderDecoder(),
        TOKENS,
        None,
        (),
        lambda m, x: zoo_linen.EncoderDecoder.decode(m, m.encode(x), x),
    ),
    "bert": (zoo_linen.MaskedLanguageModel(), TOKENS, None, (), "__call__"),
    "vision transformer": (zoo_linen.VisionTransformer(), IMAGES, None, (), "__call__"),
    "resnet": (zoo_linen.ResNet(), IMAGES, None, ("batch_stats",), "__call__"),
    "recurrent": (zoo_linen.Tagger(), TOKENS, None, (), "__call__"),
    "gemma": (zoo_linen.Gemma(), TOKENS, EINSUMS, (), "__call__"),
    "experts": (zoo_linen.Experts(), TOKENS, None, (), "__call__"),
    "cache": (zoo_linen.Cached(), TOKENS[:, :1], None, ("cache",), "__call__"),
}
NNX = {
    "decoder": (zoo_nnx.Decoder, TOKENS),
    "u-net": (zoo_nnx.UNet, IMAGES),
    "recurrent": (zoo_nnx.Recurrent, TOKENS),
    "lora": (zoo_nnx.Lora, TOKENS),
}


def make_key():
    return jax.random.key(7)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return not jax.tree.all(jax.tree.map(np.array_equal, a, b))


def make_linen(name):
    bare, x, rules, mutable, method = LINEN[name]
    variables = bare.init(jax.random.key(0), x)
    rules = presets.flax(variables["params"]) if rules is None else rules
    model = pqt_transform(bare, rules)
    wrapped = model.init(jax.random.key(0), x)
    same({k: v for k, v in wrapped.items() if k != "pqt"}, variables)

    def call(model, variables, **options):
        return model.apply(variables, x, mutable=list(mutable), method=method, **options)

    return bare, model, wrapped, rules, call


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    bare, model, variables, rules, call = make_linen(name)
    bits, rest = variables["pqt"]["bits"], {k: v for k, v in variables.items() if k != "pqt"}
    transform = param_transform(rules)
    w_hat = transform.sample(rest["params"], bits, make_key())
    same(jax.jit(transform.sample)(rest["params"], bits, make_key()), w_hat)
    sampled = call(model, variables, rngs={"pqt": make_key()})
    same(sampled, call(bare, {**rest, "params": w_hat}))
    same(call(model, variables), call(bare, rest))
    assert differ(sampled, call(bare, rest))

    @jax.jit
    def gradient(trained, key):
        def loss(trained):
            out, _ = call(model, {**rest, **trained}, rngs={"pqt": key})
            return sum(jnp.mean(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(out))

        return jax.grad(loss)(trained)

    grads = gradient({k: variables[k] for k in ("params", "pqt")}, make_key())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    nonzero = [bool((leaf != 0).any()) for leaf in jax.tree.leaves(grads["pqt"])]
    assert all(nonzero) or (name in ("encode of the class", "cache") and any(nonzero))


def test_an_interceptor_sees_the_sampled_model():
    bare, model, variables, rules, call = make_linen("bert")
    w_hat = param_transform(rules).sample(variables["params"], variables["pqt"]["bits"], make_key())
    with linen.intercept_methods(zoo_linen.lora):
        adapted = call(model, variables, rngs={"pqt": make_key()})
        same(adapted, call(bare, {"params": w_hat}))
    assert differ(adapted, call(model, variables, rngs={"pqt": make_key()}))


def test_a_cache_goes_on_from_token_to_token():
    bare, model, variables, rules, _ = make_linen("cache")
    variables = model.init(jax.random.key(0), TOKENS)  # a cache of six places
    w_hat = param_transform(rules).sample(variables["params"], variables["pqt"]["bits"], make_key())
    got, want = variables["cache"], variables["cache"]
    for i in range(3):
        token, rngs = TOKENS[:, i : i + 1], {"pqt": make_key()}
        out, state = model.apply({**variables, "cache": got}, token, rngs=rngs, mutable=["cache"])
        bare_out, bare_state = bare.apply(
            {"params": w_hat, "cache": want}, token, mutable=["cache"]
        )
        same(out, bare_out)
        got, want = state["cache"], bare_state["cache"]
    same(got, want)


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    cls, x = NNX[name]
    bare = cls(nnx.Rngs(0))
    rules = presets.flax(bare)
    model = pqt_transform(bare, rules)
    params = nnx.to_pure_dict(nnx.state(bare, nnx.Param))
    transform = param_transform(rules)
    bits = transform.init(params)
    w_hat = transform.sample(params, bits, make_key())
    same(jax.jit(transform.sample)(params, bits, make_key()), w_hat)
    wanted = cls(nnx.Rngs(0))
    nnx.update(wanted, w_hat)
    sampled = model(x, pqt_key=make_key())
    same(sampled, wanted(x))
    model, bare = pqt_transform(cls(nnx.Rngs(0)), rules), cls(nnx.Rngs(0))  # new statistics
    plain = bare(x)
    same(model(x), plain)
    assert differ(sampled, plain)

    @nnx.jit
    def gradient(model, key):
        return nnx.grad(lambda model: jnp.mean(model(x, pqt_key=key) ** 2))(model)

    grads = gradient(model, make_key())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    moved = [(leaf != 0).any() for leaf in jax.tree.leaves(nnx.filter_state(grads, BitParam))]
    assert moved and all(moved)
