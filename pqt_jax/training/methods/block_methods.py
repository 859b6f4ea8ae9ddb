# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The methods in which the wrapped model samples its own weights, block by block.

bf16       the cast to bfloat16 alone
gaussws    rounded normal noise, learned bit-widths
uniform    noise U(−½, ½), learned bit-widths
ste        rounding to `pqt.dtype`, gradients straight through
"""

import functools
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from pqt_jax.models import build_model
from pqt_jax.models.registry import model_config
from pqt_jax.numerics import bit_width
from pqt_jax.numerics.formats import BF16, FP32, as_format
from pqt_jax.quantization import sizes
from pqt_jax.training.methods.method import BitsOptimizer, Conflict, Method, Penalty, Schedule
from pqt_jax.training.methods.sampling_rules import quantization_rules, sampling_rules
from pqt_jax.transform import bit_state
from pqt_jax.transform.rules import Rule, resolve
from pqt_jax.transform.tree_paths import paths_and_leaves

if TYPE_CHECKING:  # the schema imports the methods, for their names
    from pqt_jax.training.config.schema import RunConfig


def _make_method(name: str, help: str, noise: str, cast: dict[str, Any] | None = None) -> Method:
    """Make the record of one method; `cast` holds options of its rules that override the config."""

    def make_rules(config: "RunConfig") -> list[Rule]:
        share = {"round_share": config.pqt.round_share} if name == "ste" else {}
        return sampling_rules(config, noise=noise, **share, **(cast or {}))

    def make_model(config: "RunConfig", rngs: nnx.Rngs) -> nnx.Module:
        return build_model(model_config(config), make_rules(config), rngs=rngs)

    def bit_widths(config: "RunConfig", params: nnx.State) -> dict[str, Any]:
        return bit_state.bit_widths(params, make_rules(config))

    learns_bits = noise != "none"
    return Method(
        name=name,
        help=help,
        learns_bits=learns_bits,
        make_rules=make_rules,
        make_model=make_model,
        bit_widths=bit_widths,
        make_penalty=functools.partial(_make_penalty, bit_widths if learns_bits else None),
        make_bits_optimizer=_make_bits_optimizer,
        find_conflict=_find_ste_conflict if name == "ste" else _find_no_conflict,
        defaults={"pqt.dtype": "float6_e3m2fn"} if name == "ste" else {},
    )


def _make_penalty(bit_widths: Any, config: "RunConfig") -> Penalty | None:
    """The term that `config.pqt.penalty` adds to the loss; bit-widths decay without it, too.

        layer      Σ_layers mean_B |b_t − b_target|       `bit_width.layer_loss`
        average    (mean_B b_t − average_bits)²           `bit_width.average_loss`
        size       mean bits of a stored weight           `sizes.mean_bits`

    Args:
      bit_widths: as in `Method`; None where no bits are learned.
      config: the run's configuration.

    Returns:
      `params -> float32 scalar`, times `penalty_weight`; None without a penalty.
    """
    pqt = config.pqt
    if bit_widths is None or pqt.penalty == "none":
        return None

    def penalty(params):
        b_t = bit_widths(config, params)
        if pqt.penalty == "layer":
            return pqt.penalty_weight * bit_width.layer_loss(b_t, pqt.target_bits)
        if pqt.penalty == "average":
            return pqt.penalty_weight * bit_width.average_loss(b_t, pqt.average_bits)
        b_t, shapes = paths_and_leaves(b_t), paths_and_leaves(bit_state.weights(params))
        specs = resolve(quantization_rules(config), shapes)
        counts = {path: sizes.weights_per_block(shapes[path].shape, specs[path]) for path in b_t}
        return pqt.penalty_weight * sizes.mean_bits(b_t, counts)

    return penalty


def _make_bits_optimizer(
    config: "RunConfig", schedule: Schedule, snap: int | None
) -> BitsOptimizer:
    """AdamW for the bits, at a fixed ratio to the weights' rate; 0 after the bits have snapped."""
    ratio = config.pqt.learning_rate / config.optimizer.learning_rate

    def learning_rate(step):
        follows = config.pqt.schedule == "weights"
        rate = ratio * schedule(step) if follows else jnp.float32(config.pqt.learning_rate)
        return rate if snap is None else jnp.where(step >= snap, 0.0, rate)

    return BitsOptimizer(learning_rate, config.pqt.weight_decay)


def _find_no_conflict(config: "RunConfig") -> Conflict | None:
    return None


def _find_ste_conflict(config: "RunConfig") -> Conflict | None:
    fmt = as_format(config.pqt.dtype)
    if fmt not in (BF16, FP32):
        return None
    why = "BF16 is method bf16" if fmt == BF16 else "FP32 rounds nothing"
    wanted = f"another format with config.method='ste', such as fp6_e3m2: {why}"
    return Conflict("pqt.dtype", config.pqt.dtype, wanted)


METHODS = (
    _make_method("bf16", "cast alone", "none", {"dtype": "bfloat16"}),
    _make_method("gaussws", "rounded normal noise", "gauss"),
    _make_method("uniform", "noise U(-1/2, 1/2)", "uniform"),
    _make_method("ste", "rounding to `pqt.dtype` with straight-through gradients", "none"),
)
