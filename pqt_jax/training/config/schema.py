# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The configuration of a run: its fields with their defaults, and what they mean.

A config file is Python with a function `get_config()` that returns what `default` returns, changed
where it needs to be; `cli` reads it, and `checks` says what can be used. Each field is stated once,
in `default` or as an attribute of the model's own configuration.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from pqt_jax.errors import InputError
from pqt_jax.models import GPT2, GPT2Config, Llama2, Llama2Config
from pqt_jax.transform.rules import Rule

Config = Any  # a ConfigDict; its fields are not known to type checkers

PENALTIES = ("none", "layer", "average", "size")
# → noise of the rules; None: it has none, and samples outside the model
METHODS = {"bf16": "none", "gaussws": "gauss", "uniform": "uniform", "ste": "none", "diffq": None}
OPTIMIZERS, SCHEDULES = ("adamw", "adam_mini"), ("cosine", "linear")
KERNELS = {  # names that config.pqt.pattern may have, after what they are of a layer
    "all": "h/.*/kernel",
    "attention": "h/attn/.*/kernel",
    "mlp": "h/mlp/.*/kernel",
    "qk": "h/attn/[qk]/kernel",
    "qkv": "h/attn/[qkv]/kernel",
    "out": "h/attn/out/kernel",
    "up": "h/mlp/(gate|up)/kernel",
    "down": "h/mlp/down/kernel",
    "out_down": "h/(attn/out|mlp/down)/kernel",
}
MODELS = {"llama2": (Llama2Config, Llama2), "gpt2": (GPT2Config, GPT2)}
# What a resumed run may set anew, since it is the same training, up to the order of sums.
MAY_CHANGE = ("log.", "mesh.", "watch.", "model.attention")


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
            # bf16: the cast alone; gaussws: rounded normal R; uniform: U(±½); ste: rounding to
            # pqt.dtype (give it one, such as float6_e3m2fn), gradients straight through; diffq:
            # DiffQ as published, by its own section
            "method": "gaussws",
            "seed": 0,  # of initial values, noise and order of the data
            "steps": 1000,
            "init_from": "",  # Hugging Face folder whose weights to start from; empty: new ones
            "model": {"name": name, **dataclasses.asdict(model)},
            "data": {
                "files": "",  # glob of text files; empty: the standard library's source
                "tokens": "",  # instead: folder of `data.prepare`, or glob of .bin files
                "boundaries": "token",  # sequences run on; or mask: each document by itself
                "end_token": -1,  # that ends a document; -1: what the index of `tokens` says
                "length": 128,  # tokens in a sequence
                "batch": 16,  # sequences in a step
                "microbatches": 1,  # parts of a step, one after the other; they divide the batch
                "loss_chunk": 0,  # positions whose logits are made at once; 0: all
            },
            "mesh": {"data": 0, "fsdp": 1, "tensor": 1},  # devices; data=0: all that are left
            "optimizer": {
                "name": "adamw",  # or adam_mini
                "schedule": "cosine",  # of the fall after a linear warm-up; or linear
                "learning_rate": 1e-3,  # at the top
                "final_learning_rate": 1e-4,
                "warmup_steps": 20,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.1,
                "clip_norm": 1.0,  # of the gradient of the weights
            },
            "pqt": {  # how weights are sampled, and quantized for the table at the end
                "pattern": "all",  # one of KERNELS, or a regular expression on parameter paths
                "noise_per": "step",  # or microbatch: noise that each of them draws anew
                "target_bits": 4.0,
                "init_bits": 6.0,
                "block": (32, 32),
                "dtype": "bfloat16",  # what sampled weights are cast to
                "learning_rate": 1e-3,  # of the bit-widths, following the schedule of the weights'
                "weight_decay": 0.1,  # of the bit-widths, towards target_bits
                "penalty": "none",  # on bit-widths, in the loss: see `bit_state.make_penalty`
                "penalty_weight": 0.1,
                "average_bits": 4.5,  # that penalty "average" draws the mean of all blocks to
                "snap_at": 1.0,  # share of the steps after which bits snap to formats; 1: never
            },
            "watch": {
                "skips": 10,  # steps in a row without a finite loss and gradient that end the run
                "window": 100,  # steps before one, whose losses say what a spike is
                "spike_score": 6.0,  # standard deviations above their median, see `watch`
            },
            # Of method diffq alone, where of pqt only pattern, noise_per and, for the table, block
            # count: its bits have no target, no decay and no schedule, and nothing is cast.
            "diffq": {
                "group": 8,  # weights that share a bit-width
                "init_bits": 8.0,
                "min_bits": 2.0,
                "max_bits": 15.0,
                "noise": "normal",  # N(0, 1)/2; or uniform: U(±½)
                # Nats per MB of the model, added to the loss; ours, to be set by size of the model.
                "penalty": 1e-3,
                "learning_rate": 1e-3,  # of the logits' own Adam; constant
            },
            "log": {
                "every": 10,  # steps between lines
                "validate_every": 100,
                "validation_batches": 32,
                # Steps between measurements of sharpness, on the first of these; 0: none.
                "sharpness_every": 0,
                "checkpoint_every": 100,
                "keep": 2,  # newest checkpoints that are kept
                "keep_every": 0,  # and those of multiples of so many steps, for good; 0: none
                "tensorboard": False,  # also to WORKDIR/tensorboard
                "wandb": "",  # also to this project of Weights & Biases; empty: to none
            },
        },
        type_safe=False,  # `checked_fields` names the field and what it takes
    ).lock()


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field as (dotted name, value), sorted by name."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


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
    """The rules of the method. Those of bf16 and ste cast without noise, and learn no bits."""
    if METHODS[config.method] is None:
        return []
    cast = {"dtype": "bfloat16"} if config.method == "bf16" else {}
    return _rules(config, noise=METHODS[config.method], **cast)


def quantization_rules(config: Config) -> list[Rule]:
    """The rules that say what is quantized at the end: the same for every method."""
    return _rules(config, noise="gauss")


def _rules(config: Config, **special: Any) -> list[Rule]:
    options = {name: config.pqt[name] for name in ("target_bits", "init_bits", "block", "dtype")}
    pattern: str = config.pqt.pattern
    return [Rule(KERNELS.get(pattern, pattern), **options | special)]


def shape_fields(cls: type[Llama2Config] | type[GPT2Config]) -> list[str]:
    """The fields of a model's configuration that have no default."""
    return [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the default of every field that is younger than it.

    Example:
      >>> saved = default(Llama2Config(256, 64, 2, 4, 128)).to_dict()
      >>> del saved["model"]["remat"], saved["mesh"]
      >>> completed(saved)["model"]["remat"], completed(saved)["mesh"]["data"]
      (False, 0)

    Args:
      saved: what was read from JSON.

    Returns:
      The same with more fields, as JSON would have them; as it was if it names no model's shape.
    """
    model = saved.get("model")
    if not isinstance(model, dict) or model.get("name") not in tuple(MODELS):
        return saved
    cls, _ = MODELS[model["name"]]
    if not (shape := set(shape_fields(cls))) <= model.keys():
        return saved
    like = default(cls(**{name: model[name] for name in shape}))
    return _over(json.loads(as_json(like)), saved)


def _over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values by name, in sections, and the defaults where there are none."""
    merged = {**defaults, **values}
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(merged[name], dict):
            merged[name] = _over(value, merged[name])
    return merged


def differences(
    old: dict[str, Any], new: dict[str, Any], may: tuple[str, ...] = MAY_CHANGE
) -> list[str]:
    """Fields that differ between two saved configurations, one description each.

    One that an older version has saved without a field is taken to have its default.

    Args:
      old, new: the configurations.
      may: what the names of fields begin with that may differ.
    """
    old, new = dict(fields(completed(old))), dict(fields(completed(new)))
    return [
        f"config.{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name) and not name.startswith(may)
    ]


def as_json(config: Config) -> str:
    """The configuration as JSON."""
    return json.dumps(config.to_dict(), indent=2)


def digest(config: Config) -> str:
    """Twelve hexadecimal digits that stand for the configuration without `MAY_CHANGE`."""
    relevant = {k: v for k, v in fields(config) if not k.startswith(MAY_CHANGE)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]


def describe(config: Config) -> str:
    """Every field with its value, one a line, as it would be given on the command line."""
    return "\n".join(f"config.{name}={value}" for name, value in fields(config))
