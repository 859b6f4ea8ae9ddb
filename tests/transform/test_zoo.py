# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models of well-known architectures, as others write them, wrapped without a change."""

import jax
import numpy as np
import pytest
from flax import linen, nnx

from pqt_jax import Rule, param_transform, pqt_transform, presets
from support import zoo_linen, zoo_nnx
from support.zoo_checks import check_linen, check_nnx, differ, make_key, same

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
    moved, count = check_linen(*make_linen(name))
    assert moved == count or (name in ("encode of the class", "cache") and moved)


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

    def make():
        return cls(nnx.Rngs(0))

    moved, count = check_nnx(
        make, presets.flax(make()), lambda model, **options: model(x, **options)
    )
    assert moved == count > 0
