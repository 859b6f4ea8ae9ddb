# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Evaluate weights in many formats: `python -m pqt_jax.evaluate --workdir runs/quickstart`.

    --workdir RUN | --hf DIR → weights in each format → scored on every document → a row each

A document is a file. Every number is deterministic, and has a 95 % interval (`intervals`); what is
scored, and on what, is in `score`.

Exit codes: 0 done; 1 `--json` cannot be written; 2 the input cannot be used (one line on stderr,
nothing compiled); 130 and 141 as of `errors.run`.
"""

import json
import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pqt_jax import cli, errors, files, intervals, learned_bits, score, trained, workdir
from pqt_jax.data import source
from pqt_jax.data.pipeline import VOCAB_SIZE
from pqt_jax.errors import InputError
from pqt_jax.intervals import Interval

TITLES = {
    "loss": "nats/token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits/byte",
    "difference": "minus master, nats",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read trained weights and text, and print a row for each format.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = cli.Parser(prog="python -m pqt_jax.evaluate", description="Evaluate trained weights.")
    trained.add_arguments(parser)
    above = cli.number(int, lambda n: 0 < n < 2**31, "a whole number from 1 on")
    add = parser.add_argument
    add("--data", metavar="GLOB", help="text files; default: the run's own validation text")
    add("--weights", metavar="A,B", default="all", help=f"all, or of {', '.join(trained.LABELS)}")
    add("--length", type=above, metavar="T", help="of a window; default: as trained")
    add("--batch", type=above, default=16, metavar="N", help="windows at once; default: 16")
    add("--json", metavar="FILE", help="write the numbers there, too")
    given = parser.parse_args(arguments)
    given.weights = [name.strip() for name in given.weights.split(",")]
    for name in given.weights:
        if name not in trained.LABELS and given.weights != ["all"]:
            known = ", ".join(trained.LABELS)
            raise InputError(f"--weights: {name!r}; it must be all, or of {known}")
    if given.workdir is None and given.data is None:
        raise InputError("--data is missing; give text files, or the --workdir of a run")
    if given.json is not None and (not given.json or not Path(given.json).parent.is_dir()):
        raise InputError(f"--json={given.json}: its folder does not exist; give another file")
    if given.json is not None and Path(given.json).is_dir():
        raise InputError(f"--json={given.json} is a directory; give a file")
    return given


def _run(given: Namespace) -> int:
    model = trained.from_arguments(given)
    if model.run is None:  # a run of this trainer reads bytes, whatever its vocabulary
        trained.check_bytes(model, VOCAB_SIZE)
    default = model.model.max_length if model.run is None else model.run.data.length
    length = default if given.length is None else given.length
    if length > model.model.max_length:
        raise InputError(f"--length={length}; it must be at most {model.model.max_length}")
    learned = bool(learned_bits.collect_bits(model.params))
    every = ["master"] if given.packed else list(trained.LABELS)  # those are rounded already
    wanted = every if given.weights == ["all"] else given.weights
    if not learned and "mixed" in wanted:
        if given.weights != ["all"]:
            raise InputError("--weights: 'mixed', and no bits were learned; give other formats")
        wanted.remove("mixed")
    text, documents = _documents(given, model)
    try:
        windows = score.cut(list(documents.values()), length)
    except ValueError as error:
        raise InputError(f"{text}: {error}; give more text") from None
    print(f"weights: {model.origin}")
    print(_describe(text, documents, windows, length), flush=True)

    nats_of = score.make_score(model.graph, windows, given.batch)
    print(f"\n{'weights':<20}" + "".join(f"{title:<30}" for title in TITLES.values()).rstrip())
    results, master = {}, None
    for name in dict.fromkeys(["master", *wanted]):  # the others are compared with it
        plan = trained.plan_for(model.params, model.rules, name)
        nats = nats_of(trained.weights_as(model.params, plan))
        master = nats if master is None else master
        results[name] = score.measure(nats, master, windows.scored)
        label = "as packed" if given.packed and name == "master" else trained.LABELS[name]
        print(_row(label, results[name]), flush=True)
    if given.json is not None:
        about = {
            "origin": model.origin,
            "data": text,
            "documents": len(documents),
            "units": len(windows.scored),
            "units_are": "chunks" if windows.chunks else "documents",
            "scored": int(windows.scored.sum()),
            "length": length,
            "confidence": intervals.CONFIDENCE,
        }
        content = {**about, "weights": _plain(results)}
        files.write(Path(given.json), json.dumps(content, indent=2) + "\n")
    return 0


def _documents(given: Namespace, model: trained.Trained) -> tuple[str, dict[str, bytes]]:
    """(what the text is called, its documents)."""
    if given.data is not None:
        return f"--data={given.data}", source.documents(given.data, "--data")
    assert model.run is not None
    if model.run.data.tokens:
        raise InputError(
            f"--data is missing; the run was trained on config.data.tokens={model.run.data.tokens}"
        )
    documents, fingerprint = source.held_out(model.run.data.files)
    if fingerprint != workdir.read(Path(given.workdir))["data_fingerprint"]:
        name = f"config.data.files={model.run.data.files!r}"
        if not model.run.data.files:
            name += ", the standard library of this Python,"
        raise InputError(f"{name} is not the text that the run was trained on; give --data")
    return "the run's validation text", documents


def _describe(
    text: str, documents: Mapping[str, bytes], windows: score.Windows, length: int
) -> str:
    size, scored, units = sum(map(len, documents.values())), windows.scored.sum(), windows.scored
    files = "1 document" if len(documents) == 1 else f"{len(documents):,} documents"
    lines = [
        f"data: {text}: {files}, {size:,} bytes, {scored:,.0f} scored once each (the first byte of "
        f"a document has no context), in windows of {length}"
    ]
    if len(units) < 2:
        lines.append("no intervals: there is only one document, and only one window in it")
    elif windows.chunks:
        lines.append(
            f"95 % intervals over {len(units)} chunks of consecutive windows, since one file is "
            "alone; neighbours are alike, so these are rather too narrow"
        )
    else:
        lines.append(f"95 % intervals over {len(units):,} documents")
    return "\n".join(lines)


def _row(label: str, measured: Mapping[str, Interval]) -> str:
    cells = []
    for key in TITLES:
        value, low, high = measured[key]
        sign = "+" if key == "difference" else ""
        places = 4 if abs(value) < 100 else 1
        show = lambda x, sign=sign, n=places: f"{round(x, n) + 0.0:{sign}.{n}f}"  # noqa: E731
        inside = "" if math.isnan(low) else f" [{show(low)}, {show(high)}]"
        cells.append(f"{show(value) + inside:<30}")
    return f"{label:<20}" + "".join(cells).rstrip()


def _plain(value: Any) -> Any:
    """Intervals as dicts, and null for what is not finite."""
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {name: _plain(inside) for name, inside in value.items()}
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
