# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""DiffQ as published (`transform.diffq`): it samples all weights before the model is called.

Its logits are in the state under the name of other methods' bit-widths, as `LogitParam`.
"""

from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.sharding import Mesh

from pqt_jax.models import build_model, partitioning
from pqt_jax.models.registry import model_config
from pqt_jax.numerics.formats import BF16, as_format
from pqt_jax.quantization import sizes
from pqt_jax.quantization.diffq_sizes import diffq_sizes
from pqt_jax.training.methods.method import (
    BitsOptimizer,
    Conflict,
    Method,
    Penalty,
    Sampler,
    Schedule,
)
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.transform import diffq
from pqt_jax.transform.bit_state import LogitParam, collect_logits, weights
from pqt_jax.transform.param_transform import param_transform
from pqt_jax.transform.rules import Rule
from pqt_jax.transform.tree_paths import BITS, map_paths, paths_and_leaves

if TYPE_CHECKING:  # the schema imports the methods, for their names
    from pqt_jax.training.config.schema import RunConfig


def make_options(config: "RunConfig") -> diffq.Options:
    """The options of `transform.diffq` in the section `config.diffq`."""
    return diffq.Options(**{name: getattr(config.diffq, name) for name in diffq.Options._fields})


def _make_rules(config: "RunConfig") -> list[Rule]:
    return []


def _make_model(config: "RunConfig", rngs: nnx.Rngs) -> nnx.Module:
    """The bare model, with the logits of every quantized parameter."""
    model = build_model(model_config(config), rngs=rngs)
    params, options = nnx.state(model, nnx.Param), make_options(config)
    shapes = paths_and_leaves(params)

    def make_logits(path, _):
        return LogitParam(diffq.init(path, shapes[path].shape, options))

    quantized = param_transform(quantization_rules(config)).init(params)
    setattr(model, BITS, nnx.data(map_paths(make_logits, quantized)))
    return model


def _make_sampler(config: "RunConfig") -> Sampler:
    options, dtype = make_options(config), config.model.dtype

    def sample(params, key):
        hats = diffq.sample(weights(params), collect_logits(params), key, options, dtype)
        return nnx.merge_state(params, hats)

    return sample


def _bit_widths(config: "RunConfig", params: nnx.State) -> dict[str, Any]:
    options = make_options(config)
    return jax.tree.map(lambda leaf: diffq.bit_width(leaf, options), collect_logits(params))


def _make_penalty(config: "RunConfig") -> Penalty | None:
    """`config.diffq.penalty` times the megabytes of the quantized weights; None for 0."""
    factor, options = config.diffq.penalty, make_options(config)

    def penalty(params):
        return factor * diffq.size_mb(weights(params), collect_logits(params), options)

    return penalty if factor else None


def _make_bits_optimizer(
    config: "RunConfig", schedule: Schedule, snap: int | None
) -> BitsOptimizer:
    """Adam for the logits, at a constant rate and without decay."""
    return BitsOptimizer(config.diffq.learning_rate, 0.0)


def _find_conflict(config: "RunConfig") -> Conflict | None:
    pqt, method = config.pqt, "with config.method='diffq'"
    if pqt.penalty != "none":
        wanted = f"none {method}, which has config.diffq.penalty"
        return Conflict("pqt.penalty", pqt.penalty, wanted)
    if pqt.snap_at != 1:
        wanted = f"1 {method}, whose bits are not those of formats"
        return Conflict("pqt.snap_at", pqt.snap_at, wanted)
    if pqt.granularity != "block":
        wanted = f"block {method}, whose groups learn bits of their own"
        return Conflict("pqt.granularity", pqt.granularity, wanted)
    if pqt.sample_once:
        return Conflict("pqt.sample_once", True, f"False {method}")
    if as_format(pqt.dtype) != BF16:
        return Conflict("pqt.dtype", pqt.dtype, f"bfloat16 {method}, which casts nothing")
    return None


def _round_weights(config: "RunConfig", params: nnx.State) -> nnx.State:
    options = make_options(config)
    round_all = jax.jit(lambda w, logits: diffq.quantize_all(w, logits, options))
    return round_all(weights(params), collect_logits(params))


def _size_mb(config: "RunConfig", params: nnx.State, mesh: Mesh | None) -> float:
    logits = partitioning.fetch_whole(collect_logits(params), mesh)
    stored = diffq_sizes(weights(params), logits, make_options(config))
    return sizes.total_size(stored.values()).bits / diffq.MB


METHOD = Method(
    name="diffq",
    help="DiffQ as published",
    learns_bits=True,
    make_rules=_make_rules,
    make_model=_make_model,
    make_sampler=_make_sampler,
    bit_widths=_bit_widths,
    make_penalty=_make_penalty,
    make_bits_optimizer=_make_bits_optimizer,
    find_conflict=_find_conflict,
    round_weights=_round_weights,
    size_mb=_size_mb,
    mixed_label="DiffQ's own bits",
    export_refusal="DiffQ's own bits are levels between a matrix's ends, which no format holds",
)
