# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What the fields of a configuration can be: their types, their ranges, and what fits together."""

import difflib
import math
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pqt_jax import bitwidth, blocks, diffq
from pqt_jax import config as configs
from pqt_jax.config import Config, fields
from pqt_jax.errors import InputError
from pqt_jax.formats import BF16, as_format
from pqt_jax.models import Llama2Config, attention

Ranges = Mapping[str, tuple[Callable[[Any], bool], str]]

_BITS = (
    lambda v: bitwidth.MIN_BITS <= v <= bitwidth.MAX_BITS,
    f"from {bitwidth.MIN_BITS:g} to {bitwidth.MAX_BITS:g}",
)
_CHECKS: Ranges = {
    "method": (lambda v: v in configs.METHODS, f"one of {', '.join(configs.METHODS)}"),
    "optimizer.name": (
        lambda v: v in configs.OPTIMIZERS,
        f"one of {', '.join(configs.OPTIMIZERS)}",
    ),
    "optimizer.schedule": (
        lambda v: v in configs.SCHEDULES,
        f"one of {', '.join(configs.SCHEDULES)}",
    ),
    "pqt.noise_per": (lambda v: v in ("step", "microbatch"), "step or microbatch"),
    "seed": (lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1"),
    "optimizer.b1": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "optimizer.b2": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "model.name": (lambda v: v in configs.MODELS, f"one of {', '.join(configs.MODELS)}"),
    "model.dtype": (lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"),
    "model.param_dtype": (lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"),
    "model.attention": (lambda v: v in ("auto", "xla", "cudnn"), "auto, xla or cudnn"),
    "model.vocab_size": (
        lambda v: 256 <= v < 2**31,
        "at least 256, one for each byte, and below 2^31",
    ),
    "data.boundaries": (lambda v: v in ("token", "mask"), "token or mask"),
    "data.end_token": (lambda v: -1 <= v < 2**31, "a token, or -1 for what the index says"),
    "pqt.penalty": (lambda v: v in configs.PENALTIES, f"one of {', '.join(configs.PENALTIES)}"),
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
_SECTIONS = (
    "",
    "model",
    "data",
    "mesh",
    "optimizer",
    "pqt",
    "diffq",
    "watch",
    "log",
)  # the likelier meant, the earlier
_PQT_CHECKS = {"pattern": re.compile, "block": blocks.check_block, "dtype": as_format}


def check_types(
    config: Config, default: Callable[[Any], Config] = configs.default
) -> dict[str, Any]:
    """Check that a config has the fields and types of its default.

    Args:
      config: of a run.
      default: the model's own configuration → every field with its default.

    Returns:
      The default of each field, of a model of size one. Where that is a number or a tuple, the
      config may have a whole number or a list.

    Raises:
      InputError: if it has not.
    """
    found = dict(fields(config))
    name = found.get("model.name")
    if name not in tuple(configs.MODELS):
        raise InputError(
            f"config.model.name={name!r}; it must be one of {', '.join(configs.MODELS)}"
        )
    cls, _ = configs.MODELS[name]
    known = dict(fields(default(cls(**dict.fromkeys(configs.shape_fields(cls), 1)))))
    for field in found:
        if field not in known and not any(other.startswith(f"{field}.") for other in known):
            raise InputError(f"config.{field}: no such field; {hint(field, list(known))}")
    for field, like in known.items():
        if field not in found:
            start = f"{default.__module__}.default"
            raise InputError(f"config.{field} is missing; start from {start}")
        value = found[field]
        good = isinstance(value, type(like)) and isinstance(value, bool) == isinstance(like, bool)
        good |= isinstance(like, float) and type(value) is int
        good |= isinstance(like, tuple) and isinstance(value, list)
        parts = value if isinstance(value, tuple | list) else (value,)
        bits = max((part.bit_length() for part in parts if isinstance(part, int)), default=0)
        if bits > 1000:
            raise InputError(f"config.{field}: a whole number of {bits} bits; give a smaller one")
        if not good:
            raise InputError(f"config.{field}={value!r}; it must be {wanted(like)}")
    return known


def wanted(like: Any) -> str:
    """What a field of this default takes, in words."""
    kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return kind.get(type(like), f"something like {like!r}")


def hint(name: str, known: Sequence[str]) -> str:
    """Which field was meant by a name that is none; or which fields there are, or its section has.

    Args:
      name: dotted, as given.
      known: the fields.
    """
    ratio = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()  # noqa: E731
    section, _, last = name.lower().rpartition(".")
    inside = [field for field in known if section and field.startswith(f"{section}.")] or known
    by_section = sorted(inside, key=_section)
    near = difflib.get_close_matches(last, {f.rpartition(".")[2] for f in inside})
    if candidates := [f for f in by_section if f.rpartition(".")[2] in near]:
        parts = lambda f: zip((last, section), f.rpartition(".")[::-2], strict=True)  # noqa: E731
        likest = max(candidates, key=lambda f: [ratio(a, b) for a, b in parts(f)])
        return f"did you mean config.{likest}?"
    return f"there are {', '.join(sorted(inside))}"


def _section(field: str) -> int:
    name = field.rpartition(".")[0]
    return _SECTIONS.index(name) if name in _SECTIONS else len(_SECTIONS)  # as of a sweep


def check_ranges(config: Config, ranges: Ranges, may_be_zero: Container[str] = ()) -> None:
    """Raise InputError for the first field whose value is out of its range.

    Args:
      config: whose fields have their types.
      ranges: dotted field → (whether a value can be used, what can, in words).
      may_be_zero: numbers among the other fields that may be 0; the rest must be more.
    """
    for name, value in fields(config):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in ranges:
            good, range_ = ranges[name]
        elif number:
            lowest = "0 or more" if name in may_be_zero else "more than 0"
            good, range_ = _above_zero(name in may_be_zero), f"finite and {lowest}"
            if isinstance(value, int):  # JAX counts in int32
                range_ = f"{lowest} and below 2^31"
        else:
            continue
        if not good(value):
            raise InputError(f"config.{name}={_shown(value)}; it must be {range_}")
        if isinstance(value, float) and not good(_as_float32(value)):
            raise InputError(
                f"config.{name}={value!r}; it must be {range_}, and in float32 it is "
                f"{_as_float32(value):g}"
            )


def check(config: Config) -> None:
    """Raise InputError for the first field whose value cannot be used, naming what could be."""
    if config.model.name in configs.MODELS:
        configs.model_config(config)  # the name may have been changed to another model's
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
        if not math.isfinite(_as_float32(ratio)):
            raise InputError(
                f"config.{name}={dict(fields(config))[name]!r}; it must be nearer to "
                f"config.optimizer.learning_rate={config.optimizer.learning_rate!r}"
            )
    _check_parts(config)
    model = configs.model_config(config)
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
    chosen = attention.choose(configs.model_config(config), jax.devices()).implementation
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


def _shown(value: Any) -> str:
    """A value as a message has it: 1e30, which became a whole number, without its 31 digits."""
    short = lambda digits: f"{float(digits[0]):g}"  # noqa: E731
    text = repr(value)
    return text if isinstance(value, str) else re.sub(r"(?<![.\d])\d{16,}", short, text)


def _above_zero(or_zero: bool) -> Callable[[Any], bool]:
    def good(value: int | float) -> bool:
        small = value < 2**31 if isinstance(value, int) else value < math.inf
        return small and (value > 0 or (or_zero and value == 0))

    return good


def _as_float32(value: float) -> float:
    """The value as training has it; XLA takes what is below the smallest normal number for 0."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded


def _check_pqt(pqt: Config) -> None:
    for name, function in _PQT_CHECKS.items():
        try:
            function(pqt[name])
        except (ValueError, TypeError, OverflowError, re.error) as error:
            value = f"{name}={_shown(pqt[name])}"
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
