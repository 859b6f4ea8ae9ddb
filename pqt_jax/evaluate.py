# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Evaluate weights in many formats: `python -m pqt_jax.evaluate --workdir runs/quickstart`.

    --workdir RUN | --hf DIR | --packed DIR | --gguf FILE
        → weights in each format → a row of losses for each

A text file of `--data` is a document, and other files hold many, as for `data.prepare`; so does the
validation text of a prepared folder.
Every number is deterministic and has a 95 % interval (`analysis.intervals`). `analysis.score`
says which tokens are scored.

Exit codes: `errors.EXIT_CODES`.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pqt_jax import console, errors
from pqt_jax.analysis import evaluation, find_tokenizer, load
from pqt_jax.data import documents
from pqt_jax.errors import InputError
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
    evaluation.evaluate(parse(arguments))


def parser() -> console.Parser:
    """The options of the command."""
    result = console.Parser(
        prog="python -m pqt_jax.evaluate", description="Evaluate trained weights."
    )
    load.add_model_options(result)
    find_tokenizer.add_tokenizer_options(result)
    positive = console.number(int, lambda n: 0 < n < 2**31, "a whole number from 1 on")
    add = result.add_argument
    add(
        "--data",
        metavar="GLOB",
        help="files of documents to evaluate on, as pqt_jax.data.prepare reads them, or a folder "
        "of prepared tokens, for its validation text; default: the run's own validation text",
    )
    add(
        "--field",
        default=documents.FIELD,
        help="field of JSON and column of CSV and Parquet files of --data that holds the text; "
        "default: text",
    )
    add(
        "--weights",
        metavar="A,B",
        default="all",
        help=f"formats to round the weights to: all, or some of {', '.join(named_formats.LABELS)}; "
        "default: all",
    )
    add("--length", type=positive, metavar="T", help="tokens in a window; default: as trained")
    add(
        "--batch",
        type=positive,
        default=16,
        metavar="N",
        help="windows to compute at once; default: 16",
    )
    add("--json", metavar="FILE", help="also write the numbers to this file")
    return result


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse the command line and check what can be checked without reading the model.

    Raises:
      InputError: if something in it cannot be used.
      SystemExit: after `--help`.
    """
    options = parser().parse_args(arguments)
    options.weights = [name.strip() for name in options.weights.split(",")]
    unknown = [name for name in options.weights if name not in named_formats.LABELS]
    if unknown and options.weights != ["all"]:
        name = next((name for name in unknown if name != "all"), "all")
        known = ", ".join(named_formats.LABELS)
        raise InputError(f"--weights: {name!r}; it must be all alone, or of {known}")
    if options.workdir is None and options.data is None:
        raise InputError("--data is missing; give text files, or the --workdir of a run")
    if options.json is not None and (not options.json or not Path(options.json).parent.is_dir()):
        raise InputError(f"--json={options.json}: its folder does not exist; give another file")
    if options.json is not None and Path(options.json).is_dir():
        raise InputError(f"--json={options.json} is a directory; give a file")
    return options


if __name__ == "__main__":
    sys.exit(main())
