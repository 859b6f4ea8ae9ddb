# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compare runs: `python -m pqt_jax.plot runs/quickstart runs/other`.

    runs, finished or still training → pictures, and one HTML page that holds them all

Runs that differ by their seed alone are compared with the baseline together, seed by seed.

The folder is written whole and replaces one that an earlier call wrote. Runs are read without
taking their lock.

Exit codes: `errors.EXIT_CODES`.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from pqt_jax import console, errors
from pqt_jax.analysis import comparison
from pqt_jax.errors import InputError

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
    comparison.compare_runs(parse(arguments))


def parser() -> console.Parser:
    """The options of the command."""
    result = console.Parser(
        prog="python -m pqt_jax.plot",
        description="Compare runs: pictures by tokens, and a page with them all, report.html.",
    )
    result.add_argument(
        "runs", metavar="RUN", nargs="+", help="workdir of a run, finished or still training"
    )
    about = (
        "folder to write; it may hold an older plot, which is replaced; default: RUN/plot for one "
        "run, plot for several"
    )
    result.add_argument("--out", metavar="DIR", help=about)
    about = (
        "the RUN whose losses are subtracted from those of the others, with its other seeds; "
        "default: the first with method bf16, or the first"
    )
    result.add_argument("--baseline", metavar="RUN", help=about)
    return result


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse the command line.

    Raises:
      InputError: if something in it cannot be used.
      SystemExit: after `--help`.
    """
    options = parser().parse_args(arguments)
    if options.out == "":
        raise InputError("--out= is empty; give a folder")
    return options


if __name__ == "__main__":
    sys.exit(main())
