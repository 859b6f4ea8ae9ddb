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

import numpy as np

from pqt_jax import errors
from pqt_jax.analysis import find_tokenizer, intervals, load, score
from pqt_jax.analysis.intervals import Interval
from pqt_jax.data import source, tokenizers, tokens
from pqt_jax.data.tokenizers import Tokenizer
from pqt_jax.errors import InputError
from pqt_jax.interchange import files
from pqt_jax.training.config import command_line
from pqt_jax.training.run import workdir
from pqt_jax.transform import bit_state

VALIDATION = "the run's validation text"
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
    parser = command_line.Parser(
        prog="python -m pqt_jax.evaluate", description="Evaluate trained weights."
    )
    load.add_arguments(parser)
    find_tokenizer.add_argument(parser)
    above = command_line.number(int, lambda n: 0 < n < 2**31, "a whole number from 1 on")
    add = parser.add_argument
    add("--data", metavar="GLOB", help="text files; default: the run's own validation text")
    add("--weights", metavar="A,B", default="all", help=f"all, or of {', '.join(load.LABELS)}")
    add("--length", type=above, metavar="T", help="of a window; default: as trained")
    add("--batch", type=above, default=16, metavar="N", help="windows at once; default: 16")
    add("--json", metavar="FILE", help="write the numbers there, too")
    given = parser.parse_args(arguments)
    given.weights = [name.strip() for name in given.weights.split(",")]
    strange = [name for name in given.weights if name not in load.LABELS]
    if strange and given.weights != ["all"]:
        name = next((name for name in strange if name != "all"), "all")
        known = ", ".join(load.LABELS)
        raise InputError(f"--weights: {name!r}; it must be all alone, or of {known}")
    if given.workdir is None and given.data is None:
        raise InputError("--data is missing; give text files, or the --workdir of a run")
    if given.json is not None and (not given.json or not Path(given.json).parent.is_dir()):
        raise InputError(f"--json={given.json}: its folder does not exist; give another file")
    if given.json is not None and Path(given.json).is_dir():
        raise InputError(f"--json={given.json} is a directory; give a file")
    return given


def _run(given: Namespace) -> int:
    model = load.from_arguments(given)
    tokenizer = find_tokenizer.of(given, model)
    default = model.model.max_length if model.run is None else model.run.data.length
    length = default if given.length is None else given.length
    if length > model.model.max_length:
        raise InputError(f"--length={length}; it must be at most {model.model.max_length}")
    learned = bit_state.are_learned(model.params)
    every = ["master"] if given.packed else list(load.LABELS)  # those are rounded already
    wanted = every if given.weights == ["all"] else given.weights
    if not learned and "mixed" in wanted:
        if given.weights != ["all"]:
            raise InputError("--weights: 'mixed', and no bits were learned; give other formats")
        wanted.remove("mixed")
    text, documents = _documents(given, model, tokenizer)
    try:
        windows = score.cut(documents, length)
    except ValueError as error:
        raise InputError(f"{text}: {error}; give more text") from None
    print(f"weights: {model.origin}")
    print(_describe(text, documents, windows, tokenizer, length), flush=True)

    nats_of = score.make_score(model.graph, windows, given.batch)
    print(f"\n{'weights':<20}" + "".join(f"{title:<30}" for title in TITLES.values()).rstrip())
    results, master = {}, None
    for name in dict.fromkeys(["master", *wanted]):  # the others are compared with it
        nats = nats_of(load.weights_in(model.run, model.params, model.rules, name))
        master = nats if master is None else master
        results[name] = score.measure(nats, master, windows)
        label = load.label(model.run and model.run.method, name)
        label = "as packed" if given.packed and name == "master" else label
        print(_row(label, results[name]), flush=True)
    if given.json is not None:
        about = {
            "origin": model.origin,
            "data": text,
            "documents": len(documents),
            "units": len(windows.scored),
            "units_are": "chunks" if windows.chunks else "documents",
            "scored": int(windows.scored.sum()),
            "bytes": round(windows.bytes.sum()),
            "tokenizer": tokenizer.name,
            "length": length,
            "confidence": intervals.CONFIDENCE,
        }
        content = {**about, "weights": _plain(results)}
        files.write(Path(given.json), json.dumps(content, indent=2) + "\n")
    return 0


def _documents(
    given: Namespace, model: load.Trained, tokenizer: Tokenizer
) -> tuple[str, list[score.Document]]:
    """(what the text is called, its documents)."""
    if given.data is not None:
        found = source.documents(given.data, "--data")
        return f"--data={given.data}", [_encoded(text, tokenizer, n) for n, text in found.items()]
    assert model.run is not None
    data = model.run.data
    if data.tokens:
        return VALIDATION, _prepared(given, data.tokens, model.model.vocab_size, tokenizer)
    found, fingerprint = source.held_out(data.files)
    name = f"config.data.files={data.files!r}"
    if not data.files:
        name += ", the standard library of this Python,"
    _check_fingerprint(given, fingerprint, name)
    return VALIDATION, [_encoded(text, tokenizer, name) for name, text in found.items()]


def _prepared(
    given: Namespace, folder: str, vocab_size: int, tokenizer: Tokenizer
) -> list[score.Document]:
    """The held-out documents of a folder of tokens, each without the token that ends it."""
    name = f"config.data.tokens={folder!r}"
    if not Path(folder).is_dir():
        raise InputError(f"--data is missing; {name} does not say where a document ends")
    found = tokens.load(folder, vocab_size)
    _check_fingerprint(given, found.fingerprint, name)
    every, end = found.validation[:], tokens.read_index(Path(folder)).end
    parts = np.split(every, np.flatnonzero(every == end) + 1)[:-1]
    texts = [(part[:-1], len(tokenizer.decode(part[:-1].tolist()))) for part in parts]
    return [_document(part, size, tokenizer) for part, size in texts]


def _check_fingerprint(given: Namespace, found: str, name: str) -> None:
    if found != workdir.read(Path(given.workdir))["data_fingerprint"]:
        raise InputError(f"{name} is not the text that the run was trained on; give --data")


def _encoded(text: bytes, tokenizer: Tokenizer, name: str) -> score.Document:
    try:
        found = np.asarray(tokenizer.encode(text), tokenizer.dtype)
    except UnicodeDecodeError as error:
        raise InputError(
            f"--data: {name} holds bytes that are no UTF-8 ({error.reason}); leave it out"
        ) from None
    return _document(found, len(text), tokenizer)


def _document(found: np.ndarray, size: int, tokenizer: Tokenizer) -> score.Document:
    """Tokens of a text of so many bytes."""
    first = tokenizers.first_bytes(tokenizer, found[:4].tolist()) if found.size else 0
    return score.Document(found, max(0, size - first))


def _describe(
    text: str,
    documents: Sequence[score.Document],
    windows: score.Windows,
    tokenizer: Tokenizer,
    length: int,
) -> str:
    scored, units = windows.scored.sum(), windows.scored
    files = "1 document" if len(documents) == 1 else f"{len(documents):,} documents"
    unit = "byte" if tokenizer.name == "bytes" else "token"
    total = sum(len(document.tokens) for document in documents)
    lines = [
        f"data: {text}: {files}, {total:,} {unit}s, {scored:,.0f} scored once each (the first "
        f"{unit} of a document has no context), in windows of {length}"
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
    errors.leave(main())
