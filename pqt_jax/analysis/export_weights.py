# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Round trained weights and write them to a folder: `pqt_jax.export`.

trained weights → plan → packed codes and a report of their errors, or a Hugging Face folder
"""

import dataclasses
import functools
import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pqt_jax.analysis import (
    card_losses,
    export_folder,
    export_gguf,
    exported_tokenizer,
    model_card,
    open_weights,
)
from pqt_jax.analysis.export_folder import Storage
from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.data import tokenizer_files
from pqt_jax.errors import InputError
from pqt_jax.interchange import checksums, files, folders, low_bit, safetensors_writer
from pqt_jax.interchange.layouts import LAYOUTS
from pqt_jax.interchange.png import save_png
from pqt_jax.models import ModelConfig
from pqt_jax.quantization import packed_file, report, report_figure, sizes
from pqt_jax.quantization.quantize import Plan
from pqt_jax.training import methods, named_formats
from pqt_jax.training.run import tokenizer_copy, workdir
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves

_REPORT = "report.txt"


def export(options: Namespace) -> None:
    """Write the folder, then print the report and the folder's name.

    Args:
      options: the options of `pqt_jax.export`.

    Raises:
      InputError: if the weights cannot be read or do not fit the options, or the folder must not
        be written to.
      OutputError: if the folder cannot be written.
    """
    out = folders.check_destination(options.out, options.overwrite, "--out=")
    workdir.check_not_in_checkpoints(out, options.out)
    _check_replaced(options, out)
    text = open_weights.use_model(options, functools.partial(_write, options))
    print(f"{text}\nwritten: {options.out}")


def _check_replaced(options: Namespace, out: Path) -> None:
    """Raise InputError if `--out` is the model itself, or holds what its export did not write."""
    if options.hf is not None and out == Path(options.hf).resolve():
        raise InputError(f"--out={options.out} is the folder of --hf; give another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if change := checksums.find_change(out):
        raise InputError(f"--out={options.out} {change}; nothing is deleted, give another folder")


def _write(options: Namespace, model: OpenModel) -> str:
    """Write the folder; returns what to print about it."""
    plan = _make_plan(options, model)
    _check_layout(options, model, plan)
    with folders.atomic_folder(options.out, options.overwrite, "--out=") as folder:
        if options.layout == "packed":
            begin = None
            if model.run_config is not None:
                data = model.run_config.data.tokens
                begin = tokenizer_copy.find_begin(Path(options.workdir), data)
            text = write_packed(folder, model, plan, options.format, options.rest, begin)
        else:
            text = _write_for_others(folder, options, model, plan)
        checksums.write(folder)
    return f"weights: {model.origin}\n{text}"


def _write_for_others(folder: Path, options: Namespace, model: OpenModel, plan: Plan) -> str:
    """Write weights, tokenizer and model card; returns what to print."""
    tokenizer, losses = exported_tokenizer.find(options, model), _describe_losses(options, model)
    if options.layout == "gguf":
        rest = options.rest or "bfloat16"
        described = exported_tokenizer.find_gguf(options, model)
        name = Path(options.workdir or options.hf).resolve().name
        written = export_gguf.write(folder, model, plan, rest=rest, tokenizer=described, name=name)
        tensors = export_gguf.list_tensors(model, written, rest)
    else:
        storage = _storage(options, model)
        written = export_folder.write(folder, model, plan, storage, tokenizer.ids)
        tokenizer_files.write(folder, tokenizer)
        tensors = model_card.list_tensors(model, written, storage)
    card = model_card.Export(
        layout=options.layout,
        format=options.format,
        tensors=tensors,
        tokenizer=tokenizer,
        command=options.command,
    )
    files.write(folder / model_card.FILE, model_card.make(model, plan, card, losses))
    return f"{model_card.describe(tensors)}\n{tokenizer.about}"


def _describe_losses(options: Namespace, model: OpenModel) -> str:
    """The section of the model card about losses; "" if none are known."""
    these = options.format if model_card.is_as_scored(options) else None
    if options.losses is not None:
        content = card_losses.read_evaluation(Path(options.losses), model.origin)
        method = None if model.run_config is None else model.run_config.method
        return card_losses.describe_evaluation(content, method, these)
    if model.step is None:
        return ""
    summary = card_losses.read_summary(Path(options.workdir), model.step)
    return "" if summary is None else card_losses.describe_summary(summary, these)


def _check_layout(options: Namespace, model: OpenModel, plan: Plan) -> None:
    """Raise InputError if the layout does not serve the model, or blocks as they were trained."""
    layout = LAYOUTS.get(options.layout)
    if layout is not None and model.config.name not in layout.models:
        raise InputError(
            f"--layout={layout.name} is for models like {', '.join(layout.models)}, and "
            f"{model.origin} is a {model.config.name}; give --layout=gguf, huggingface or packed"
        )
    if layout is not None and layout.find_refusal and (why := layout.find_refusal(model.config)):
        raise InputError(f"--layout={layout.name}: {why}; give another layout")
    if options.layout in ("packed", "huggingface") or options.format == "bf16":
        return
    for path, assigned in plan.items():
        block = assigned.spec.block
        if block[0] % low_bit.GROUP:
            raise InputError(
                f"--layout={options.layout} has a scale for each 32 inputs of a weight matrix, and "
                f"{path} has blocks of {block[0]}x{block[1]}; give --block=32x32 or 32x1"
            )
        if options.squares and block[1] % low_bit.GROUP:
            raise InputError(
                f"--squares stores a scale for each 32x32 weights, and {path} has blocks of "
                f"{block[0]}x{block[1]}; leave it out, or give --block=32x32"
            )


def _storage(options: Namespace, model: OpenModel) -> Storage:
    """How a Hugging Face folder is stored, from the options."""
    layout = LAYOUTS.get(options.layout)
    numbers = "bfloat16"
    if layout is None:
        as_trained = options.format == "master" and model.config.param_dtype == "float32"
        wide = "float32" if as_trained or options.scale == "exact" else "bfloat16"
        numbers = options.dtype or wide
    shard_bytes = options.sharded_size or safetensors_writer.SHARD_BYTES
    return Storage(
        layout=layout,
        numbers=numbers,
        rest=options.rest or numbers,
        squares=options.squares,
        shard_bytes=shard_bytes,
    )


def _make_plan(options: Namespace, model: OpenModel) -> Plan:
    if options.format == "mixed":
        refusal = model.run_config and methods.get_method(model.run_config).export_refusal
        if refusal:
            raise InputError(
                f"--format=mixed: {refusal}; give another format, or --weights=mixed to "
                "pqt_jax.evaluate"
            )
        if not bit_state.collect_bits(model.params):
            raise InputError("--format=mixed: no bits were learned; give another format")
    names = ("block", "scale", "granularity", "share", "match")
    plan_options = {
        name: getattr(options, name) for name in names if getattr(options, name) is not None
    }
    return named_formats.make_plan(model.params, model.rules, options.format, **plan_options)


def write_packed(
    folder: Path,
    model: OpenModel,
    plan: Plan,
    name: str,
    rest: str | None,
    begin: int | None = None,
) -> str:
    """Write packed weights and the report of their errors.

    Args:
      folder: an empty folder.
      model: the trained model.
      plan: the plan for its weights.
      name: the format's name, for the title of the picture.
      rest: dtype of the weights that the plan does not round; None for the dtype that they have.
      begin: the token that documents began with in training, or None.

    Returns:
      The content of report.txt.

    Raises:
      InputError: if a weight cannot be read.
      OSError: if the folder cannot be written.
    """
    weights = bit_state.weights(model.params)
    rows, other_bytes = [], 0

    def read() -> Iterator[tuple[str, jax.Array]]:
        nonlocal other_bytes
        for path in paths_and_leaves(weights):
            w = jnp.asarray(model.read(path))
            if path in plan:
                rows.extend(report.measure_matrices({path: w}, plan))
            else:
                w = w.astype(rest or w.dtype)
                other_bytes += w.nbytes
            yield path, w

    path = folder / packed_file.FILE
    about = describe_model(model.config) | ({} if begin is None else {"begin": begin})
    packed_file.write_each(path, read(), plan, about)
    sizes_text = _describe_sizes(path, weights, plan, other_bytes)
    text = f"{report.format_table(rows)}\n\n{sizes_text}\n"
    (folder / _REPORT).write_text(text)
    content = json.dumps(report.as_json(rows), indent=2, allow_nan=False)
    (folder / "report.json").write_text(content + "\n")
    figure = report_figure.draw_report(rows, f"{model.origin}, {named_formats.LABELS[name]}")
    save_png(figure, folder / "report.png")
    return text


def describe_model(config: ModelConfig) -> dict[str, Any]:
    """A model's configuration as JSON, with its `config.model.name`."""
    return {"name": config.name, **dataclasses.asdict(config)}


def _describe_sizes(path: Path, weights: Any, plan: Plan, other_bytes: int) -> str:
    """Two lines: bytes of the quantized weights, and of everything else in the file."""
    quantized = sizes.total_size(sizes.parameter_sizes(plan, weights).values())
    count = sum(leaf.size for leaf in paths_and_leaves(weights).values())
    on_disk = path.stat().st_size
    return (
        f"{quantized.weights:,} weights of {count:,} quantized, {quantized.mean_bits:.4f} bits "
        f"each: codes {quantized.codes / 8:,.0f} bytes, scales {quantized.scales / 8:,.0f}, "
        f"tags {quantized.tags / 8:,.0f}\n"
        f"all others {other_bytes:,} bytes; the file {on_disk:,}, of which "
        f"{on_disk - quantized.bits / 8 - other_bytes:,.0f} describe it"
    )
