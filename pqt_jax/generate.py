# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sample text from a trained model: `python -m pqt_jax.generate --workdir runs/quickstart`.

    --workdir RUN | --hf DIR | --packed DIR | --gguf FILE, prompt → text

The same options give the same text. `analysis.sampling` has the method.

Exit codes: `errors.EXIT_CODES`.
"""

import sys
from collections.abc import Sequence

from pqt_jax import console, errors
from pqt_jax.analysis import find_tokenizer, generation, load
from pqt_jax.training import named_formats

EXIT_CODES = errors.EXIT_CODES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program; None for `sys.argv[1:]`.

    Returns:
      One of `EXIT_CODES`.
    """
    return console.run(_run, arguments)


def _run(arguments: Sequence[str]) -> None:
    generation.generate(parser().parse_args(arguments))


def parser() -> console.Parser:
    """The options of the command."""
    result = console.Parser(
        prog="python -m pqt_jax.generate", description="Sample text from a model."
    )
    load.add_model_options(result)
    find_tokenizer.add_tokenizer_options(result)
    positive = console.number(int, lambda n: 0 < n < 2**31, "a whole number from 1 on")
    seed = console.number(int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 2^32 - 1")
    temperature = console.number(
        float, lambda t: 1e-3 <= t <= 1e3 or t == 0, "0, or from 0.001 to 1000"
    )
    probability = console.number(float, lambda p: 0 < p <= 1, "above 0 and at most 1")
    add, default_tokens = result.add_argument, generation.DEFAULT_TOKENS
    add(
        "--weights",
        choices=list(named_formats.LABELS),
        default="master",
        help="format to round the weights to; default: master, the weights as trained",
    )
    prompt = result.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt",
        metavar="TEXT",
        help="text to continue; default: the token that begins or ends a document, or a line break",
    )
    prompt.add_argument("--prompt-file", metavar="FILE", help="file whose text is continued")
    add(
        "--tokens",
        type=positive,
        metavar="N",
        help=f"most tokens to add to the prompt; default: {default_tokens}, or as many as fit",
    )
    add(
        "--temperature",
        type=temperature,
        default=0.8,
        metavar="T",
        help="temperature of the sampling, 0 for the most likely token each time; default: 0.8",
    )
    add(
        "--top-k",
        type=positive,
        metavar="K",
        help="sample from the K most likely tokens only; default: from all",
    )
    add(
        "--top-p",
        type=probability,
        default=1.0,
        metavar="P",
        help="sample only from the most likely tokens whose probabilities add up to P; default: 1",
    )
    add("--seed", type=seed, default=0, metavar="N", help="seed of the sampling; default: 0")
    add(
        "--samples",
        type=positive,
        default=1,
        metavar="N",
        help="number of texts to sample from the prompt; default: 1",
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
