# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The losses in a model card: those that `evaluate` has measured, or else the trainer's.

FILE.json of `pqt_jax.evaluate --json`   with 95 % intervals, of a text that the user chose
summary.json of the run                  of its validation batches, without intervals
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqt_jax.analysis.intervals import Interval, format_interval
from pqt_jax.errors import MALFORMED, InputError
from pqt_jax.interchange import safetensors_io
from pqt_jax.training import final_evaluation, named_formats, summary
from pqt_jax.training.config import saved_config
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import workdir as run_folder

_MEASURES = ("loss", "difference")  # of each format, in the file of `evaluate`


def read_summary(workdir: Path, step: int) -> Mapping[str, Any] | None:
    """The summary of a run, if it is of the weights of this step; else None."""
    meta = run_folder.read_metadata(workdir)
    config = from_values(RunConfig, saved_config.completed(meta["config"]))
    found = summary.read(workdir, config)
    return found if found is not None and found.get("steps") == step else None


def read_evaluation(path: Path, origin: str) -> Mapping[str, Any]:
    """Read a file that `pqt_jax.evaluate --json` wrote.

    Args:
      path: the file.
      origin: where the exported weights are from, as `OpenModel.origin`.

    Raises:
      InputError: if it is no such file, or of other weights.
    """
    content = safetensors_io.read_json(path)
    try:
        measures = [row[key] for row in content["weights"].values() for key in _MEASURES]
        known = all(Interval(**measure) for measure in measures)
        known &= {"master"} <= content["weights"].keys() <= named_formats.LABELS.keys()
        known &= isinstance(content["data"], str) and isinstance(content["scored"], int)
        if not known:
            raise ValueError("weights, data or scored")
        found = content["origin"]
    except MALFORMED:
        raise InputError(
            f"--losses={path} is no file of pqt_jax.evaluate --json for --workdir or --hf; give one"
        ) from None
    if found != origin:
        raise InputError(
            f"--losses={path} is of {found}, and the weights are of {origin}; evaluate these"
        )
    return content


def describe_evaluation(content: Mapping[str, Any], method: str | None, these: str | None) -> str:
    """The section of a card, from what `evaluate` has measured.

    Args:
      content: from `read_evaluation`.
      method: the method of the run; None for a model that was trained elsewhere.
      these: the format of the exported weights, if they are rounded as `evaluate` does.
    """
    lines = ["| weights | nats per token | minus master |", "|---|--:|--:|"]
    for name, measured in content["weights"].items():
        label = named_formats.format_label(method, name) + " (these)" * (name == these)
        loss, difference = Interval(**measured["loss"]), Interval(**measured["difference"])
        cells = format_interval(loss, False), format_interval(difference, True)
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    text = content["data"].removeprefix("--data=")
    about = (
        f"By `pqt_jax.evaluate` on {text}: {content['scored']:,} tokens scored. In "
        "brackets, 95 % intervals. Weights that are not rounded were as trained."
    )
    return _section(lines, about, scored=these in content["weights"])


def describe_summary(content: Mapping[str, Any], these: str | None) -> str:
    """The section of a card, from what the trainer has measured.

    Args:
      content: from `read_summary`.
      these: as for `describe_evaluation`.
    """
    if content["master"] is None:
        return ""
    lines = ["| weights | nats per token | minus master |", "|---|--:|--:|"]
    for name in final_evaluation.rows_of(content):
        if content.get(name) is None:
            continue
        label = named_formats.format_label(content["method"], name) + " (these)" * (name == these)
        distance = round(content[name] - content["master"], 4) + 0.0  # no -0.0000
        lines.append(f"| {label} | {content[name]:.4f} | {distance:+.4f} |")
    about = "Means over the validation batches of the run, by the trainer at its end; no intervals "
    about += "are known. Weights that are not rounded were as trained."
    return _section(lines, about, scored=content.get(these or "") is not None)


def _section(lines: list[str], about: str, scored: bool) -> str:
    if not scored:
        about += " The weights of this folder were rounded in another way, and not scored."
    return "## Loss\n\n" + "\n".join(lines) + f"\n\n{about}"
