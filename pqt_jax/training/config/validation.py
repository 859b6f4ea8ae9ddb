# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Checks between fields of a configuration, and against the devices.

The range of each field is part of its declaration, in `schema` and in the model's configuration.
"""

import itertools
import math
import os
from collections.abc import Collection
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh

from pqt_jax.errors import InputError
from pqt_jax.models import Llama2Config, ModelConfig, attention, get_spec, partitioning
from pqt_jax.models.registry import model_config
from pqt_jax.numerics.cast import ScaleRule
from pqt_jax.numerics.formats import BF16, as_format
from pqt_jax.training.config.field_values import as_float32
from pqt_jax.training.config.fields import check_ranges
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods import get_method, snap_step
from pqt_jax.transform.recipes import RECIPES, first_step


def check(config: RunConfig, given: Collection[str] = ()) -> None:
    """Check the range of every field, then the rules between fields.

    Args:
      config: the run's configuration.
      given: dotted names of the fields that the command line gives.

    Raises:
      InputError: for the first value that cannot be used; it names the field and the accepted
        values.
    """
    check_ranges(config)
    _check_schedule(config)
    _check_data(config)
    check_model(config.model)
    _check_recipe(config)
    _check_pqt(config)
    if "pqt.round_to" in given and config.pqt.round_at == 1:
        raise InputError(
            f"config.pqt.round_to={config.pqt.round_to!r} needs config.pqt.round_at below 1; the "
            f"format of method {config.method} is config.pqt.dtype"
        )
    _check_diffq(config)
    _check_method(config)


def check_devices(config: RunConfig) -> None:
    """Check the fields that depend on the devices. Unlike `check`, this starts JAX.

    Raises:
      InputError: if JAX has no device, or they cannot compute what the config asks for.
    """
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names a missing platform
        reason = " ".join(str(error).split()) or "no reason given"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(
            f"JAX finds no device of JAX_PLATFORMS={platforms}: {reason:.300}"
        ) from None
    chosen = attention.choose(model_config(config), devices).implementation
    if chosen == "cudnn" and config.data.boundaries == "mask" and config.data.length % 2:
        raise InputError(
            f"config.data.length={config.data.length}; with cuDNN's attention and "
            "config.data.boundaries='mask' it must be even, or config.model.attention xla"
        )


def check_mesh(config: RunConfig, mesh: Mesh | None) -> None:
    """Check that the mesh divides the batch and the model.

    Args:
      config: the run's configuration.
      mesh: the device mesh; None for one device.

    Raises:
      InputError: if it does not; the message names the field.
    """
    if mesh is None:
        return
    splits = math.prod(mesh.shape[name] for name in partitioning.BATCH)
    sequences = config.data.batch // config.data.microbatches
    if sequences % splits:
        of = " / config.data.microbatches" if config.data.microbatches > 1 else ""
        raise InputError(
            f"config.data.batch{of}={sequences}; it must be a multiple of {splits}, the devices "
            "along config.mesh.data and config.mesh.fsdp"
        )
    for name in ("num_heads", "d_ff"):
        value, tensor = getattr(config.model, name), mesh.shape["tensor"]
        if value % tensor:
            raise InputError(
                f"config.mesh.tensor={tensor}; it must divide config.model.{name}={value}"
            )


def _refuse(name: str, value: Any, wanted: str) -> NoReturn:
    raise InputError(f"config.{name}={value!r}; it must be {wanted}")


def _check_schedule(config: RunConfig) -> None:
    opt = config.optimizer
    if opt.warmup_steps >= config.steps:
        wanted = f"less than config.steps={config.steps}"
        _refuse("optimizer.warmup_steps", opt.warmup_steps, wanted)
    if opt.schedule == "wsd" and opt.decay_share > 1 - opt.warmup_steps / config.steps:
        longest = 1 - opt.warmup_steps / config.steps
        wanted = f"at most {longest:g}, since config.optimizer.warmup_steps={opt.warmup_steps}"
        _refuse("optimizer.decay_share", opt.decay_share, wanted)
    # The schedules multiply by the ratios of these rates to the highest one, in float32.
    rates = {
        "optimizer.final_learning_rate": opt.final_learning_rate,
        "pqt.learning_rate": config.pqt.learning_rate,
    }
    for name, rate in rates.items():
        if not math.isfinite(as_float32(rate / opt.learning_rate)):
            wanted = f"nearer to config.optimizer.learning_rate={opt.learning_rate!r}"
            _refuse(name, rate, wanted)


def _check_data(config: RunConfig) -> None:
    data, model = config.data, config.model
    if data.files and data.tokens:
        raise InputError(
            f"config.data.files={data.files!r} and config.data.tokens={data.tokens!r}; give one"
        )
    if not data.tokens and model.vocab_size < 256:
        wanted = "256 or more, since text without config.data.tokens is read as bytes"
        _refuse("model.vocab_size", model.vocab_size, wanted)
    if data.batch % data.microbatches:
        wanted = f"a divisor of config.data.batch={data.batch}"
        _refuse("data.microbatches", data.microbatches, wanted)
    if data.loss_chunk and data.length % data.loss_chunk:
        wanted = f"a divisor of config.data.length={data.length}, or 0 for all at once"
        _refuse("data.loss_chunk", data.loss_chunk, wanted)
    if config.pqt.noise_per == "microbatch" and data.microbatches == 1:
        _refuse("pqt.noise_per", "microbatch", "step with config.data.microbatches=1")
    if config.pqt.sample_once and config.pqt.noise_per == "microbatch":
        _refuse("pqt.sample_once", True, "False with config.pqt.noise_per='microbatch'")
    if config.pqt.sample_once and data.microbatches == 1:
        _refuse("pqt.sample_once", True, "False with config.data.microbatches=1")
    if data.length > model.max_length:
        wanted = f"at most config.model.max_length={model.max_length}"
        _refuse("data.length", data.length, wanted)
    if data.end_token >= model.vocab_size:
        wanted = f"below config.model.vocab_size={model.vocab_size}"
        _refuse("data.end_token", data.end_token, wanted)


def check_model(model: ModelConfig) -> None:
    """Check the fields of a model against each other.

    Raises:
      InputError: for the first one that does not fit.
    """
    given = getattr(model, "head_dim", 0)
    if not given and model.d_model % model.num_heads:
        wanted = f"a divisor of config.model.d_model={model.d_model}"
        _refuse("model.num_heads", model.num_heads, wanted)
    if model.head_width % 2 and get_spec(model).rotary:  # which turns pairs of components
        if given:
            _refuse("model.head_dim", given, "an even number")
        wanted = f"a divisor of config.model.d_model={model.d_model} that makes heads of even size"
        _refuse("model.num_heads", model.num_heads, wanted)
    if model.num_heads % model.kv_heads:
        wanted = f"a divisor of config.model.num_heads={model.num_heads}, or 0 for as many"
        _refuse("model.num_kv_heads", model.kv_heads, wanted)
    if isinstance(model, Llama2Config):
        _check_rotary(model)


def _check_rotary(model: Llama2Config) -> None:
    low, high = model.rope_low_freq_factor, model.rope_high_freq_factor
    if high <= low:
        _refuse(
            "model.rope_high_freq_factor", high, f"above config.model.rope_low_freq_factor={low}"
        )
    if model.rope_scaling == "none" and model.rope_factor != 1:
        wanted = "1 with config.model.rope_scaling='none'; linear and llama3 divide by it"
        _refuse("model.rope_factor", model.rope_factor, wanted)


def _check_pqt(config: RunConfig) -> None:
    pqt = config.pqt
    if pqt.target_bits > pqt.init_bits:
        wanted = f"at most config.pqt.init_bits={pqt.init_bits}"
        _refuse("pqt.target_bits", pqt.target_bits, wanted)
    if pqt.snap_at < 1 and pqt.target_bits == pqt.init_bits:
        wanted = (
            "1 where config.pqt.target_bits and config.pqt.init_bits are the same, here "
            f"{pqt.init_bits}: bits that do not move cannot snap"
        )
        _refuse("pqt.snap_at", pqt.snap_at, wanted)
    samples = get_method(config).learns_bits and as_format(pqt.dtype).exponent_bits < 8
    if samples and pqt.scale not in (ScaleRule.CEIL, ScaleRule.FLOOR):
        wanted = f"ceil or floor with noise and config.pqt.dtype={pqt.dtype!r}"
        _refuse("pqt.scale", pqt.scale, wanted)
    if pqt.begin_at and config.method == "bf16":
        wanted = "0 with config.method='bf16', which needs no begin"
        _refuse("pqt.begin_at", pqt.begin_at, wanted)
    if pqt.round_at <= pqt.begin_at:
        _refuse("pqt.round_at", pqt.round_at, f"above config.pqt.begin_at={pqt.begin_at}")
    if pqt.round_at < 1 and as_format(pqt.round_to).bits >= BF16.bits:
        wanted = f"a format of fewer bits with config.pqt.round_at={pqt.round_at}, such as fp4_e2m1"
        _refuse("pqt.round_to", pqt.round_to, wanted)
    if pqt.round_share < 1 and pqt.round_at == 1 and config.method != "ste":
        wanted = f"1 with config.method={config.method!r} and config.pqt.round_at=1, which round no"
        _refuse("pqt.round_share", pqt.round_share, f"{wanted} blocks straight through")
    if pqt.round_all_at < 1:
        _check_round_all_at(config)
    _check_phases(config)


def _check_phases(config: RunConfig) -> None:
    """Each phase that is asked for must have a step."""
    pqt = config.pqt
    asked = {"begin_at": pqt.begin_at > 0, "round_at": pqt.round_at < 1}
    asked["round_all_at"] = pqt.round_share < 1 and pqt.round_all_at < 1
    begins = {name: getattr(pqt, name) for name, is_asked in asked.items() if is_asked}
    shares = sorted({0.0, *begins.values(), 1.0})

    def all_have_steps(steps: int) -> bool:
        return all(a < b for a, b in itertools.pairwise(first_step(x, steps) for x in shares))

    if not all_have_steps(config.steps):
        ends = 0.5 / min(shares[1], 1 - shares[-2])  # in fewer steps the first or last has none
        fewest = next(filter(all_have_steps, itertools.count(max(config.steps, int(ends)))))
        given = " and ".join(f"config.pqt.{name}={share}" for name, share in begins.items())
        _refuse("steps", config.steps, f"at least {fewest} for a step in each phase of {given}")
    if snap_step(config) == config.steps:
        wanted = (
            f"at most {1 - 1 / config.steps:.9g} in config.steps={config.steps}, or 1 for never"
        )
        _refuse("pqt.snap_at", pqt.snap_at, wanted)


def _check_round_all_at(config: RunConfig) -> None:
    """A share of the blocks must be rounded before all are."""
    pqt, begin = config.pqt, "begin_at" if config.method == "ste" else "round_at"
    if pqt.round_share == 1:
        wanted = "1 with config.pqt.round_share=1, which leaves no block out"
        _refuse("pqt.round_all_at", pqt.round_all_at, wanted)
    if pqt.round_share < 1 and pqt.round_all_at <= getattr(pqt, begin):
        wanted = f"above config.pqt.{begin}={getattr(pqt, begin)}, or config.pqt.round_share 1"
        _refuse("pqt.round_all_at", pqt.round_all_at, wanted)


def _check_recipe(config: RunConfig) -> None:
    """The other fields must leave the recipe what it is named for."""
    if config.recipe == "none":
        return
    pqt, dtype = config.pqt, RECIPES[config.recipe].dtype
    if as_format(pqt.round_to) != as_format(dtype):
        wanted = f"{dtype} with config.recipe={config.recipe!r}"
        _refuse("pqt.round_to", pqt.round_to, wanted)
    if pqt.round_at == 1:
        wanted = f"below 1 with config.recipe={config.recipe!r}, which rounds at last"
        _refuse("pqt.round_at", pqt.round_at, wanted)


def _check_diffq(config: RunConfig) -> None:
    options = config.diffq
    if not options.min_bits < options.init_bits < options.max_bits:
        wanted = (
            f"between config.diffq.min_bits={options.min_bits} and "
            f"config.diffq.max_bits={options.max_bits}"
        )
        _refuse("diffq.init_bits", options.init_bits, wanted)


def _check_method(config: RunConfig) -> None:
    if conflict := get_method(config).find_conflict(config):
        _refuse(*conflict)
