# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Round trained weights and write them to a folder: `pqt_jax.export`.

trained weights → plan → packed codes and a report of their errors, or a Hugging Face folder
"""

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from pqt_jax.analysis import load
from pqt_jax.analysis.load import TrainedModel
from pqt_jax.errors import InputError
from pqt_jax.interchange import folders, huggingface
from pqt_jax.interchange.png import save_png
from pqt_jax.models import ModelConfig
from pqt_jax.quantization import packed_file, report, report_figure, sizes
from pqt_jax.quantization.quantize import Plan
from pqt_jax.training import methods, named_formats
from pqt_jax.training.run import workdir
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves


def export(options: Namespace) -> None:
    """Write the folder, then print the report and the folder's name.

    Args:
      options: the options of `pqt_jax.export`.

    Raises:
      InputError: if the weights cannot be read or do not fit the options, or the folder must not
        be written to.
      OutputError: if the folder cannot be written.
    """
    workdir.check_not_in_checkpoints(
        folders.check_destination(options.out, options.overwrite, "--out="), options.out
    )
    model = load.load_model(options)
    plan = _make_plan(options, model)
    text = ""
    if options.layout == "packed":
        text = write_packed(Path(options.out), model, plan, options.format, options.overwrite)
    else:
        rounded = named_formats.round_by_plan(model.params, plan)
        needs_float32 = any(assigned.spec.storage == np.float32 for assigned in plan.values())
        dtype: Any = options.dtype or ("float32" if needs_float32 else "bfloat16")
        huggingface.save(
            options.out, model.config, rounded, dtype=dtype, overwrite=options.overwrite
        )
    print(f"weights: {model.origin}\n{text}written: {options.out}")


def _make_plan(options: Namespace, model: TrainedModel) -> Plan:
    if options.format == "mixed":
        refusal = model.run_config and methods.get_method(model.run_config).export_refusal
        if refusal:
            raise InputError(
                f"--format=mixed: {refusal}; give another format, or --weights=mixed to "
                "pqt_jax.evaluate"
            )
        if not bit_state.collect_bits(model.params):
            raise InputError("--format=mixed: no bits were learned; give another format")
    names = ("block", "scale", "granularity", "share")
    plan_options = {
        name: getattr(options, name) for name in names if getattr(options, name) is not None
    }
    return named_formats.make_plan(model.params, model.rules, options.format, **plan_options)


def write_packed(
    out: Path, model: TrainedModel, plan: Plan, name: str, overwrite: bool = False
) -> str:
    """Write packed weights and the report of their errors.

    Args:
      out: the folder, which is written whole or not at all.
      model: the trained model.
      plan: the plan for its weights.
      name: the format's name, for the title of the picture.
      overwrite: whether to replace what is in the folder.

    Returns:
      The content of report.txt.

    Raises:
      InputError: if the folder is not empty and `overwrite` is False.
      OutputError: if it cannot be written.
    """
    weights = bit_state.weights(model.params)
    with folders.atomic_folder(out, overwrite) as folder:
        packed_file.write(folder / packed_file.FILE, weights, plan, describe_model(model.config))
        rows = report.measure_matrices(weights, plan)
        sizes_text = _describe_sizes(folder / packed_file.FILE, weights, plan)
        text = f"{report.format_table(rows)}\n\n{sizes_text}\n"
        (folder / "report.txt").write_text(text)
        content = json.dumps(report.as_json(rows), indent=2, allow_nan=False)
        (folder / "report.json").write_text(content + "\n")
        figure = report_figure.draw_report(rows, f"{model.origin}, {named_formats.LABELS[name]}")
        save_png(figure, folder / "report.png")
    return text


def describe_model(config: ModelConfig) -> dict[str, Any]:
    """A model's configuration as JSON, with its `config.model.name`."""
    return {"name": config.name, **dataclasses.asdict(config)}


def _describe_sizes(path: Path, weights: Any, plan: Plan) -> str:
    """Two lines: bytes of the quantized weights, and of everything else in the file."""
    quantized = sizes.total_size(sizes.parameter_sizes(plan, weights).values())
    leaves = paths_and_leaves(weights)
    other_bits = sum(8 * leaf.nbytes for name, leaf in leaves.items() if name not in plan)
    count = sum(leaf.size for leaf in leaves.values())
    on_disk = path.stat().st_size
    return (
        f"{quantized.weights:,} weights of {count:,} quantized, {quantized.mean_bits:.4f} bits "
        f"each: codes {quantized.codes / 8:,.0f} bytes, scales {quantized.scales / 8:,.0f}, "
        f"tags {quantized.tags / 8:,.0f}\n"
        f"all others {other_bits / 8:,.0f} bytes; the file {on_disk:,}, of which "
        f"{on_disk - (quantized.bits + other_bits) / 8:,.0f} describe it"
    )
