# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The README.md of an exported folder: what the weights are, and how they are loaded.

model, how its tensors are stored, summary.json of its run → a model card of Hugging Face

It says only what is known: of a model that was trained elsewhere nothing about its training, and a
loss only of weights that the trainer has scored.
"""

import dataclasses
import math
import re
from argparse import Namespace
from collections.abc import Sequence
from typing import NamedTuple

import pqt_jax
from pqt_jax.analysis import export_folder
from pqt_jax.analysis.export_folder import Storage
from pqt_jax.analysis.export_tensors import OutTensor
from pqt_jax.analysis.open_weights import OpenModel
from pqt_jax.console import format_quantity
from pqt_jax.data.tokenizer_files import TokenizerFiles
from pqt_jax.interchange import huggingface_config
from pqt_jax.models import Llama2Config, ModelConfig
from pqt_jax.numerics import bit_width
from pqt_jax.numerics.cast import ScaleRule
from pqt_jax.numerics.formats import as_format
from pqt_jax.quantization.quantize import Plan
from pqt_jax.training import final_evaluation, methods, named_formats
from pqt_jax.transform import bit_state

FILE = "README.md"
_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER"{})
```
"""
USAGE = {  # by layout
    "huggingface": "transformers computes from the numbers:\n\n" + _TRANSFORMERS.format(""),
    "compressed-tensors": "With the package compressed-tensors, transformers computes from the "
    "same values:\n\n"
    + _TRANSFORMERS.format(', dtype="bfloat16"')
    + "\nvLLM loads FP4 and FP8 with one scale for each 32 weights.",
    "quark": "vLLM loads the folder with the package amd-quark, in bfloat16 or float16.",
    "mlx": "mlx_lm computes from the few bits:\n\n```sh\n"
    'mlx_lm.generate --model FOLDER --prompt "…"\n```',
    "gguf": "llama.cpp computes from the few bits.",
}
_PLAIN_GGUF = "transformers computes from the same values:\n\n" + _TRANSFORMERS.format(
    ', gguf_file="model.gguf"'
)
_HEAD = re.compile("(ForCausalLM|LMHeadModel)$")  # of the name of an architecture
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")  # its number, in the name of a tensor


class CardTensor(NamedTuple):
    """A tensor of the folder.

    Attributes:
      name: its name.
      weights: number of its weights.
      nbytes: bytes that it takes, with its scales.
      kind: what it is stored in, and why, such as "FP4 E2M1" or "bfloat16, which no rule covers".
      in_few_bits: whether it is stored as codes.
    """

    name: str
    weights: int
    nbytes: int
    kind: str
    in_few_bits: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """An export.

    Attributes:
      layout: `--layout`.
      format: `--format`.
      tensors: all tensors.
      tokenizer: its files.
      command: the command line.
    """

    layout: str
    format: str
    tensors: Sequence[CardTensor]
    tokenizer: TokenizerFiles
    command: str


def is_as_scored(options: Namespace) -> bool:
    """Whether the options round weights as the trainer does when it scores a format.

    It takes the blocks and scales of training, and with mixed bits a format for each block that can
    represent the block's noise.

    Args:
      options: with `block`, `scale`, `granularity` and `match`; None for what is not given.
    """
    is_as_trained = options.block is None and options.scale is None
    by_block = options.granularity in (None, "block")
    return is_as_trained and by_block and options.match in (None, "noise")


def list_tensors(
    model: OpenModel, tensors: Sequence[OutTensor], storage: Storage
) -> list[CardTensor]:
    """The tensors of a folder, from what `export_folder.write` returns."""
    return [
        CardTensor(
            name=one.tensor.name,
            weights=math.prod(one.tensor.shape),
            nbytes=sum(x.nbytes for x in export_folder.tensor_specs(one, storage).values()),
            kind=export_folder.describe_tensor(model, one, storage),
            in_few_bits=export_folder.carrier_of(one, storage.layout) is not None,
        )
        for one in tensors
    ]


def describe(tensors: Sequence[CardTensor]) -> str:
    """Lines that say in which formats tensors are stored."""
    by_kind: dict[str, list[str]] = {}
    for tensor in tensors:
        by_kind.setdefault(tensor.kind, []).append(tensor.name)
    return "\n".join(
        f"{format_quantity(len(names), 'tensor')} in {kind}: {', '.join(names[:3])}"
        + (", …" if len(names) > 3 else "")
        for kind, names in by_kind.items()
    )


def make(model: OpenModel, plan: Plan, export: Export, losses: str) -> str:
    """The content of the card.

    Args:
      model: the model.
      plan: how its weights are rounded.
      export: how they are stored.
      losses: the section about losses, from `card_losses`; "" for none.
    """
    label = named_formats.LABELS[export.format]
    count = sum(tensor.weights for tensor in export.tensors)
    described = huggingface_config.to_json(model.config, "float32")
    name = _HEAD.sub("", described["architectures"][0])
    parts = [
        _front_matter(model, export, described["model_type"]),
        f"# {name} with {_format_count(count)} parameters, {label}",
        f"Made by pqt_jax {pqt_jax.__version__} from the weights of {model.origin}.",
        _training(model, plan),
        _weights(plan, export, count),
        losses,
        f"## Tokenizer\n\n{export.tokenizer.card}" if export.layout != "gguf" else "",
        f"## Loading\n\n{USAGE[export.layout].rstrip()}",
        _PLAIN_GGUF.rstrip() if export.layout == "gguf" and _is_plain(model.config) else "",
        f"## How it was made\n\n```sh\n{export.command}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_plain(config: ModelConfig) -> bool:
    """Whether transformers 5.24 reads the model from GGUF as it is, and not with parts missing."""
    return isinstance(config, Llama2Config) and config == dataclasses.replace(
        config,
        attention_bias="none",
        qk_norm=False,
        rope_scaling="none",
        head_dim=0,
    )


def _front_matter(model: OpenModel, export: Export, kind: str) -> str:
    """Metadata in YAML; each value is a word of letters, digits, - and _."""
    library = {"mlx": "mlx", "gguf": None}.get(export.layout, "transformers")
    tags = ["pqt_jax", kind, export.format.replace("_", "-")]
    tags += [] if export.layout == "huggingface" else [export.layout]
    if model.run_config is not None and model.run_config.method != "bf16":
        tags.append("quantization-aware-training")
    lines = [f"library_name: {library}"] if library else []
    lines += ["pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _training(model: OpenModel, plan: Plan) -> str:
    config = model.run_config
    if config is None:
        return "## Training\n\nIt was trained elsewhere; nothing is known here of its training."
    method = methods.get_method(config)
    about = f"Trained by pqt_jax with method `{method.name}`, {method.help}"
    lines = [f"{about}; the run has {config.steps:,} steps."]
    if method.learns_bits and bit_state.has_bits(model.params):
        found = bit_width.statistics(method.bit_widths(config, model.params))
        mean, low, high = (float(found[name]) for name in ("mean", "min", "max"))
        lines.append(
            f"The learned bit-widths are {mean:.2f} on average, from {low:.2f} to {high:.2f}."
        )
        if plan and any(assigned.index is not None for assigned in plan.values()):
            shares = final_evaluation.format_shares(plan, model.params)
            shown = [f"{as_format(name).label} {share:.1%}" for name, share in shares.items()]
            lines.append(f"The formats for them, by share of the weights: {', '.join(shown)}.")
    return "## Training\n\n" + "\n".join(lines)


def _weights(plan: Plan, export: Export, count: int) -> str:
    by_kind: dict[str, list[CardTensor]] = {}
    for tensor in export.tensors:
        by_kind.setdefault(tensor.kind, []).append(tensor)
    rows = ["| stored in | tensors | weights | bytes | bits per weight |", "|---|--:|--:|--:|--:|"]
    groups = list(by_kind.items())
    if len(groups) > 1:
        groups.append(("all", list(export.tensors)))
    for kind, tensors in groups:
        weights, nbytes = (sum(getattr(t, name) for t in tensors) for name in ("weights", "nbytes"))
        rows.append(
            f"| {kind} | {len(tensors)} | {weights:,} | {nbytes:,} | {8 * nbytes / weights:.3f} |"
        )
    lines = ["## Weights", "\n".join(rows)]
    specs = [a.spec for a in plan.values() if a.index is not None or a.spec.dtype.bits < 16]
    if specs:
        block = "×".join(map(str, specs[0].block))
        power = "" if specs[0].scale == ScaleRule.EXACT else ", a power of two"
        lines.append(f"The weights of each block of {block} [in, out] share a scale{power}.")
    others = [tensor for tensor in export.tensors if not tensor.in_few_bits]
    if len(others) < len(export.tensors):
        lines.append("Not in few bits:\n\n" + "\n".join(_list_names(others)))
    return "\n\n".join(lines)


def _list_names(tensors: Sequence[CardTensor]) -> list[str]:
    """A line for each name, with * for the number of the layer."""
    counts: dict[tuple[str, str], int] = {}
    for tensor in tensors:
        key = _LAYER.sub("*", tensor.name), tensor.kind
        counts[key] = counts.get(key, 0) + 1
    return [
        f"- `{name}`" + (f" ({count})" if count > 1 else "") + f": {kind}"
        for (name, kind), count in counts.items()
    ]


def _format_count(count: int) -> str:
    """A number of parameters in words.

    Example:
      >>> _format_count(123), _format_count(940_000), _format_count(1_235_000_000)
      ('123', '0.9 M', '1.2 B')
    """
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if count >= unit / 10:
            return f"{count / unit:.1f} {name}"
    return f"{count:,}"
