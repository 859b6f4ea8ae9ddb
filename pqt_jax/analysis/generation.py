# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Continue a text with a trained model: `pqt_jax.generate`."""

import os
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax.analysis import find_tokenizer, load, sampling
from pqt_jax.data.tokenizers import TextError, Tokenizer
from pqt_jax.errors import InputError, system_reason
from pqt_jax.training import named_formats

DEFAULT_TOKENS = 200  # fewer if the model has no room for as many


def generate(options: Namespace) -> None:
    """Read trained weights and print samples.

    Args:
      options: the options of `pqt_jax.generate`.

    Raises:
      InputError: if the prompt or the model cannot be used, before anything is compiled.
    """
    text = _read_prompt(options)
    model = load.load_model(options)
    tokenizer = find_tokenizer.find_tokenizer(options, model)
    is_masked = model.run_config is not None and model.run_config.data.boundaries == "mask"
    start, prompt = _tokenize(text, tokenizer, is_masked)
    find_tokenizer.check_tokens(prompt, tokenizer, model, "the prompt")
    steps = _count_steps(options, model.config.max_length, len(prompt), tokenizer)
    weights = named_formats.round_to_format(
        model.run_config, model.params, model.rules, options.weights
    )
    for i in range(options.samples):
        tokens = sampling.generate_tokens(
            model.graph,
            weights,
            jnp.asarray(prompt[None], jnp.int32),
            steps=steps,
            key=jax.random.fold_in(jax.random.key(options.seed), i),
            temperature=options.temperature,
            top_k=None if options.top_k is None else min(options.top_k, model.config.vocab_size),
            top_p=options.top_p,
            vocab_size=tokenizer.vocab_size,
        )
        if options.samples > 1:
            print(f"--- sample {i + 1} of {options.samples}")
        print(_decode(np.concatenate([prompt[start:], tokens[0]]), tokenizer), flush=True)


def _read_prompt(options: Namespace) -> bytes | None:
    if options.prompt_file is not None:
        try:
            prompt = Path(options.prompt_file).read_bytes()
        except (OSError, ValueError) as error:
            is_system_error = isinstance(error, OSError)
            reason = system_reason(error, "give a text file") if is_system_error else str(error)
            raise InputError(
                f"--prompt-file={options.prompt_file!r} cannot be read: {reason}"
            ) from None
        name = f"--prompt-file={options.prompt_file}"
    elif options.prompt is not None:
        prompt, name = os.fsencode(options.prompt), "--prompt="
    else:
        return None
    if not prompt:
        raise InputError(f"{name} is empty; give at least one byte")
    return prompt


def _tokenize(text: bytes | None, tokenizer: Tokenizer, is_masked: bool) -> tuple[int, np.ndarray]:
    """The prompt as tokens, after the number of those that are special.

    Documents begin with a BOS if the model's do. The default prompt is what comes before a
    document: that BOS, or else the end token of the previous document. A model that was trained
    with masked boundaries has never had to predict what follows that end token, so its default is
    a line break, as for bytes.
    """
    start = [] if tokenizer.begin is None else [tokenizer.begin]
    if text is None:
        is_known = tokenizer.end is not None and tokenizer.name != "bytes"
        if not start and is_known and not is_masked:
            start = [tokenizer.end]
        text = b"" if start else b"\n"
    try:
        tokens = tokenizer.encode(text) if text else []
    except TextError as error:
        raise InputError(f"tokenizer {tokenizer.name}: the prompt {error}; give another") from None
    return len(start), np.array([*start, *tokens], np.int32)


def _count_steps(
    options: Namespace, max_length: int, prompt_length: int, tokenizer: Tokenizer
) -> int:
    """The number of tokens to generate, after a check that the model has room for them."""
    room = max_length - prompt_length
    if room < 1:
        unit = "byte" if tokenizer.name == "bytes" else "token"
        name = "--prompt" if options.prompt_file is None else f"--prompt-file={options.prompt_file}"
        raise InputError(
            f"{name}: {prompt_length} {unit}s, and the model sees {max_length} in all; give a "
            "shorter one"
        )
    if options.tokens is None:
        return min(DEFAULT_TOKENS, room)
    if options.tokens > room:
        raise InputError(
            f"--tokens={options.tokens}; it must be at most {room}: the model sees {max_length} "
            f"tokens in all, and the prompt has {prompt_length}"
        )
    return options.tokens


def _decode(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text up to the end of its document."""
    ends = np.flatnonzero(tokens == tokenizer.end)
    tokens = tokens[: int(ends[0]) if len(ends) else None]
    return tokenizer.decode(tokens.tolist()).decode(errors="replace")
