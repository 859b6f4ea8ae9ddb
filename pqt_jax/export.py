# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Export trained weights: `python -m pqt_jax.export --workdir RUN --format fp6_e3m2 --out DIR`.

    --workdir RUN | --hf DIR → rounded weights → a folder, written whole or not at all

    --layout packed        weights.safetensors (`quantization.packed_file`), report.txt,
                           report.json, report.png
    --layout huggingface   config.json and model.safetensors, which transformers loads: the rounded
                           weights as numbers, in bfloat16 or float32
    --layout NAME          one of `interchange.layouts`: the same folder, with matrices in few bits
    --layout gguf          model.gguf, which llama.cpp runs

Each folder has SHA256SUMS, the digests of its files; --overwrite replaces what still has them.
Nothing is printed before the folder is complete.

Exit codes: `errors.EXIT_CODES`.
"""

import re
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from decimal import Decimal

from pqt_jax import console, errors
from pqt_jax.analysis import export_gguf, export_weights, load
from pqt_jax.errors import InputError
from pqt_jax.interchange.layouts import LAYOUTS
from pqt_jax.interchange.low_bit import LowBitLayout
from pqt_jax.numerics import blocks, cast
from pqt_jax.numerics.formats import FORMATS
from pqt_jax.numerics.mixed_formats import MATCHES

EXIT_CODES = errors.EXIT_CODES
LAYOUT_NAMES = ("packed", "huggingface", *LAYOUTS, "gguf")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program; None for `sys.argv[1:]`.

    Returns:
      One of `EXIT_CODES`.
    """
    return console.run(_run, arguments)


def _run(arguments: Sequence[str]) -> None:
    export_weights.export(parse(arguments))


def parser() -> console.Parser:
    """The options of the command."""
    result = console.Parser(prog="python -m pqt_jax.export", description="Export trained weights.")
    load.add_model_options(result, takes_exports=False)
    formats = ["master", *FORMATS, "mixed"]
    share = console.number(float, lambda x: 0 < x <= 1, "above 0 and at most 1")
    add = result.add_argument
    add(
        "--format",
        choices=formats,
        required=True,
        help="format of the exported weights: master for the weights as trained, mixed for the "
        "format that the bit-width of each block needs, or one format for all weights",
    )
    add(
        "--out",
        metavar="DIR",
        required=True,
        help="folder to write; it is complete, or absent after a failure",
    )
    add("--overwrite", action="store_true", help="replace an export in the folder of --out")
    add(
        "--layout",
        choices=LAYOUT_NAMES,
        default="packed",
        help="packed for pqt_jax's own file, huggingface for a folder of numbers that transformers "
        "loads, or the name of what other software reads in few bits; default: packed",
    )
    add(
        "--dtype",
        choices=["bfloat16", "float32"],
        help="dtype of the weights in the Hugging Face layout; default: bfloat16, or float32 with "
        "--scale=exact, and with --format=master for weights that were trained in float32",
    )
    add(
        "--rest",
        choices=["bfloat16", "float32"],
        help="dtype of the weights that --format does not cover: embeddings, head, norms, biases; "
        "default: as trained with --layout=packed, else as --dtype",
    )
    add(
        "--squares",
        action="store_true",
        help="store one scale for each block of 32x32, where the layout can, instead of one for "
        "each 32 weights of a row",
    )
    add(
        "--sharded-size",
        type=_size,
        metavar="SIZE",
        help="largest file of a Hugging Face folder, such as 500MB; default: 5GB",
    )
    add(
        "--block",
        type=_block,
        metavar="RxC",
        help="inputs and outputs of the blocks that share a scale, such as 32x1; default: as "
        "trained",
    )
    add(
        "--scale",
        choices=[r.value for r in cast.ScaleRule],
        help="how the scale of a block is computed; default: as trained",
    )
    add(
        "--granularity",
        choices=["block", "tensor", "model"],
        help="with --format=mixed, what shares one format; default: block",
    )
    add(
        "--share",
        type=share,
        metavar="S",
        help="with --granularity=tensor or model, share of the blocks that the common format must "
        "be wide enough for; default: 1",
    )
    add(
        "--match",
        choices=MATCHES,
        help="with --format=mixed, what of a format matches the learned bits: noise, it can "
        "represent their noise; error, its rounding error is as large as their noise, with up to "
        "six bits less for a weight; default: noise",
    )
    add(
        "--losses",
        metavar="FILE",
        help="file that the evaluate command wrote by --json for the same weights; the model card "
        "gets its losses, with intervals; default: those of the trainer, without",
    )
    return result


def _block(text: str) -> blocks.Block:
    try:
        return blocks.parse_block(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    parts = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)([KMG]B)?", text)
    size = int(Decimal(parts[1]) * _UNITS[parts[2] or ""]) if parts else 0
    if not size:
        raise ArgumentTypeError(f"{text!r}; it must be a number of bytes such as 500MB or 1.5GB")
    return size


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse the command line and check which options go together.

    Raises:
      InputError: if something in it cannot be used.
      SystemExit: after `--help`.
    """
    options = parser().parse_args(arguments)
    options.command = shlex.join(["python", "-m", "pqt_jax.export", *arguments])
    if not options.out:
        raise InputError("--out= is empty; give a folder")
    for name in ("packed", "gguf"):
        if getattr(options, name) is not None:
            raise InputError(
                f"--{name}: those weights are exported already; give --workdir or --hf"
            )
    if options.layout != "huggingface" and options.format == "master":
        raise InputError("--format=master goes with --layout=huggingface; give a smaller format")
    if options.layout != "huggingface" and options.dtype is not None:
        raise InputError("--dtype goes with --layout=huggingface; leave it out")
    if options.layout in ("packed", "gguf") and options.sharded_size is not None:
        raise InputError("--sharded-size goes with Hugging Face folders; leave it out")
    if options.layout == "packed" and options.losses is not None:
        raise InputError("--losses goes with layouts that have a model card; leave it out")
    _check_low_bit(options, LAYOUTS.get(options.layout))
    if options.scale == "exact" and options.dtype == "bfloat16":
        raise InputError("--dtype=bfloat16 would round products with exact scales; give float32")
    is_mixed, is_uniform = options.format == "mixed", options.format not in ("mixed", "master")
    fitting = {"block": is_uniform, "scale": is_uniform}
    fitting |= {"granularity": is_mixed, "match": is_mixed}
    for name, fits in fitting.items():
        if getattr(options, name) is not None and not fits:
            raise InputError(f"--{name} does not go with --format={options.format}; leave it out")
    if options.share is not None and options.granularity not in ("tensor", "model"):
        raise InputError("--share goes with --granularity=tensor or model; leave it out")
    return options


def _check_low_bit(options: Namespace, layout: LowBitLayout | None) -> None:
    """Check options of a layout in few bits."""
    if options.squares and (layout is None or options.format not in layout.squares):
        able = [
            f"--layout={x.name} --format={name}" for x in LAYOUTS.values() for name in x.squares
        ]
        raise InputError(f"--squares goes with {' or '.join(able)}; leave it out")
    if layout is None and options.layout != "gguf":
        return
    formats = export_gguf.FORMATS if layout is None else layout.formats
    if options.format not in formats:
        raise InputError(
            f"--format={options.format}: --layout={options.layout} has {', '.join(formats)}; give "
            "one of these"
        )
    if options.scale == "exact":
        raise InputError(
            f"--scale=exact: the scales of --layout={options.layout} are powers of two; give ceil"
        )
    if options.format == "mixed" and options.granularity not in ("tensor", "model"):
        raise InputError(
            f"--format=mixed: --layout={options.layout} has one format for each tensor; give "
            "--granularity=tensor"
        )


if __name__ == "__main__":
    sys.exit(main())
