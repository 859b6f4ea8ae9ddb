# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The configuration of a training run: its fields, their defaults, ranges and meaning.

Each field is stated once, here or in the model's own configuration. A config file is Python with a
function `get_config()`, which calls `default` and changes what it needs. `command_line.load` reads
it, applies `--config.field=value`, checks the result and returns a `RunConfig`.
"""

import dataclasses
import re
from dataclasses import field
from typing import Any

from pqt_jax.console import check_local
from pqt_jax.models import ModelConfig
from pqt_jax.models.setting import about, setting
from pqt_jax.numerics import bit_width, blocks, cast
from pqt_jax.numerics.formats import NAMES_IN_WORDS, as_format
from pqt_jax.training.config.fields import to_config_dict, to_dict
from pqt_jax.training.methods import METHODS
from pqt_jax.training.methods.sampling_rules import KERNEL_PATTERNS
from pqt_jax.transform import diffq, optim
from pqt_jax.transform.recipes import RECIPES

PENALTIES = ("none", "layer", "average", "size")
OPTIMIZERS, SCHEDULES = ("adamw", "adam_mini"), ("cosine", "linear", "wsd", "constant")
EXTENSIBLE = ("wsd", "constant")  # the first steps do not depend on the number of steps
# Sections and fields that a resumed run may change: it stays the same training, up to the order of
# sums. A name with a dot at its end begins with one of them.
MAY_CHANGE = ("log.", "mesh.", "watch.", "model.attention.")
_BITS = {"minimum": bit_width.MIN_BITS, "maximum": bit_width.MAX_BITS}


def _compile_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"it does not compile: {error}") from None


def _check_store(address: str) -> None:
    if address and not re.fullmatch(r"gs://[\w.-]+(/[\w.=-]+)+/?", address, re.ASCII):
        raise ValueError(
            "it must be gs://BUCKET/FOLDER, in letters, digits, '.', '_', '-' and '='; Orbax "
            "writes to no other object store"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training text, and how it is divided into batches."""

    files: str = setting(
        "", "Glob of text files; empty for the source of Python's library.", check=check_local
    )
    tokens: str = setting(
        "",
        "Tokenized text in place of `files`: a folder of `pqt_jax.data.prepare`, or a glob of "
        ".bin files.",
        check=check_local,
    )
    boundaries: str = setting(
        "token",
        "token: a sequence runs on over the ends of documents; mask: each document attends to "
        "itself alone.",
        choices=("token", "mask"),
    )
    end_token: int = setting(
        -1,
        "Token that ends a document; -1 for the one that the index of `tokens` names.",
        minimum=-1,
    )
    length: int = setting(128, "Tokens in a sequence.", minimum=1)
    batch: int = setting(16, "Sequences in a step.", minimum=1)
    microbatches: int = setting(
        1, "Number of equal parts of a batch, computed one after the other.", minimum=1
    )
    loss_chunk: int = setting(
        0, "Positions whose logits are computed at once; 0 for all of them.", minimum=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh."""

    data: int = setting(0, "Devices that split the batch; 0 for all that are left.", minimum=0)
    fsdp: int = setting(
        1, "Devices that split the batch, the parameters and the optimizer's state.", minimum=1
    )
    tensor: int = setting(1, "Devices that split each layer's matrices.", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer of the weights, and its schedule."""

    name: str = setting("adamw", "Update rule.", choices=OPTIMIZERS)
    schedule: str = setting(
        "cosine",
        "What follows the linear warm-up: a decay by a cosine or a line; wsd for a constant rate "
        "and a line at the end; constant for no decay.",
        choices=SCHEDULES,
    )
    learning_rate: float = setting(1e-3, "Highest learning rate, after the warm-up.", above=0)
    final_learning_rate: float = setting(
        1e-4,
        "Learning rate that the decay reaches after the last step; the last step itself has the "
        "rate of one step before.",
        minimum=0,
    )
    decay_share: float = setting(
        0.2,
        "Share of the steps, at the end, in which the rate of schedule wsd falls.",
        above=0,
        maximum=1,
    )
    warmup_steps: int = setting(20, "Steps of linear warm-up.", minimum=0)
    b1: float = setting(
        0.9, "Decay of the first moment.", minimum=0, below=1, words="from 0 to below 1"
    )
    b2: float = setting(
        0.95, "Decay of the second moment.", minimum=0, below=1, words="from 0 to below 1"
    )
    eps: float = setting(1e-8, "Added to the root of the second moment.", above=0)
    weight_decay: float = setting(0.1, "Decoupled decay of the weights.", minimum=0)
    clip_norm: float = setting(
        1.0, "Largest norm of the gradient of the weights; a longer one is scaled down.", above=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PqtConfig:
    """Which weights are sampled and how, and how they are quantized for the final table."""

    pattern: str = setting(
        "all",
        f"Parameters that are sampled: one of {', '.join(KERNEL_PATTERNS)}, or a regular "
        "expression on parameter paths.",
        check=_compile_pattern,
    )
    noise_per: str = setting(
        "step",
        "Whether noise is drawn once a step, or anew for each microbatch.",
        choices=("step", "microbatch"),
    )
    sample_once: bool = setting(
        False,
        "Whether a step samples its weights once and keeps them, 2 bytes for each, and not again "
        "in every pass of a microbatch.",
    )
    target_bits: float = setting(4.0, "Bit-width that weight decay draws b_t to.", **_BITS)
    init_bits: float = setting(6.0, "Bit-width b_t of every block at the start.", **_BITS)
    granularity: str = setting(
        "block",
        "Whether each block learns a bit-width, or each matrix one for all its blocks (tensor).",
        choices=optim.GRANULARITIES,
    )
    block: tuple[int, ...] = setting(
        (32, 32), "Rows and columns of the blocks that share a bit-width.", check=blocks.check_block
    )
    dtype: str = setting(
        "bfloat16",
        "Format that sampled weights are cast to.",
        words=NAMES_IN_WORDS,
        check=as_format,
    )
    scale: str = setting(
        "ceil",
        "Scale of a block in formats of few bits: a power of two rounded up or down or of least "
        "error, or exact; the last two for rounding only.",
        choices=tuple(rule.value for rule in cast.ScaleRule),
    )
    learning_rate: float = setting(
        1e-3,
        "Highest learning rate of the bit-widths.",
        minimum=0,
    )
    schedule: str = setting(
        "weights",
        "Whether the learning rate of the bit-widths follows that of the weights, or is constant.",
        choices=("weights", "constant"),
    )
    weight_decay: float = setting(0.1, "Decay of the bit-widths towards `target_bits`.", minimum=0)
    penalty: str = setting(
        "none",
        "Term of the loss that lowers bit-widths: layer for the distance to `target_bits`, average "
        "for that of their mean to `average_bits`, size for the stored bits of a weight.",
        choices=PENALTIES,
    )
    penalty_weight: float = setting(0.1, "Factor of the penalty.", minimum=0)
    average_bits: float = setting(
        4.5, "Mean bit-width of all blocks that penalty average draws to.", **_BITS
    )
    begin_at: float = setting(
        0.0,
        "Share of the steps before which weights are cast to bfloat16 alone and bit-widths stay; 0 "
        "to begin with the method.",
        minimum=0,
        below=1,
        words="from 0 to below 1",
    )
    round_at: float = setting(
        1.0,
        "Share of the steps after which weights are rounded to `round_to` in place of the method, "
        "with gradients straight through; 1 for never.",
        above=0,
        maximum=1,
    )
    round_to: str = setting(
        "float4_e2m1fn",
        "Format that weights are rounded to after `round_at`.",
        words=NAMES_IN_WORDS,
        check=as_format,
    )
    round_share: float = setting(
        1.0,
        "Share of the blocks that a step rounds, chosen at random, where weights are rounded "
        "straight through.",
        above=0,
        maximum=1,
    )
    round_all_at: float = setting(
        1.0,
        "Share of the steps after which a step rounds all blocks, where `round_share` is below 1; "
        "1 for never.",
        above=0,
        maximum=1,
    )
    snap_at: float = setting(
        1.0,
        "Share of the steps after which bit-widths snap to formats; 1 for never.",
        minimum=0,
        maximum=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffqConfig:
    """Options of method diffq alone, which also uses `pqt.pattern`, `.noise_per` and `.block`."""

    group: int = setting(8, "Weights that share a bit-width.", minimum=1)
    init_bits: float = setting(
        8.0, "Bit-width of every group at the start, between the two limits.", above=0
    )
    min_bits: float = setting(2.0, "Lower limit of the bit-widths.", **_BITS)
    max_bits: float = setting(15.0, "Upper limit of the bit-widths.", **_BITS)
    noise: str = setting(
        "normal", "normal for N(0, 1)/2, uniform for U(-1/2, 1/2).", choices=diffq.NOISES
    )
    penalty: float = setting(
        1e-3,
        "Nats that a megabyte of the model adds to the loss; tune it by model size.",
        minimum=0,
    )
    learning_rate: float = setting(
        1e-3, "Constant learning rate of the logits, which have an Adam of their own.", minimum=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When a run counts spikes of the loss, and when it gives up."""

    skips: int = setting(
        10, "Steps in a row without a finite loss and gradient that end the run.", minimum=1
    )
    window: int = setting(
        100, "Preceding steps whose losses a spike is measured against.", minimum=1
    )
    spike_score: float = setting(
        6.0, "Standard deviations above their median from which a loss is a spike.", above=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is printed, measured and saved, and how often."""

    every: int = setting(10, "Steps between lines of the log.", minimum=1)
    validate_every: int = setting(100, "Steps between validations.", minimum=1)
    validation_batches: int = setting(32, "Batches of a validation.", minimum=1)
    sharpness_every: int = setting(
        0,
        "Steps between measurements of sharpness, on the first validation batches; 0 for none.",
        minimum=0,
    )
    checkpoint_every: int = setting(100, "Steps between checkpoints.", minimum=1)
    keep: int = setting(2, "Newest checkpoints that are kept.", minimum=1)
    keep_every: int = setting(
        0, "Checkpoints at multiples of so many steps are kept for good; 0 for none.", minimum=0
    )
    store: str = setting(
        "",
        "Folder in Google Cloud Storage that checkpoints go to in place of WORKDIR, "
        "gs://BUCKET/FOLDER; empty for WORKDIR.",
        check=_check_store,
    )
    tensorboard: bool = setting(False, "Whether to write to WORKDIR/tensorboard, too.")
    wandb: str = setting("", "Project of Weights & Biases to log to, too; empty for none.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run as a whole."""

    method: str = setting(
        "gaussws",
        "; ".join(f"{name}: {method.help}" for name, method in METHODS.items()) + ".",
        choices=tuple(METHODS),
    )
    recipe: str = setting(
        "none",
        "What to train for: a format whose recipe sets those of `method`, `pqt.round_at`, "
        "`pqt.round_to`, `pqt.round_share`, `pqt.round_all_at` and `pqt.scale` that are at their "
        "defaults.",
        choices=("none", *RECIPES),
    )
    seed: int = setting(
        0,
        "Seed of initial weights, noise and order of the data.",
        minimum=0,
        below=2**32,
        words="from 0 to 2^32 - 1",
    )
    steps: int = setting(
        1000,
        "Number of optimizer steps. With schedule constant or wsd it may change when a run is "
        "resumed before the decay.",
        minimum=1,
    )
    init_from: str = setting(
        "",
        "Hugging Face folder whose weights training starts from; empty for new weights.",
        check=check_local,
    )
    model: ModelConfig = field(metadata=about("The model's own configuration."))
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    pqt: PqtConfig = PqtConfig()
    diffq: DiffqConfig = DiffqConfig()
    watch: WatchConfig = WatchConfig()
    log: LogConfig = LogConfig()

    def to_dict(self) -> dict[str, Any]:
        """Sections and fields, as a `ConfigDict` of the same has them."""
        return to_dict(self)


def default(model: ModelConfig) -> Any:
    """Every field with its default, as a ConfigDict; a config file changes what it needs.

    The result is locked: fields can be set, and none can be added by mistyping another.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> config = default(Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128))
      >>> config.method, config.model.name, config.model.d_model
      ('gaussws', 'llama2', 64)
    """
    return to_config_dict(RunConfig(model=model))
