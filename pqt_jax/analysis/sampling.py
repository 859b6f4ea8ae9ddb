# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sample tokens from a model, one position at a time with a cache.

    prompt → cache → logits → temperature, top-k, top-p → token → cache → logits → …

The token at position t of row r is a function of the logits and of (key, r, t) alone: more rows or
more steps do not change the tokens that a smaller call returns.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def truncate_logits(
    logits: jax.Array, *, top_k: int | None = None, top_p: float = 1.0
) -> jax.Array:
    """Keep the most likely tokens, first top-k, then top-p; the other logits become −∞.

    Top-p renormalizes the tokens that top-k keeps, and keeps the smallest set of the most likely
    ones whose probabilities add up to p or more, at least one. Of equal logits the lower token
    comes first.

    Example:
      >>> truncate_logits(jnp.array([1.0, 3.0, 2.0]), top_k=2).tolist()
      [-inf, 3.0, 2.0]

    Args:
      logits: float32[..., vocabulary].
      top_k: the largest number of tokens to keep; None for all.
      top_p: the least probability to keep.

    Returns:
      float32 of the same shape.

    Raises:
      ValueError: if top_k is below 1, or top_p is not above 0.

    Source: Holtzman et al., arXiv 1904.09751 (2020), for top-p.
    """
    if top_k is not None and top_k < 1 or not top_p > 0:
        raise ValueError(f"top_k={top_k}, top_p={top_p}; at least 1, and above 0")
    if top_k is None and top_p >= 1:
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    keep = rank < (logits.shape[-1] if top_k is None else top_k)
    if top_p < 1:
        mass = jax.nn.softmax(jnp.where(keep, ordered, -jnp.inf), axis=-1)
        mass_of_likelier = jnp.cumsum(mass, axis=-1) - mass
        keep = keep & ((mass_of_likelier < top_p) | (rank == 0))
    ordered = jnp.where(keep, ordered, -jnp.inf)
    return jnp.take_along_axis(ordered, jnp.argsort(order, axis=-1), axis=-1)


def sample_token(
    logits: jax.Array,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> jax.Array:
    """Draw a token, `p(token) ∝ exp(logit / temperature)` among those that `truncate_logits` keeps.

    Args:
      logits: float32[vocabulary].
      key: consumed.
      temperature: at least 0; 0 returns the most likely token.
      top_k, top_p: as in `truncate_logits`, applied after the temperature.

    Returns:
      int32 scalar.

    Raises:
      ValueError: if the temperature is below 0, and as `truncate_logits`.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}; it must be 0 or above")
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = truncate_logits(logits / temperature, top_k=top_k, top_p=top_p)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def generate_tokens(
    graph: nnx.GraphDef,
    params: nnx.State,
    prompt: jax.Array,
    *,
    steps: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    vocab_size: int | None = None,
) -> jax.Array:
    """Continue a prompt.

    Args:
      graph: structure of a model of `pqt_jax.models`.
      params: its parameters.
      prompt: int[B, T], T at least 1.
      steps: number of tokens to add, at least 1.
      key: row r at position t uses `fold_in(fold_in(key, r), t)`.
      temperature, top_k, top_p: as in `sample_token`.
      vocab_size: only tokens below it are drawn, where the model's vocabulary is padded; None for
        all.

    Returns:
      int32[B, steps], the added tokens.

    Raises:
      ValueError: if prompt and steps together exceed the model's `max_length`, and as
        `sample_token`.
    """
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return _generate(
        graph, params, jnp.asarray(prompt), key, steps=steps, vocab_size=vocab_size, **options
    )


_STATIC = ("graph", "steps", "vocab_size", "temperature", "top_k", "top_p")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _generate(graph, params, prompt, key, *, steps, vocab_size, **options):
    model = nnx.merge(graph, params)
    rows, length = prompt.shape
    if not length or steps < 1:
        raise ValueError(f"a prompt of {length} tokens and steps={steps}; both must be 1 or more")
    if length + steps > model.config.max_length:
        raise ValueError(
            f"{length} tokens and {steps} more; the model has max_length={model.config.max_length}"
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

    def draw(logits, position):
        if vocab_size is not None and vocab_size < logits.shape[-1]:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -jnp.inf)
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        return jax.vmap(functools.partial(sample_token, **options))(logits, row_keys)

    logits, cache = model.decode(prompt, model.init_cache(rows, length + steps))
    first = draw(logits[:, -1], length)

    def decode_one(carry, _):
        token, cache = carry
        logits, cache = nnx.merge(graph, params).decode(token[:, None], cache)
        token = draw(logits[:, -1], cache.length)
        return (token, cache), token

    _, others = lax.scan(decode_one, (first, cache), length=steps - 1)
    return jnp.concatenate([first[:, None], others.T], axis=1)
