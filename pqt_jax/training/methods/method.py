# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""`Method`: everything in which one method of training differs from another."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from pqt_jax.transform.rules import Rule

if TYPE_CHECKING:  # the schema imports the methods, for their names
    from pqt_jax.training.config.schema import RunConfig

Sampler = Callable[[nnx.State, jax.Array], nnx.State]  # (parameters, step's key) → ŵ
Penalty = Callable[[nnx.State], jax.Array]  # parameters → float32 scalar
Schedule = Callable[[Any], Any]  # step → learning rate


class Conflict(NamedTuple):
    """A field whose value a method cannot use.

    Attributes:
      field: dotted name, without "config.".
      value: the field's value.
      wanted: what the field must be, in words.
    """

    field: str
    value: Any
    wanted: str


class BitsOptimizer(NamedTuple):
    """The rate and the decay of the bit-widths' optimizer.

    Attributes:
      learning_rate: a constant, or a function of the step.
      weight_decay: decay of b_i towards 0.
    """

    learning_rate: float | Schedule
    weight_decay: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One method of training, by the name in `config.method`.

    Attributes:
      name: the method's name.
      help: a few words about it, for `--help` and the documentation.
      learns_bits: whether bit-widths are trained.
      make_rules: config → rules that the model is wrapped by; empty for a bare model.
      make_model: (config, rngs) → the model as it is trained, its bit-widths included.
      make_sampler: config → function that samples all weights before the model is called; None
        where the wrapped model samples them itself.
      bit_widths: (config, parameters) → b_t of every block, or b of every group, nested by
        parameter path; empty where no bits are learned.
      make_penalty: config → what is added to the loss, or None.
      make_bits_optimizer: (config, the weights' schedule, step at which bits snap or None) → how
        the optimizer treats the bit-widths.
      find_conflict: config → a field that does not fit the method, or None.
      defaults: {dotted field: text}, in place of the schema's defaults.
      round_weights: (config, parameters) → weights at the learned bits; None where each block
        gets one of the formats in `numerics.mixed_formats`.
      size_mb: (config, parameters, mesh) → megabytes of 2^20 bytes that the rounded weights take;
        None where `quantization.sizes` counts them by format.
      mixed_label: name of the rounded weights in tables; None for the usual one.
      export_refusal: why no file format holds the rounded weights; None where one does.
    """

    name: str
    help: str
    learns_bits: bool
    make_rules: Callable[["RunConfig"], list[Rule]]
    make_model: Callable[["RunConfig", nnx.Rngs], nnx.Module]
    make_sampler: Callable[["RunConfig"], Sampler] | None = None
    bit_widths: Callable[["RunConfig", nnx.State], dict[str, Any]]
    make_penalty: Callable[["RunConfig"], Penalty | None]
    make_bits_optimizer: Callable[["RunConfig", Schedule, int | None], BitsOptimizer]
    find_conflict: Callable[["RunConfig"], Conflict | None]
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    round_weights: Callable[["RunConfig", nnx.State], nnx.State] | None = None
    size_mb: Callable[["RunConfig", nnx.State, Mesh | None], float] | None = None
    mixed_label: str | None = None
    export_refusal: str | None = None
