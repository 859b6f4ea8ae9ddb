# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Compare runs: `python -m pqt_jax.plot runs/quickstart runs/other`.

    runs, finished or still training → pictures, and one HTML page that holds them all

The folder is written whole and replaces one that an earlier call wrote. Runs are read without
taking their lock.

Exit codes: 0 done; 1 the folder cannot be written; 2 the input cannot be used (one line on stderr);
130 and 141 as in `console.run`.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

from pqt_jax import console
from pqt_jax.analysis import comparison
from pqt_jax.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program; None for that of this process.

    Returns:
      The exit code.
    """
    return console.run(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    comparison.compare_runs(parse(arguments))
    return 0


def parser() -> console.Parser:
    """The options of the command."""
    result = console.Parser(
        prog="python -m pqt_jax.plot",
        description="Compare runs: pictures by tokens, and a page with them all, report.html.",
    )
    result.add_argument(
        "runs", metavar="RUN", nargs="+", help="workdir of a run, finished or still training"
    )
    about = "default: RUN/plot of one run, and plot of several; replaces what plot has written"
    result.add_argument("--out", metavar="DIR", help=about)
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
    console.leave(main())
