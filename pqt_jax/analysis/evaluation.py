# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Score trained weights in several formats on the same documents: `pqt_jax.evaluate`.

weights in each format → loss of every document → a row per format, with 95 % intervals
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqt_jax.analysis import evaluation_text, find_tokenizer, intervals, load, score
from pqt_jax.analysis.intervals import Interval, format_interval
from pqt_jax.analysis.load import TrainedModel
from pqt_jax.console import format_row
from pqt_jax.errors import InputError
from pqt_jax.interchange import files
from pqt_jax.training import named_formats
from pqt_jax.transform import bit_state

COLUMNS = {
    "loss": "nats/token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits/byte",
    "difference": "minus master, nats",
}
_WIDTHS = [20, *(30 for _ in COLUMNS)]


def evaluate(options: Namespace) -> None:
    """Score the weights in each format, print a row for each, and write the `--json` file.

    Args:
      options: the options of `pqt_jax.evaluate`.

    Raises:
      InputError: if the model or the text cannot be used, before anything is compiled.
      OutputError: if the `--json` file cannot be written.
    """
    model = load.load_model(options)
    tokenizer = find_tokenizer.find_tokenizer(options, model)
    length = _window_length(options, model)
    formats = _formats(options, model)
    text, documents = evaluation_text.read_documents(options, model, tokenizer)
    try:
        windows = score.make_windows(documents, length)
    except ValueError as error:
        raise InputError(f"{text}: {error}; give more text") from None
    unit = "byte" if tokenizer.name == "bytes" else "token"
    print(f"weights: {model.origin}")
    about = evaluation_text.describe_text(
        text, documents, windows, unit=unit, length=length, begin=tokenizer.begin
    )
    print(about, flush=True)
    results = _score_formats(options, model, windows, formats)
    if options.json is not None:
        content = {
            "origin": model.origin,
            "data": text,
            "documents": len(documents),
            "units": len(windows.targets),
            "units_are": "chunks" if windows.units_are_chunks else "documents",
            "scored": int(windows.targets.sum()),
            "bytes": round(windows.bytes.sum()),
            "tokenizer": tokenizer.name,
            "begin": tokenizer.begin,
            "length": length,
            "confidence": intervals.CONFIDENCE,
            "weights": _as_json(results),
        }
        files.write(Path(options.json), json.dumps(content, indent=2) + "\n")


def _window_length(options: Namespace, model: TrainedModel) -> int:
    if options.length is None:
        config = model.run_config
        return model.config.max_length if config is None else config.data.length
    if options.length > model.config.max_length:
        raise InputError(
            f"--length={options.length}; it must be at most {model.config.max_length}, the model's "
            "config.model.max_length"
        )
    return options.length


def _formats(options: Namespace, model: TrainedModel) -> list[str]:
    """The formats to score; the master weights come first, since the others are compared to them.

    Weights that were rounded when they were stored have one format, so "all" stands for that.
    """
    all_formats = ["master"] if model.rounded else list(named_formats.LABELS)
    formats = all_formats if options.weights == ["all"] else options.weights
    if "mixed" in formats and not bit_state.has_bits(model.params):
        if options.weights != ["all"]:
            raise InputError("--weights: 'mixed', and no bits were learned; give other formats")
        formats.remove("mixed")
    return list(dict.fromkeys(["master", *formats]))


def _score_formats(
    options: Namespace, model: TrainedModel, windows: score.Windows, formats: list[str]
) -> dict[str, dict[str, Interval]]:
    """Format → its measures; prints each row as soon as it is known."""
    nats_of = score.make_scorer(model.graph, windows, options.batch)
    print("\n" + format_row(["weights", *COLUMNS.values()], _WIDTHS))
    results, master = {}, None
    for name in formats:
        nats = nats_of(
            named_formats.round_to_format(model.run_config, model.params, model.rules, name)
        )
        master = nats if master is None else master
        results[name] = score.measure_losses(nats, master, windows)
        label = named_formats.format_label(model.run_config and model.run_config.method, name)
        if name == "master" and model.rounded:
            label = model.rounded
        cells = [format_interval(results[name][key], key == "difference") for key in COLUMNS]
        print(format_row([label, *cells], _WIDTHS), flush=True)
    return results


def _as_json(results: Mapping[str, Mapping[str, Interval]]) -> Any:
    return files.replace_nonfinite(
        {
            name: {measure: interval._asdict() for measure, interval in measures.items()}
            for name, measures in results.items()
        }
    )
