# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Small NNX models of well-known architectures, in the idioms in which people write them."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

WIDTH, VOCABULARY = 64, 40


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.gate = nnx.Linear(WIDTH, 96, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 96, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(96, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + self.attention(self.norm(x), mask=mask)
        return x + self.down(nnx.silu(self.gate(x)) * self.up(x))


class Decoder(nnx.Module):
    """A decoder whose layers are made by vmap and run by scan, with tied embeddings."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return Block(rngs)

        self.layers = make(rngs)

    def __call__(self, tokens):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return nnx.remat(lambda block, x: block(x))(block, x)

        return self.embed.attend(run(self.embed(tokens), self.layers))


class UNet(nnx.Module):
    """Down, up, a skip connection, batch statistics and dropout."""

    def __init__(self, rngs):
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs)
        self.first, self.down = conv(3, 32), conv(32, 64, strides=2)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.up = nnx.ConvTranspose(64, 32, (2, 2), strides=2, rngs=rngs)
        self.last = conv(64, 3)

    def __call__(self, images):
        x = nnx.relu(self.first(images))
        y = nnx.relu(self.norm(self.down(x)))
        return self.last(jnp.concatenate([x, self.up(y)], axis=-1))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(WIDTH, 32, rngs=rngs))
        self.head = nnx.Linear(32, 5, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.rnn(self.embed(tokens)))


class Lora(nnx.Module):
    """A layer with an adapter around it."""

    def __init__(self, rngs):
        self.layer = nnx.LoRALinear(WIDTH, WIDTH, lora_rank=4, rngs=rngs)
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)

    def __call__(self, tokens):
        return self.layer(self.embed(tokens))


def tokens():
    return jax.random.randint(jax.random.key(3), (2, 6), 0, VOCABULARY)
