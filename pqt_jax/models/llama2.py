# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Llama 2: RMSNorm before each part, SwiGLU, rotary positions, an untied head, no biases.

Models that differ from it by a few options are configured by these: Llama 3 (`rope_scaling`),
Mistral without a sliding window (`head_dim`), Qwen 2 (`attention_bias`) and Qwen 3 (`qk_norm`).

    x = embed(tokens)
    x = x + attn(attn_norm(x));  x = x + mlp(mlp_norm(x))        num_layers times
    logits = head(norm(x))

Initial values are those of torchtitan's Llama, in which deeper layers write less to the residual.

Source: Touvron et al., "Llama 2", arXiv 2307.09288 (2023).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from typing import ClassVar, Literal, get_args

import jax
from flax import nnx

from pqt_jax.models import decoder, layers
from pqt_jax.models.attention import Attend, resolved
from pqt_jax.models.cache import Cache
from pqt_jax.models.decoder import LanguageModel
from pqt_jax.models.rotary import Rotary, Scaling
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

AttentionBias = Literal["none", "qkv", "all"]


@dataclasses.dataclass(frozen=True)
class Llama2Config:
    """Shape and arithmetic of a Llama 2 or 3, a Mistral or a Qwen 2 or 3."""

    name: ClassVar[str] = "llama2"

    vocab_size: int = field(metadata=VOCAB_SIZE)
    d_model: int = field(metadata=D_MODEL)
    num_layers: int = field(metadata=NUM_LAYERS)
    num_heads: int = field(metadata=NUM_HEADS)
    d_ff: int = field(
        metadata=about("Width of the MLP, of each of SwiGLU's two products.", minimum=1)
    )
    num_kv_heads: int = setting(
        0,
        "Heads of keys and values, each read by num_heads / num_kv_heads query heads; 0 means "
        "num_heads.",
        minimum=0,
    )
    head_dim: int = setting(0, "Width of a head; 0 means d_model / num_heads.", minimum=0)
    attention_bias: AttentionBias = setting(
        "none",
        "Linear layers of the attention that have biases: qkv leaves out the output.",
        choices=get_args(AttentionBias),
    )
    qk_norm: bool = setting(False, "Whether RMSNorm normalizes queries and keys, head by head.")
    max_length: int = setting(2048, "Longest sequence; no parameter depends on it.", minimum=1)
    norm_eps: float = setting(1e-5, "Added to the mean square in RMSNorm.", above=0)
    rope_theta: float = setting(1e4, "Base of the rotary wavelengths.", above=0)
    rope_scaling: Scaling = setting(
        Rotary.scaling,
        "Scaling of the rotary frequencies: linear divides all of them by rope_factor, llama3 the "
        "low ones.",
        choices=get_args(Scaling),
    )
    rope_factor: float = setting(Rotary.factor, "Divisor of the frequencies.", above=0)
    rope_low_freq_factor: float = setting(
        Rotary.low_freq_factor,
        "Turns in rope_original_length tokens up to which llama3 divides a frequency.",
        minimum=0,
    )
    rope_high_freq_factor: float = setting(
        Rotary.high_freq_factor,
        "Turns from which on llama3 keeps a frequency; between the two it goes over.",
        above=0,
    )
    rope_original_length: int = setting(
        Rotary.original_length, "Longest sequence before llama3 was applied.", minimum=1
    )
    tie_embeddings: bool = setting(False, "Whether the head uses the embedding's weights.")
    dtype: str = setting("bfloat16", "Type of activations and products.", choices=DTYPES)
    param_dtype: str = setting(
        "float32", "Type of the parameters, and of the optimizer's moments.", choices=DTYPES
    )
    attention: Attend = setting("auto", ATTENTION, choices=get_args(Attend))
    remat: bool = setting(False, "Recompute blocks in the backward pass, which saves memory.")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Components of a query, key or value of one head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def rotary(self) -> Rotary:
        """How positions turn queries and keys."""
        return Rotary(
            self.rope_theta,
            self.rope_scaling,
            self.rope_factor,
            self.rope_low_freq_factor,
            self.rope_high_freq_factor,
            self.rope_original_length,
        )


LLAMA2_134M = Llama2Config(vocab_size=32000, d_model=768, num_layers=12, num_heads=12, d_ff=2048)
LLAMA2_1B = Llama2Config(
    vocab_size=32000, d_model=2048, num_layers=18, num_heads=16, d_ff=5632, remat=True
)


class MLP(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) · up(x))`."""

    def __init__(self, config: Llama2Config, depth_init: layers.Initializer, *, rngs: nnx.Rngs):
        d, f, init = config.d_model, config.d_ff, layers.normal(0.02)
        self.gate = layers.linear(d, f, init, config, rngs=rngs)
        self.up = layers.linear(d, f, depth_init, config, rngs=rngs)
        self.down = layers.linear(f, d, depth_init, config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, T, d_model] → the same shape."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """One layer: attention and SwiGLU, each on the normalized stream and added to it."""

    def __init__(self, config: Llama2Config, index: jax.Array | int, *, rngs: nnx.Rngs):
        depth_init = layers.normal(0.02 / (2 * (index + 1)) ** 0.5)
        self.attn_norm = layers.rms_norm(config.d_model, config, rngs=rngs)
        self.attn = layers.Attention(
            config,
            layers.normal(0.02),
            depth_init,
            bias=config.attention_bias != "none",
            out_bias=config.attention_bias == "all",
            rotary=config.rotary,
            qk_norm=config.qk_norm,
            rngs=rngs,
        )
        self.mlp_norm = layers.rms_norm(config.d_model, config, rngs=rngs)
        self.mlp = MLP(config, depth_init, rngs=rngs)

    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """[batch, T, d_model] → the same shape; segments as for `layers.Attention`."""
        x = x + self.attn(self.attn_norm(x), segments)
        return x + self.mlp(self.mlp_norm(x))

    def decode(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Apply the block to tokens that follow those in a cache; see `layers.Attention.decode`."""
        y, cache = self.attn.decode(self.attn_norm(x), cache)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache


class Llama2(LanguageModel):
    """The language model.

    Example:
      >>> config = Llama2Config(vocab_size=256, d_model=64, num_layers=2, num_heads=4, d_ff=128)
      >>> model = Llama2(config, [Rule("h/.*/kernel")], rngs=nnx.Rngs(0))
      >>> tokens = jax.numpy.zeros((1, 8), int)
      >>> model(tokens, pqt_key=jax.random.key(1)).shape
      (1, 8, 256)

    Args:
      config: shape and arithmetic.
      rules: which parameters are sampled; an empty sequence makes a bare model.
      rngs: randomness of the initial values.
    """

    def __init__(self, config: Llama2Config, rules: Sequence[Rule] = (), *, rngs: nnx.Rngs):
        layers.check_heads(config, even=True)
        if config.num_kv_heads and config.num_heads % config.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={config.num_kv_heads} must divide num_heads={config.num_heads}"
            )
        d, vocab = config.d_model, config.vocab_size
        embed = layers.Embed(vocab, d, layers.normal(1.0), config, rngs=rngs)
        self.embed = decoder.wrap_part(embed, rules, "embed")
        block_config = resolved(config)

        def make_block(index, rngs):
            return Block(block_config, index, rngs=rngs)

        self.h = decoder.stack_blocks(make_block, config.num_layers, rules, rngs)
        self.norm = layers.rms_norm(d, config, rngs=rngs)
        if not config.tie_embeddings:
            head = layers.Head(d, vocab, layers.truncated_normal(d**-0.5, 3.0), config, rngs=rngs)
            self.head = decoder.wrap_part(head, rules, "head")
        self.config = config
        decoder.check_rules(self, rules)
