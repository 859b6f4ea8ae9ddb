# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Look at what was trained: `python -m pqt_jax.generate --workdir runs/quickstart`.

    prompt → cache → logits → temperature, top-k, top-p → token → cache → logits → …

The token at position t of row r is a function of the logits and of (key, r, t), nothing else: more
rows or more steps leave those that were there as they were.

Exit codes: 0 done; 2 the input cannot be used (one line on stderr, nothing compiled); 1, 130 and
141 as of `errors.run`.
"""

import functools
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from pqt_jax import errors
from pqt_jax.analysis import find_tokenizer, load
from pqt_jax.data.tokenizers import Tokenizer
from pqt_jax.errors import InputError, system_reason
from pqt_jax.training.config import command_line

TOKENS = 200  # of a sample, where the model has room for that many


def truncate(logits: jax.Array, *, top_k: int | None = None, top_p: float = 1.0) -> jax.Array:
    """Leave the likeliest tokens, first by number, then by mass; the others get −∞.

    Top-p keeps the smallest set of the likeliest tokens, of those that top-k has left, whose
    probabilities add up to p or more: at least one. Of equal logits the lower token comes first.

    Example:
      >>> truncate(jnp.array([1.0, 3.0, 2.0]), top_k=2).tolist()
      [-inf, 3.0, 2.0]

    Args:
      logits: float32[..., vocabulary].
      top_k: how many tokens are left at most; None for all.
      top_p: the mass that is left at least.

    Returns:
      float32 of the same shape.

    Raises:
      ValueError: for a top_k below 1, or a top_p that is not above 0.

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
        before = jnp.cumsum(mass, axis=-1) - mass
        keep = keep & ((before < top_p) | (rank == 0))
    ordered = jnp.where(keep, ordered, -jnp.inf)
    return jnp.take_along_axis(ordered, jnp.argsort(order, axis=-1), axis=-1)


def sample(
    logits: jax.Array,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> jax.Array:
    """Draw a token, `p(token) ∝ exp(logit / temperature)` among those that `truncate` leaves.

    Args:
      logits: float32[vocabulary].
      key: consumed.
      temperature: 0 for the likeliest token.
      top_k, top_p: as for `truncate`; the mass is that at this temperature.

    Returns:
      int32 scalar.

    Raises:
      ValueError: for a temperature below 0, and as `truncate`.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}; it must be 0 or above")
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = truncate(logits / temperature, top_k=top_k, top_p=top_p)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def generate(
    graph: nnx.GraphDef,
    params: nnx.State,
    prompt: jax.Array,
    *,
    steps: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> jax.Array:
    """Go on from a prompt.

    Args:
      graph: structure of a model that decodes, `pqt_jax.models`.
      params: its parameters.
      prompt: int[B, T], T at least 1; rows of one length.
      steps: how many tokens to add, at least 1.
      key: not consumed; that of row r at position t is `fold_in(fold_in(key, r), t)`.
      temperature, top_k, top_p: as for `sample`.

    Returns:
      int32[B, steps], the added tokens.

    Raises:
      ValueError: if prompt and steps together are longer than the model's `max_length`, and as
        `sample`.
    """
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return _generate(graph, params, jnp.asarray(prompt), key, steps=steps, **options)


@functools.partial(jax.jit, static_argnames=("graph", "steps", "temperature", "top_k", "top_p"))
def _generate(graph, params, prompt, key, *, steps, **options):
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
        at = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        return jax.vmap(functools.partial(sample, **options))(logits, at)

    logits, cache = model.decode(prompt, model.init_cache(rows, length + steps))
    first = draw(logits[:, -1], length)

    def body(carry, _):
        token, cache = carry
        logits, cache = nnx.merge(graph, params).decode(token[:, None], cache)
        token = draw(logits[:, -1], cache.length)
        return (token, cache), token

    _, others = lax.scan(body, (first, cache), length=steps - 1)
    return jnp.concatenate([first[:, None], others.T], axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read trained weights and print samples.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = command_line.Parser(
        prog="python -m pqt_jax.generate", description="Sample text from a model."
    )
    load.add_arguments(parser)
    find_tokenizer.add_argument(parser)
    above = command_line.number(int, lambda n: 0 < n < 2**31, "a whole number from 1 on")
    seeds = command_line.number(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 2^32 - 1")
    heat = command_line.number(
        float, lambda t: 1e-3 <= t <= 1e3 or t == 0, "0, or from 0.001 to 1000"
    )
    mass = command_line.number(float, lambda p: 0 < p <= 1, "above 0 and at most 1")
    add = parser.add_argument
    add("--weights", choices=list(load.LABELS), default="master", help="default: master")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT", help="default: a line break")
    text.add_argument("--prompt-file", metavar="FILE", help="the prompt is all that is in it")
    add("--tokens", type=above, metavar="N", help=f"default: {TOKENS}, or as many as fit")
    add("--temperature", type=heat, default=0.8, metavar="T", help="0: greedy; default: 0.8")
    add("--top-k", type=above, metavar="K", help="only the K likeliest tokens")
    add("--top-p", type=mass, default=1.0, metavar="P", help="only the likeliest, of mass P")
    add("--seed", type=seeds, default=0, metavar="N", help="default: 0")
    add("--samples", type=above, default=1, metavar="N", help="default: 1")
    return parser.parse_args(arguments)


def _run(given: Namespace) -> int:
    text = _prompt(given)
    model = load.from_arguments(given)
    tokenizer = find_tokenizer.of(given, model)
    masked = model.run is not None and model.run.data.boundaries == "mask"
    prompt = _encoded(text, tokenizer, masked)
    room = model.model.max_length - len(prompt)
    if room < 1:
        unit = "byte" if tokenizer.name == "bytes" else "token"
        name = "--prompt" if given.prompt_file is None else f"--prompt-file={given.prompt_file}"
        raise InputError(
            f"{name}: {len(prompt)} {unit}s, and the model sees {model.model.max_length} in all; "
            "give a shorter one"
        )
    steps = min(TOKENS, room) if given.tokens is None else given.tokens
    if steps > room:
        raise InputError(
            f"--tokens={steps}; it must be at most {room}: the model sees "
            f"{model.model.max_length} tokens in all, and the prompt has {len(prompt)}"
        )
    weights = load.weights_in(model.run, model.params, model.rules, given.weights)
    tokens = jnp.asarray(prompt[None], jnp.int32)
    for i in range(given.samples):
        added = generate(
            model.graph,
            weights,
            tokens,
            steps=steps,
            key=jax.random.fold_in(jax.random.key(given.seed), i),
            temperature=given.temperature,
            top_k=None if given.top_k is None else min(given.top_k, model.model.vocab_size),
            top_p=given.top_p,
        )
        if given.samples > 1:
            print(f"--- sample {i + 1} of {given.samples}")
        print(_decoded(np.concatenate([prompt, added[0]]), tokenizer), flush=True)
    return 0


def _encoded(text: bytes | None, tokenizer: Tokenizer, masked: bool) -> np.ndarray:
    """The prompt; without one, what stands before a document: its end token, or a line break.

    One that was trained with masked boundaries has never had to predict what is behind that token.
    """
    if text is None and not masked and tokenizer.end is not None and tokenizer.name != "bytes":
        return np.array([tokenizer.end], np.int32)
    try:
        return np.asarray(tokenizer.encode(b"\n" if text is None else text), np.int32)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the prompt holds bytes that are no UTF-8 ({error.reason}), which tokenizer "
            f"{tokenizer.name} cannot read; give text"
        ) from None


def _decoded(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text up to where its document ends."""
    if tokenizer.end is not None:
        begin = int(tokens[0] == tokenizer.end)
        ends = np.flatnonzero(tokens[begin:] == tokenizer.end)
        tokens = tokens[begin : begin + int(ends[0]) if len(ends) else None]
    return tokenizer.decode(tokens.tolist()).decode(errors="replace")


def _prompt(given: Namespace) -> bytes | None:
    if given.prompt_file is not None:
        try:
            prompt = Path(given.prompt_file).read_bytes()
        except (OSError, ValueError) as error:
            why = str(error)
            if isinstance(error, OSError):
                why = system_reason(error, "give a text file")
            raise InputError(f"--prompt-file={given.prompt_file!r} cannot be read: {why}") from None
        name = f"--prompt-file={given.prompt_file}"
    elif given.prompt is not None:
        prompt, name = os.fsencode(given.prompt), "--prompt="
    else:
        return None
    if not prompt:
        raise InputError(f"{name} is empty; give at least one byte")
    return prompt


if __name__ == "__main__":
    errors.leave(main())
