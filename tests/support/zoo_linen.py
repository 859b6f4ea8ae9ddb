# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Small Linen models of well-known architectures, in the idioms in which people write them."""

import jax
import jax.numpy as jnp
from flax import linen as nn

WIDTH, HEADS, VOCABULARY = 64, 2, 40


class Mlp(nn.Module):
    hidden: int = 96

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], name="down")(nn.gelu(nn.Dense(self.hidden, name="up")(x)))


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(y, y, mask=mask)
        return x + Mlp(name="mlp")(nn.LayerNorm()(x))


class DecoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x, z):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = EncoderBlock(name="self")(x, mask)
        return x + nn.MultiHeadDotProductAttention(HEADS, name="cross")(nn.LayerNorm()(x), z)


class EncoderDecoder(nn.Module):
    """A translation model in the style of T5: one embedding, `encode` and `decode`."""

    def setup(self):
        self.embed = nn.Embed(VOCABULARY, WIDTH)
        self.encoder = [EncoderBlock() for _ in range(2)]
        self.decoder = [DecoderBlock() for _ in range(2)]

    def encode(self, tokens):
        x = self.embed(tokens)
        for block in self.encoder:
            x = block(x)
        return x

    def decode(self, z, tokens):
        x = self.embed(tokens)
        for block in self.decoder:
            x = block(x, z)
        return self.embed.attend(x)

    def __call__(self, tokens):
        return self.decode(self.encode(tokens), tokens)


class MaskedLanguageModel(nn.Module):
    """BERT: positions, blocks under remat, a head tied to the embedding, a pooled output."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(VOCABULARY, WIDTH, name="word")
        x = embed(tokens) + nn.Embed(16, WIDTH, name="position")(jnp.arange(tokens.shape[1]))
        for i in range(2):
            x = nn.remat(EncoderBlock)(name=f"block_{i}")(x)
        logits = embed.attend(nn.Dense(WIDTH, name="transform")(x))
        return logits, nn.tanh(nn.Dense(WIDTH, name="pooler")(x[:, 0]))


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, (4, 4), strides=(4, 4), name="patches")(images)
        x = x.reshape(x.shape[0], -1, WIDTH)
        first = self.param("cls", nn.initializers.normal(0.02), (1, 1, WIDTH))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, WIDTH)), x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), (1, x.shape[1], WIDTH))
        return nn.Dense(10, name="head")(EncoderBlock()(x)[:, 0])


class ResNet(nn.Module):
    """Convolutions, one of them depthwise, with batch statistics."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(32, (3, 3), name="stem")(images)
        for i in range(2):
            y = nn.BatchNorm(use_running_average=False, name=f"norm_{i}")(x)
            y = nn.Conv(32, (3, 3), feature_group_count=32, name=f"depthwise_{i}")(nn.relu(y))
            x = x + nn.Conv(32, (1, 1), name=f"pointwise_{i}")(y)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Tagger(nn.Module):
    """Recurrent cells in both directions."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        x = nn.Bidirectional(nn.RNN(nn.GRUCell(32)), nn.RNN(nn.LSTMCell(32)))(x)
        return nn.Dense(5, name="head")(x)


class EinsumBlock(nn.Module):
    """Gemma: weights without layers, used by einsum."""

    @nn.compact
    def __call__(self, x, _):
        init = nn.initializers.lecun_normal()
        q = jnp.einsum("btd,ndh->btnh", x, self.param("q", init, (HEADS, WIDTH, 32)))
        k, v = jnp.einsum("btd,cdh->cbth", x, self.param("kv", init, (2, WIDTH, 32)))
        weights = nn.softmax(jnp.einsum("btnh,bsh->bnts", q, k) / 32**0.5)
        y = jnp.einsum("bnts,bsh->btnh", weights, v)
        x = x + jnp.einsum("btnh,nhd->btd", y, self.param("out", init, (HEADS, 32, WIDTH)))
        gate, up = jnp.einsum("btd,cdf->cbtf", x, self.param("gating", init, (2, WIDTH, 96)))
        return x + (nn.gelu(gate) * up) @ self.param("linear", init, (96, WIDTH)), None


class Gemma(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        table = self.param("table", nn.initializers.normal(1.0), (VOCABULARY, WIDTH))
        stack = nn.scan(
            nn.remat(EinsumBlock, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return stack(name="layers")(table[tokens], None)[0] @ table.T


class Experts(nn.Module):
    """A switch layer: experts under vmap, a router, soft weights."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        weights = nn.softmax(nn.Dense(4, name="router")(x))
        experts = nn.vmap(
            Mlp,
            in_axes=None,
            out_axes=-1,
            axis_size=4,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return jnp.einsum("btde,bte->btd", experts(name="experts")(x), weights)


class Cached(nn.Module):
    """A decoder with a cache of keys and values, called token by token."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        x = x + nn.MultiHeadDotProductAttention(HEADS, decode=True, name="attention")(x)
        return nn.Dense(VOCABULARY, name="head")(x)


def lora(call, args, kwargs, context):
    """An interceptor that adds a product of two thin matrices to every layer "up"."""
    out = call(*args, **kwargs)
    if context.module.name != "up" or context.method_name != "__call__":
        return out
    x = args[0]
    a = jax.random.normal(jax.random.key(1), (x.shape[-1], 4)) / 8
    b = jax.random.normal(jax.random.key(2), (4, out.shape[-1])) / 8
    return out + (x @ a @ b).astype(out.dtype)
