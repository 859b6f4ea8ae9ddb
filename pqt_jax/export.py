# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Export trained weights: `python -m pqt_jax.export --workdir RUN --format fp6_e3m2 --out DIR`.

    --workdir RUN | --hf DIR → plan → a folder, whole or not at all

    --layout packed        weights.safetensors (`packed`), report.txt, report.json, report.png
    --layout huggingface   config.json and model.safetensors, which transformers loads: the rounded
                           weights as numbers, in bfloat16 or float32

Nothing is printed before the folder is whole. Exit codes: 0 done; 1 the folder cannot be written;
2 the input cannot be used (one line on stderr); 130 and 141 as of `errors.run`.
"""

import dataclasses
import json
import re
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pqt_jax import errors
from pqt_jax.analysis import load
from pqt_jax.errors import InputError
from pqt_jax.interchange import folders, huggingface
from pqt_jax.models import GPT2Config
from pqt_jax.numerics import blocks, cast
from pqt_jax.quantization import packed_file, report, sizes
from pqt_jax.quantization.quantize import Plan
from pqt_jax.training.config import command_line, schema
from pqt_jax.training.run import workdir
from pqt_jax.transform import bit_state
from pqt_jax.transform.tree_paths import paths_and_leaves

LAYOUTS = ("packed", "huggingface")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read trained weights, round them and write the folder.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(_parse(sys.argv[1:] if arguments is None else arguments)))


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = command_line.Parser(
        prog="python -m pqt_jax.export", description="Export trained weights."
    )
    load.add_arguments(parser)
    formats = [*load.FORMATS, "mixed"]
    share = command_line.number(float, lambda x: 0 < x <= 1, "above 0 and at most 1")
    add = parser.add_argument
    add("--format", choices=["master", *formats], required=True)
    add("--out", metavar="DIR", required=True, help="made whole or not at all")
    add("--overwrite", action="store_true", help="replace what is in DIR")
    add("--layout", choices=LAYOUTS, default="packed", help="default: packed")
    add(
        "--dtype",
        choices=["bfloat16", "float32"],
        help="of Hugging Face weights; default: bfloat16 if it holds them",
    )
    add("--block", type=_block, metavar="RxC", help="of a scale, as 1x32; default: as trained")
    add("--scale", choices=[r.value for r in cast.ScaleRule], help="default: as trained")
    add("--granularity", choices=["block", "tensor", "model"], help="of mixed; default: block")
    add("--share", type=share, metavar="S", help="of the blocks that a mixed format has to carry")
    given = parser.parse_args(arguments)
    _check(given)
    return given


def _block(text: str) -> blocks.Block:
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    try:
        return blocks.check_block((int(sides[1]), int(sides[2])) if sides else (0, 0))
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r}; it must be two sides such as 32x32 or 1x32, each a divisor or a multiple "
            "of 32"
        ) from None


def _check(given: Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if not given.out:
        raise InputError("--out= is empty; give a folder")
    if given.packed is not None:
        raise InputError("--packed: those weights are exported already; give --workdir or --hf")
    packs = given.layout == "packed"
    if packs and given.format == "master":
        raise InputError("--format=master goes with --layout=huggingface; give a smaller format")
    if packs and given.dtype is not None:
        raise InputError("--dtype goes with --layout=huggingface; leave it out")
    if given.scale == "exact" and given.dtype == "bfloat16":
        raise InputError("--dtype=bfloat16 would round products with exact scales; give float32")
    uniform = given.format not in ("mixed", "master")
    for name, fits in (("block", uniform), ("scale", uniform), ("granularity", not uniform)):
        if getattr(given, name) is not None and (not fits or given.format == "master"):
            raise InputError(f"--{name} does not go with --format={given.format}; leave it out")
    if given.share is not None and given.granularity not in ("tensor", "model"):
        raise InputError("--share goes with --granularity=tensor or model; leave it out")


def _run(given: Namespace) -> int:
    workdir.refuse_checkpoints(folders.check(given.out, given.overwrite), given.out)
    model = load.from_arguments(given)
    if given.format == "mixed" and model.run is not None and model.run.method == "diffq":
        raise InputError(
            "--format=mixed: DiffQ's own bits are levels between a matrix's ends, which no format "
            "holds; give another format, or --weights=mixed to pqt_jax.evaluate"
        )
    if given.format == "mixed" and not bit_state.collect_bits(model.params):
        raise InputError("--format=mixed: no bits were learned; give another format")
    names = ("block", "scale", "granularity", "share")
    options = {n: getattr(given, n) for n in names if getattr(given, n) is not None}
    plan = load.plan_for(model.params, model.rules, given.format, **options)
    text = ""
    if given.layout == "packed":
        text = pack(Path(given.out), model, plan, given.format, given.overwrite)
    else:
        rounded = load.weights_as(model.params, plan)
        wide = any(assigned.spec.storage == np.float32 for assigned in plan.values())
        dtype: Any = given.dtype or ("float32" if wide else "bfloat16")
        huggingface.save(given.out, model.model, rounded, dtype=dtype, overwrite=given.overwrite)
    print(f"weights: {model.origin}\n{text}written: {given.out}")
    return 0


def pack(out: Path, model: load.Trained, plan: Plan, name: str, overwrite: bool = False) -> str:
    """Write packed weights and their report.

    Args:
      out: folder, made whole or not at all.
      model: trained.
      plan: for its weights.
      name: of the format, for the title.
      overwrite: replace what is in the folder.

    Returns:
      The report, as in report.txt.

    Raises:
      InputError: if there is something in the folder already.
      OutputError: if it cannot be written.
    """
    weights = bit_state.weights(model.params)
    with folders.whole_folder(out, overwrite) as folder:
        packed_file.write(folder / packed_file.FILE, weights, plan, describe(model.model))
        rows = report.rows(weights, plan)
        text = f"{report.table(rows)}\n\n{_sizes(folder / packed_file.FILE, weights, plan)}\n"
        (folder / "report.txt").write_text(text)
        content = json.dumps(report.as_json(rows), indent=2, allow_nan=False)
        (folder / "report.json").write_text(content + "\n")
        report.picture(folder / "report.png", rows, f"{model.origin}, {load.LABELS[name]}")
    return text


def describe(model: load.ModelConfig) -> dict[str, Any]:
    """A model's configuration with the name that `config.model.name` gives it."""
    name = "gpt2" if isinstance(model, GPT2Config) else "llama2"
    assert isinstance(model, schema.MODELS[name][0])
    return {"name": name, **dataclasses.asdict(model)}


def _sizes(path: Path, weights: Any, plan: Plan) -> str:
    quantized = sizes.total(sizes.sizes(plan, weights))
    leaves = paths_and_leaves(weights)
    others = sum(8 * leaf.nbytes for name, leaf in leaves.items() if name not in plan)
    count = sum(leaf.size for leaf in leaves.values())
    on_disk = path.stat().st_size
    return (
        f"{quantized.weights:,} weights of {count:,} quantized, {quantized.mean_bits:.4f} bits "
        f"each: codes {quantized.codes / 8:,.0f} bytes, scales {quantized.scales / 8:,.0f}, "
        f"tags {quantized.tags / 8:,.0f}\n"
        f"all others {others / 8:,.0f} bytes; the file {on_disk:,}, of which "
        f"{on_disk - (quantized.bits + others) / 8:,.0f} describe it"
    )


if __name__ == "__main__":
    errors.leave(main())
