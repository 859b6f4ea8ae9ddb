# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The configuration of a run: its fields with their defaults, their checks, and what they mean.

A config file is Python with a function `get_config()` that returns what `default` returns, changed
where it needs to be; `cli` reads it. Each field is stated once, in `default` or as an attribute of
the model's own configuration.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from pqt_jax import bitwidth, blocks
from pqt_jax.errors import InputError
from pqt_jax.formats import as_format
from pqt_jax.models import GPT2, GPT2Config, Llama2, Llama2Config
from pqt_jax.rules import Rule

Config = Any  # a ConfigDict; its fields are not known to type checkers

METHODS = {"bf16": "none", "gaussws": "gauss", "uniform": "uniform"}  # method → kind of noise
MODELS = {"llama2": (Llama2Config, Llama2), "gpt2": (GPT2Config, GPT2)}
MAY_CHANGE = ("log.",)  # fields that a resumed run may set anew: they do not touch the training


def default(model: Llama2Config | GPT2Config) -> Config:
    """Every field with its default; a config file changes what it needs.

    The result is locked: fields can be set, and none can be added by mistyping another.

    Example:
      >>> config = default(Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128))
      >>> config.method, config.model.name, config.model.d_model
      ('gaussws', 'llama2', 64)
    """
    (name,) = (name for name, (cls, _) in MODELS.items() if isinstance(model, cls))
    return ConfigDict(
        {
            "method": "gaussws",  # bf16: the cast alone; gaussws: rounded normal R; uniform: U(±½)
            "seed": 0,  # of initial values, noise and order of the data
            "steps": 1000,
            "model": {"name": name, **dataclasses.asdict(model)},
            "data": {
                "files": "",  # glob of text files; empty: the standard library's source
                "length": 128,  # tokens in a sequence
                "batch": 16,  # sequences in a step
            },
            "optimizer": {
                "learning_rate": 1e-3,  # peak; warms up linearly, then falls by a cosine
                "final_learning_rate": 1e-4,
                "warmup_steps": 20,
                "b1": 0.9,
                "b2": 0.95,
                "weight_decay": 0.1,
                "clip_norm": 1.0,  # of the gradient of the weights
            },
            "pqt": {  # how weights are sampled, and quantized for the table at the end
                "pattern": "h/.*/kernel",  # regular expression on parameter paths
                "target_bits": 4.0,
                "init_bits": 6.0,
                "block": (32, 32),
                "dtype": "bfloat16",  # what sampled weights are cast to
                "learning_rate": 1e-3,  # of the bit-widths, following the schedule of the weights'
                "weight_decay": 0.1,  # of the bit-widths, towards target_bits
            },
            "log": {
                "every": 10,  # steps between lines
                "validate_every": 100,
                "validation_batches": 32,
                "checkpoint_every": 100,
            },
        }
    ).lock()


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field as (dotted name, value), sorted by name."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _positive(value: Any) -> bool:
    return math.isfinite(value) and value > 0


def _not_negative(value: Any) -> bool:
    return math.isfinite(value) and value >= 0


_BITS = (
    lambda v: bitwidth.MIN_BITS <= v <= bitwidth.MAX_BITS,
    f"from {bitwidth.MIN_BITS:g} to {bitwidth.MAX_BITS:g}",
)
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "steps": (lambda v: 0 < v < 2**31, "more than 0 and below 2^31"),
    "method": (lambda v: v in METHODS, f"one of {', '.join(METHODS)}"),
    "seed": (lambda v: 0 <= v < 2**32, "a whole number from 0 to 2^32 - 1"),
    "optimizer.b1": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "optimizer.b2": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "model.name": (lambda v: v in MODELS, f"one of {', '.join(MODELS)}"),
    "model.dtype": (lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"),
    "model.param_dtype": (lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"),
    "model.attention": (lambda v: v in ("xla", "cudnn"), "xla or cudnn"),
    "model.vocab_size": (lambda v: v >= 256, "at least 256, one for each byte"),
    "pqt.target_bits": _BITS,
    "pqt.init_bits": _BITS,
}
_MAY_BE_ZERO = {"optimizer.final_learning_rate", "optimizer.warmup_steps"}
_MAY_BE_ZERO |= {"optimizer.weight_decay", "pqt.learning_rate", "pqt.weight_decay"}
_PQT_CHECKS = {"pattern": re.compile, "block": blocks.check_block, "dtype": as_format}


def check(config: Config) -> None:
    """Raise InputError for the first field whose value cannot be used, naming what could be."""
    for name, value in fields(config):
        if name in _CHECKS:
            good, wanted = _CHECKS[name]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            good, wanted = _positive, "more than 0"
            if name in _MAY_BE_ZERO:
                good, wanted = _not_negative, "0 or more"
        else:
            continue
        if not good(value):
            raise InputError(f"config.{name}={value!r}; it must be {wanted}")
    if config.optimizer.warmup_steps >= config.steps:
        raise InputError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps}; it must be less than "
            f"config.steps={config.steps}"
        )
    model = model_config(config)
    if config.data.length > model.max_length:
        raise InputError(
            f"config.data.length={config.data.length}; it must be at most "
            f"config.model.max_length={model.max_length}"
        )
    width, rest = divmod(model.d_model, model.num_heads)
    even = isinstance(model, Llama2Config)  # rotary positions turn components in pairs
    if rest or (even and width % 2):
        raise InputError(
            f"config.model.num_heads={model.num_heads}; it must divide "
            f"config.model.d_model={model.d_model}{' into heads of even size' if even else ''}"
        )
    if model.attention == "cudnn" and jax.default_backend() != "gpu":
        raise InputError(
            "config.model.attention='cudnn'; it needs a GPU, and JAX finds none; give xla"
        )
    _check_pqt(config.pqt)


def _check_pqt(pqt: Config) -> None:
    for name, function in _PQT_CHECKS.items():
        try:
            function(pqt[name])
        except (ValueError, TypeError, OverflowError, re.error) as error:
            value = f"{name}={pqt[name]!r}"
            reason = " ".join(str(error).split())
            if name == "pattern":
                reason = f"{value}; it does not compile: {reason}"
            elif not reason.startswith(value):
                reason = f"{value}; {reason}"
            raise InputError(f"config.pqt.{reason}") from None
    if pqt.target_bits > pqt.init_bits:
        raise InputError(
            f"config.pqt.target_bits={pqt.target_bits}; it must be at most "
            f"config.pqt.init_bits={pqt.init_bits}"
        )


def model_config(config: Config) -> Llama2Config | GPT2Config:
    """The model's own configuration."""
    options = dict(config.model)
    cls, _ = MODELS[options.pop("name")]
    known = {field.name for field in dataclasses.fields(cls)}
    if wrong := known ^ set(options):
        raise InputError(
            f"config.model.name={config.model.name!r}, yet config.model.{min(wrong)} is no field "
            "of it, or missing; the config file decides which model it is"
        )
    return cls(**options)


def rules(config: Config) -> list[Rule]:
    """The rules of the method. Those of bf16 cast to bfloat16 without noise, and learn no bits."""
    cast = {"dtype": "bfloat16"} if config.method == "bf16" else {}
    return _rules(config, noise=METHODS[config.method], **cast)


def quantization_rules(config: Config) -> list[Rule]:
    """The rules that say what is quantized at the end: the same for every method."""
    return _rules(config, noise="gauss")


def _rules(config: Config, **special: Any) -> list[Rule]:
    options = {name: config.pqt[name] for name in ("target_bits", "init_bits", "block", "dtype")}
    return [Rule(config.pqt.pattern, **options | special)]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields that differ between two saved configurations, one description each."""
    old, new = dict(fields(old)), dict(fields(new))
    return [
        f"config.{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name) and not name.startswith(MAY_CHANGE)
    ]


def as_json(config: Config) -> str:
    """The configuration as JSON."""
    return json.dumps(config.to_dict(), indent=2)


def digest(config: Config) -> str:
    """Twelve hexadecimal digits that stand for the configuration, fields of `log` left out."""
    relevant = {k: v for k, v in fields(config) if not k.startswith(MAY_CHANGE)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]


def describe(config: Config) -> str:
    """Every field with its value, one a line, as it would be given on the command line."""
    return "\n".join(f"config.{name}={value}" for name, value in fields(config))
