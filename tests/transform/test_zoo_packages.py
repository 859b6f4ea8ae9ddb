# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models of packages on PyPI, wrapped as they are: `make zoo` installs them and runs this.

What a package brings beside Flax's own layers, einsums and embeddings, gets rules by hand before
those of the preset, and with `strict=True` nothing is left open.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

from pqt_jax import BitParam, Rule, param_transform, pqt_transform, presets
from pqt_jax.transform.rules import first_match
from support.zoo_checks import check_linen, check_nnx, same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.jax_version,
    pytest.mark.filterwarnings("ignore"),  # of the packages, which use what JAX deprecates
]

VOCABULARY = 40
TOKENS = np.arange(12).reshape(2, 6) % VOCABULARY
POSITIONS = np.tile(np.arange(6), (2, 1))
CAUSAL = np.tril(np.ones((2, 6, 6), bool))
REASON = "the extra `zoo` is not installed"


def find(name):
    return pytest.importorskip(name, reason=REASON)


def make_gemma():
    """Einsums without layers, `nn.jit` around the call, and runtime checks of its types."""
    gm = find("gemma.gm")
    config = find("gemma.gm.nn._config").TransformerConfig(
        num_embed=VOCABULARY,
        embed_dim=64,
        hidden_dim=96,
        num_heads=2,
        head_dim=32,
        num_kv_heads=1,
        final_logit_softcap=30.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=True,
        attention_types=[gm.nn.AttentionType.LOCAL_SLIDING, gm.nn.AttentionType.GLOBAL],
        sliding_window_size=4,
    )
    return gm.nn.Transformer(config=config, dtype=jnp.float32), (TOKENS,)


def make_nano_moe():
    """Experts, a router with an auxiliary loss."""
    config = find("nano_moe.config").NanoMoEConfig(
        vocab_size=VOCABULARY, n_layers=1, n_heads=2, d_model=64, d_ff=96, block_size=8
    )
    return find("nano_moe.model").NanoMoE(config), (TOKENS,)


def make_flaxdiff():
    """A diffusion transformer; projections to heads are `DenseGeneral`."""
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    text = np.random.default_rng(2).normal(size=(2, 4, 48)).astype(np.float32)
    model = find("flaxdiff.models.simple_dit").SimpleDiT(
        patch_size=4, emb_features=64, num_layers=1, num_heads=2
    )
    return model, (images, np.ones(2), text)


def make_tunix(family, cls):
    """Einsums and linear layers, blocks under remat, a mask and positions as arguments."""
    module = find(f"tunix.models.{family}.model")
    config = module.ModelConfig(
        num_layers=2,
        vocab_size=VOCABULARY,
        embed_dim=64,
        hidden_dim=96,
        num_heads=2,
        head_dim=32,
        num_kv_heads=1,
        rope_theta=10_000,
        norm_eps=1e-6,
        remat_config=module.RematConfig.BLOCK,
    )
    return lambda: getattr(module, cls)(config, rngs=nnx.Rngs(0)), (TOKENS, POSITIONS, None, CAUSAL)


def make_mamba2():
    """State spaces; a depthwise convolution whose kernel the model reads itself."""
    module = find("mamba2_jax")
    config = module.Mamba2Config.tiny()
    return lambda: module.Mamba2ForCausalLM(config, rngs=nnx.Rngs(0)), (TOKENS,)


def make_jraphx():
    """A graph network with batch statistics and recurrent cells over its layers."""
    module = find("jraphx.nn.models")
    nodes = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    edges = np.stack([np.arange(10), (np.arange(10) + 3) % 10])

    def make():
        options = {"heads": 2, "norm": "batch_norm", "jk": "lstm"}
        return module.GAT(16, 64, 2, 8, **options, rngs=nnx.Rngs(0))

    return make, (nodes, edges)


# How the model is made, and rules for what `presets.flax` leaves open.
EMBEDDING, HEAD = Rule("embedder/input_embedding", None), Rule("lm_head/w")
LINEN = {
    "gemma": (
        make_gemma,
        [
            EMBEDDING,
            Rule(".*/(q_einsum|kv_einsum)/w|.*/(gating_einsum|linear)"),
            Rule(".*/attn_vec_einsum/w", matrix_axes=(2, 1)),
        ],
    ),
    "nano-moe-jax": (make_nano_moe, [Rule("pos_emb", None)]),
    "flaxdiff": (make_flaxdiff, []),
}
NNX = {
    "tunix qwen3": (lambda: make_tunix("qwen3", "Qwen3"), [EMBEDDING, HEAD]),
    "tunix llama3": (lambda: make_tunix("llama3", "Llama3"), [EMBEDDING, HEAD]),
    "mamba2-jax": (make_mamba2, []),
    "jraphx": (make_jraphx, [Rule(".*/att_(src|dst)", None)]),
}


def make_rules(own, params):
    """Rules by hand, then those of the preset. `summary` of the preset alone lists the rest."""
    kinds = presets.classify(params)
    is_known = any(kind in presets.MATRIX_AXES for kind in kinds.values())  # nothing of gemma is
    preset = presets.flax(params) if is_known else []
    transform = param_transform(preset)
    _, *rest = transform.summary(params, transform.init(params)).split("no rule decides about")
    listed = [line.split()[0] for line in "".join(rest).splitlines()[2:]]
    assert listed == [path for path in kinds if first_match(own, path)]
    return [*own, *preset]


def fill(params):
    """Random numbers for the kernels that some packages start at zero, which hides what they do."""
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda w: (rng.normal(size=w.shape) / 8).astype(w.dtype) if w.ndim > 1 else w, params
    )


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    make, own = LINEN[name]
    bare, args = make()
    variables = bare.init(jax.random.key(0), *args)
    rules = make_rules(own, variables["params"])
    model = pqt_transform(bare, rules, strict=True)
    wrapped = model.init(jax.random.key(0), *args)
    same({k: v for k, v in wrapped.items() if k != "pqt"}, variables)
    variables = {**variables, "params": fill(variables["params"])}
    restored = serialization.from_bytes(wrapped, serialization.to_bytes({**wrapped, **variables}))
    same({k: v for k, v in restored.items() if k != "pqt"}, variables)

    def call(model, variables, **options):
        return model.apply(variables, *args, **options)

    moved, count = check_linen(bare, model, restored, rules, call)
    assert moved == count or (name == "nano-moe-jax" and moved)  # not every expert gets a token


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    build, own = NNX[name]
    build, args = build()

    def make():
        model = build()
        nnx.update(model, fill(nnx.state(model, nnx.Param)))
        return model

    rules = make_rules(own, make())
    model = pqt_transform(build(), rules, strict=True)
    checkpoint = nnx.state(make())
    nnx.update(model, checkpoint)
    state = nnx.state(model, nnx.Not(BitParam))
    assert jax.tree.structure(state) == jax.tree.structure(checkpoint)
    same(nnx.filter_state(state, nnx.Param), nnx.filter_state(checkpoint, nnx.Param))
    moved, count = check_nnx(
        make, rules, lambda model, **options: model(*args, **options), strict=True
    )
    assert moved == count > 0
