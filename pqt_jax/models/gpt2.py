# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""GPT-2: LayerNorm before each part, GELU, learned positions, a head tied to the embedding.

    x = embed(tokens) + pos(0 … T − 1)                           again from 0 in each segment
    x = x + attn(attn_norm(x));  x = x + mlp(mlp_norm(x))        num_layers times
    logits = norm(x) · embeddingᵀ

Initial values are N(0, 0.02²), and 0.02 / √(2 · num_layers) where a part writes to the residual.
With `bias=False`, as nanoGPT trains it, linear layers and LayerNorm have no biases.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from typing import ClassVar, get_args

import jax
from flax import nnx

from pqt_jax.models import decoder, layers
from pqt_jax.models.attention import Attend, resolved
from pqt_jax.models.cache import Cache
from pqt_jax.models.decoder import LanguageModel
from pqt_jax.models.setting import (
    ATTENTION,
    D_MODEL,
    DTYPES,
    NUM_HEADS,
    NUM_LAYERS,
    VOCAB_SIZE,
    about,
    setting,
)
from pqt_jax.transform.rules import Rule


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Shape and arithmetic of a GPT-2."""

    name: ClassVar[str] = "gpt2"

    vocab_size: int = field(metadata=VOCAB_SIZE)
    d_model: int = field(metadata=D_MODEL)
    num_layers: int = field(metadata=NUM_LAYERS)
    num_heads: int = field(metadata=NUM_HEADS)
    d_ff: int = field(metadata=about("Width of the MLP.", minimum=1))
    max_length: int = setting(
        1024, "Longest sequence, which is the size of the table of positions.", minimum=1
    )
    norm_eps: float = setting(1e-5, "Added to the variance in LayerNorm.", above=0)
    bias: bool = setting(False, "Whether linear layers and LayerNorm have biases.")
    tie_embeddings: bool = setting(True, "Whether the head uses the embedding's weights.")
    dtype: str = setting("bfloat16", "Type of activations and products.", choices=DTYPES)
    param_dtype: str = setting(
        "float32", "Type of the parameters, and of the optimizer's moments.", choices=DTYPES
    )
    attention: Attend = setting("auto", ATTENTION, choices=get_args(Attend))
    remat: bool = setting(False, "Recompute blocks in the backward pass, which saves memory.")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads

    @property
    def head_width(self) -> int:
        """Components of a query, key or value of one head."""
        return self.d_model // self.num_heads


GPT2_124M = GPT2Config(vocab_size=50304, d_model=768, num_layers=12, num_heads=12, d_ff=3072)


class MLP(nnx.Module):
    """`down(gelu(up(x)))`, GELU by its tanh approximation as in the original."""

    def __init__(self, config: GPT2Config, out_init: layers.Initializer, *, rngs: nnx.Rngs):
        d, f, bias = config.d_model, config.d_ff, config.bias
        self.up = layers.linear(d, f, layers.normal(0.02), config, bias=bias, rngs=rngs)
        self.down = layers.linear(f, d, out_init, config, bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, T, d_model] → the same shape."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Block(nnx.Module):
    """One layer: attention and MLP, each on the normalized stream and added to it."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        out_init = layers.normal(0.02 / (2 * config.num_layers) ** 0.5)
        self.attn_norm = norm(config, rngs)
        self.attn = layers.Attention(
            config,
            layers.normal(0.02),
            out_init,
            bias=config.bias,
            out_bias=config.bias,
            rngs=rngs,
        )
        self.mlp_norm = norm(config, rngs)
        self.mlp = MLP(config, out_init, rngs=rngs)

    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """[batch, T, d_model] → the same shape; segments as for `layers.Attention`."""
        x = x + self.attn(self.attn_norm(x), segments)
        return x + self.mlp(self.mlp_norm(x))

    def decode(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Apply the block to tokens that follow those in a cache; see `layers.Attention.decode`."""
        y, cache = self.attn.decode(self.attn_norm(x), cache)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


def norm(config: GPT2Config, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm, computed in float32."""
    return nnx.LayerNorm(
        config.d_model,
        epsilon=config.norm_eps,
        use_bias=config.bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )


class GPT2(LanguageModel):
    """The language model.

    Example:
      >>> config = GPT2Config(vocab_size=256, d_model=64, num_layers=2, num_heads=4, d_ff=256)
      >>> model = GPT2(config, [Rule("h/.*/kernel")], rngs=nnx.Rngs(0))
      >>> tokens = jax.numpy.zeros((1, 8), int)
      >>> model(tokens, pqt_key=jax.random.key(1)).shape
      (1, 8, 256)

    Args:
      config: shape and arithmetic.
      rules: which parameters are sampled; an empty sequence makes a bare model.
      rngs: randomness of the initial values.
    """

    def __init__(self, config: GPT2Config, rules: Sequence[Rule] = (), *, rngs: nnx.Rngs):
        layers.check_heads(config, even=False)
        d, vocab, init = config.d_model, config.vocab_size, layers.normal(0.02)
        embed = layers.Embed(vocab, d, init, config, rngs=rngs)
        self.embed = decoder.wrap_part(embed, rules, "embed")
        pos = layers.Embed(config.max_length, d, init, config, rngs=rngs)
        self.pos = decoder.wrap_part(pos, rules, "pos")
        block_config = resolved(config)

        def make_block(_, rngs):
            return Block(block_config, rngs=rngs)

        self.h = decoder.stack_blocks(make_block, config.num_layers, rules, rngs)
        self.norm = norm(config, rngs)
        if not config.tie_embeddings:
            head = layers.Head(d, vocab, init, config, rngs=rngs)
            self.head = decoder.wrap_part(head, rules, "head")
        self.config = config
        decoder.check_rules(self, rules)

    def embedded(
        self, tokens: jax.Array, at: jax.Array, *, pqt_key: jax.Array | None = None
    ) -> jax.Array:
        """The embeddings of the tokens plus those of their positions, [batch, T, d_model]."""
        x = decoder.call_part(self.embed, tokens, key=pqt_key)
        return x + decoder.call_part(self.pos, at, key=pqt_key)
