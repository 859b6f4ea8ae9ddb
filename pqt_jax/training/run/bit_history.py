# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How bit-widths and formats change in training: `bits.jsonl`, one record at each validation.

    {"step": 400, "tokens": 819200, "formats": {"E4M3": 0.25, "E4M7": 0.75},
     "layers": {"h/attn/q/kernel": [5.71, 5.64]}}

`layers` is the mean b_t of each matrix of a parameter, `formats` the share of the sampled weights
that each format would carry (`quantize.format_index`). A b_t that is NaN makes its layer's mean
null and has no format: what the shares lack to 1 is of such blocks.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.interchange import files
from pqt_jax.models import partitioning
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, format_index
from pqt_jax.quantization import sizes
from pqt_jax.training.run import metrics
from pqt_jax.transform import bit_state
from pqt_jax.transform.rules import Rule, first_match
from pqt_jax.transform.tree_paths import paths_and_leaves

Measured = Mapping[str, Any]


class BitRecord(NamedTuple):
    """One record.

    Attributes:
      step: after which it was taken.
      tokens: trained on by then; None where the record does not say.
      layers: path → float64[L], mean b_t of each layer in bits; NaN where one is NaN.
      formats: name → share of the weights, from the narrowest on.
    """

    step: int
    tokens: int | None
    layers: dict[str, np.ndarray]
    formats: dict[str, float]


def reduce_bit_widths(params: nnx.State, rules: Sequence[Rule]) -> dict[str, Any]:
    """What a record is made of, on the devices; a few numbers for each matrix, and no more.

    Args:
      params: weights and `BitParam`s, on any mesh.
      rules: those that the model was made with.

    Returns:
      "layers": path → float32[L], mean b_t over the blocks of each of L stacked matrices.
      "counts": uint32[matrices, formats + 1], the weights of each matrix that go to each format of
      `MIXED_FORMATS`, last those that go to none. Replicated where a mesh is entered. Empty where
      no bits are learned.
    """
    shapes = paths_and_leaves(bit_state.weights(params))
    layers, counts = {}, []
    for path, b_t in paths_and_leaves(bit_state.bit_widths(params, rules)).items():
        rule = first_match(rules, path)
        assert rule is not None and rule.spec is not None  # it has bits
        held = sizes.weights_per_block(shapes[path].shape, rule.spec)
        held = held.reshape(-1, *held.shape[-2:])[0].astype(np.uint32)  # the same in every layer
        b_t = b_t.reshape(-1, *held.shape)
        layers[path] = jnp.mean(b_t, axis=(1, 2))
        index = jnp.where(jnp.isnan(b_t), len(MIXED_FORMATS), format_index(b_t))
        own = [jnp.where(index == i, held, np.uint32(0)) for i in range(len(MIXED_FORMATS) + 1)]
        counts.append(jnp.sum(jnp.stack(own, -1), axis=(1, 2), dtype=jnp.uint32))
    return partitioning.constrain_state(
        {"layers": layers, "counts": jnp.concatenate(counts)} if layers else {}
    )


_reduce = functools.partial(jax.jit, static_argnums=1)(reduce_bit_widths)


def measure(params: nnx.State, rules: Sequence[Rule]) -> Measured:
    """`layers` and `formats` of a record, on the host; compiled once for each model.

    With several processes every one of them calls this, and has the same numbers.

    Args:
      params, rules: as for `reduce_bit_widths`.

    Returns:
      Nothing but floats in lists and dicts; empty where no bits are learned.
    """
    found = jax.device_get(_reduce(params, tuple(rules)))
    if not found:
        return {}
    counts = found["counts"].sum(axis=0, dtype=np.int64)
    shares = zip(MIXED_FORMATS, (counts / counts.sum()).tolist(), strict=False)  # none is the last
    return {
        "layers": {path: mean.tolist() for path, mean in found["layers"].items()},
        "formats": {fmt.name: share for fmt, share in shares if share},
    }


def append(path: Path, step: int, tokens: int, measured: Measured) -> None:
    """Append a record as one line by one write; nothing where no bits are learned.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "bits.jsonl"
      >>> append(path, 10, 640, {"layers": {"w": [6.0, 5.12345]}, "formats": {"E4M7": 1.0}})
      >>> path.read_text()
      '{"step": 10, "tokens": 640, "formats": {"E4M7": 1.0}, "layers": {"w": [6.0, 5.1235]}}\\n'

    Args:
      path: of `bits.jsonl`.
      step: after which the bits are as they are.
      tokens: trained on by then.
      measured: from `measure`.

    Raises:
      OutputError: if it cannot be written.
    """
    if measured:
        rounded = jax.tree.map(lambda x: files.replace_nonfinite(round(x, 4)), dict(measured))
        metrics.append(path, {"step": step, "tokens": tokens, **rounded})


def read(path: Path) -> list[BitRecord]:
    """The records of a file, in order; what is torn or no record of bits, or no file, is nothing.

    `metrics.truncate` drops those that a resumed run will write again.
    """
    found = map(_parse, metrics.read_records(path))
    return [record for record in found if record is not None]


def _parse(record: metrics.Record) -> BitRecord | None:
    tokens = metrics.numeric_fields(record).get("tokens")
    try:
        layers = {str(name): np.array(mean, float) for name, mean in record["layers"].items()}
        formats = metrics.numeric_fields(record["formats"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    if not layers or any(mean.ndim != 1 for mean in layers.values()):
        return None
    shares = {fmt.name: formats.get(fmt.name) or 0.0 for fmt in MIXED_FORMATS}
    return BitRecord(record["step"], tokens, layers, {name: x for name, x in shares.items() if x})
