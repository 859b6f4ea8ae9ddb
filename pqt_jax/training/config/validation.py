# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What the fields of a training configuration can be, and which of them fit together."""

import math
import os
import re

import jax

from pqt_jax.errors import InputError
from pqt_jax.models import Llama2Config, attention
from pqt_jax.numerics import bit_width, blocks
from pqt_jax.numerics.formats import BF16, as_format
from pqt_jax.training.config import schema
from pqt_jax.training.config.field_types import Ranges, as_float32, check_ranges, check_types, shown
from pqt_jax.training.config.schema import Config, fields
from pqt_jax.transform import diffq

_BITS = (
    lambda v: bit_width.MIN_BITS <= v <= bit_width.MAX_BITS,
    f"from {bit_width.MIN_BITS:g} to {bit_width.MAX_BITS:g}",
)
_CHECKS: Ranges = {
    "method": (lambda v: v in schema.METHODS, f"one of {', '.join(schema.METHODS)}"),
    "optimizer.name": (
        lambda v: v in schema.OPTIMIZERS,
        f"one of {', '.join(schema.OPTIMIZERS)}",
    ),
    "optimizer.schedule": (
        lambda v: v in schema.SCHEDULES,
        f"one of {', '.join(schema.SCHEDULES)}",
    ),
    "pqt.noise_per": (lambda v: v in ("step", "microbatch"), "step or microbatch"),
    "seed": (lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1"),
    "optimizer.b1": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "optimizer.b2": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "model.name": (lambda v: v in schema.MODELS, f"one of {', '.join(schema.MODELS)}"),
    "model.dtype": (lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"),
    "model.param_dtype": (lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"),
    "model.attention": (lambda v: v in ("auto", "xla", "cudnn"), "auto, xla or cudnn"),
    "model.vocab_size": (
        lambda v: 256 <= v < 2**31,
        "at least 256, one for each byte, and below 2^31",
    ),
    "data.boundaries": (lambda v: v in ("token", "mask"), "token or mask"),
    "data.end_token": (lambda v: -1 <= v < 2**31, "a token, or -1 for what the index says"),
    "pqt.penalty": (lambda v: v in schema.PENALTIES, f"one of {', '.join(schema.PENALTIES)}"),
    "pqt.average_bits": _BITS,
    "pqt.snap_at": (lambda v: 0 <= v <= 1, "from 0 to 1, a share of the steps; 1 for never"),
    "pqt.target_bits": _BITS,
    "pqt.init_bits": _BITS,
    "diffq.min_bits": _BITS,
    "diffq.max_bits": _BITS,
    "diffq.noise": (lambda v: v in diffq.NOISES, f"one of {', '.join(diffq.NOISES)}"),
}
_MAY_BE_ZERO = {"optimizer.final_learning_rate", "optimizer.warmup_steps", "model.num_kv_heads"}
_MAY_BE_ZERO |= {"optimizer.weight_decay", "pqt.learning_rate", "pqt.weight_decay"}
_MAY_BE_ZERO |= {"pqt.penalty_weight", "data.loss_chunk", "mesh.data", "log.keep_every"}
_MAY_BE_ZERO |= {"diffq.penalty", "diffq.learning_rate", "log.sharpness_every"}
_PQT_CHECKS = {"pattern": re.compile, "block": blocks.check_block, "dtype": as_format}


def check(config: Config) -> None:
    """Raise InputError for the first field whose value cannot be used, naming what could be."""
    if config.model.name in schema.MODELS:
        schema.model_config(config)  # the name may have been changed to another model's
    check_types(config)
    check_ranges(config, _CHECKS, _MAY_BE_ZERO)
    if config.optimizer.warmup_steps >= config.steps:
        raise InputError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps}; it must be less than "
            f"config.steps={config.steps}"
        )
    for name in ("optimizer.final_learning_rate", "pqt.learning_rate"):
        # The schedules multiply by these ratios, in float32.
        ratio = dict(fields(config))[name] / config.optimizer.learning_rate
        if not math.isfinite(as_float32(ratio)):
            raise InputError(
                f"config.{name}={dict(fields(config))[name]!r}; it must be nearer to "
                f"config.optimizer.learning_rate={config.optimizer.learning_rate!r}"
            )
    _check_parts(config)
    model = schema.model_config(config)
    if config.data.length > model.max_length:
        raise InputError(
            f"config.data.length={config.data.length}; it must be at most "
            f"config.model.max_length={model.max_length}"
        )
    if config.data.end_token >= model.vocab_size:
        raise InputError(
            f"config.data.end_token={config.data.end_token}; it must be below "
            f"config.model.vocab_size={model.vocab_size}"
        )
    width, rest = divmod(model.d_model, model.num_heads)
    even = isinstance(model, Llama2Config)  # rotary positions turn components in pairs
    if rest or (even and width % 2):
        raise InputError(
            f"config.model.num_heads={model.num_heads}; it must divide "
            f"config.model.d_model={model.d_model}{' into heads of even size' if even else ''}"
        )
    if even and model.num_kv_heads and model.num_heads % model.num_kv_heads:
        raise InputError(
            f"config.model.num_kv_heads={model.num_kv_heads}; it must divide "
            f"config.model.num_heads={model.num_heads}"
        )
    _check_pqt(config.pqt)
    if config.method == "ste" and as_format(config.pqt.dtype) == BF16:
        raise InputError(
            f"config.pqt.dtype={config.pqt.dtype!r}; with config.method='ste' it must be what "
            "weights are rounded to, such as float6_e3m2fn"
        )
    _check_diffq(config)


def check_devices(config: Config) -> None:
    """Raise InputError for what the devices at hand cannot do; apart, since it starts them."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # of a platform that was asked for by name
        reason = " ".join(str(error).split()) or "no reason given"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(
            f"JAX finds no device of JAX_PLATFORMS={platforms}: {reason:.300}"
        ) from None
    chosen = attention.choose(schema.model_config(config), devices).implementation
    if chosen == "cudnn" and config.data.boundaries == "mask" and config.data.length % 2:
        raise InputError(
            f"config.data.length={config.data.length}; with cuDNN's attention and "
            "config.data.boundaries='mask' it must be even, or config.model.attention xla"
        )


def _check_diffq(config: Config) -> None:
    own = config.diffq
    if not own.min_bits < own.init_bits < own.max_bits:
        raise InputError(
            f"config.diffq.init_bits={own.init_bits}; it must be between "
            f"config.diffq.min_bits={own.min_bits} and config.diffq.max_bits={own.max_bits}"
        )
    if config.method != "diffq":
        return
    instead = {"penalty": "give config.diffq.penalty", "snap_at": "its bits are no formats'"}
    instead["dtype"] = "it casts nothing"
    for (name, why), none in zip(instead.items(), ("none", 1.0, "bfloat16"), strict=True):
        if config.pqt[name] != none:
            raise InputError(
                f"config.pqt.{name}={config.pqt[name]!r}; with config.method='diffq' it must be "
                f"{none}: {why}"
            )


def _check_parts(config: Config) -> None:
    """Raise InputError for parts of a step that do not make up the whole."""
    data = config.data
    if data.files and data.tokens:
        raise InputError(
            f"config.data.files={data.files!r} and config.data.tokens={data.tokens!r}; give one"
        )
    if data.batch % data.microbatches:
        raise InputError(
            f"config.data.microbatches={data.microbatches}; it must divide "
            f"config.data.batch={data.batch}"
        )
    if data.loss_chunk and data.length % data.loss_chunk:
        raise InputError(
            f"config.data.loss_chunk={data.loss_chunk}; it must divide "
            f"config.data.length={data.length}, or be 0 for all at once"
        )
    if config.pqt.noise_per == "microbatch" and data.microbatches == 1:
        raise InputError(
            "config.pqt.noise_per='microbatch'; with config.data.microbatches=1 it must be step"
        )


def _check_pqt(pqt: Config) -> None:
    for name, function in _PQT_CHECKS.items():
        try:
            function(pqt[name])
        except (ValueError, TypeError, OverflowError, re.error) as error:
            value = f"{name}={shown(pqt[name])}"
            reason = " ".join(str(error).replace(f"{name}={pqt[name]!r}", value).split())
            if name == "pattern":
                reason = f"{value}; it does not compile: {reason}"
            elif not reason.startswith(value):
                reason = f"{value}; {reason}"
            raise InputError(f"config.pqt.{reason}") from None
    if pqt.target_bits > pqt.init_bits:
        raise InputError(
            f"config.pqt.target_bits={pqt.target_bits}, config.pqt.init_bits={pqt.init_bits}; "
            "the first must be at most the second"
        )
    if pqt.snap_at < 1 and pqt.target_bits == pqt.init_bits:
        raise InputError(
            f"config.pqt.snap_at={pqt.snap_at}; bits do not move, and so cannot snap, while "
            f"config.pqt.target_bits and config.pqt.init_bits are both {pqt.init_bits}; give 1"
        )
