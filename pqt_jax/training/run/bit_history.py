# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Bit-widths and formats over training: `bits.jsonl`, one record at each validation.

    {"step": 400, "tokens": 819200, "formats": {"E4M3": 0.25, "E4M7": 0.75},
     "layers": {"h/attn/q/kernel": [5.71, 5.64]}}

`layers` is the mean b_t of each matrix of a parameter. `formats` is the share of the sampled
weights that would be stored in each format (`mixed_formats.format_index`). A b_t that is NaN makes
the mean of its layer null, and its block has no format, so the shares then sum to less than 1.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.errors import MALFORMED
from pqt_jax.interchange import files
from pqt_jax.models import partitioning
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS, format_index
from pqt_jax.quantization import sizes
from pqt_jax.training.run import metrics
from pqt_jax.transform import bit_state
from pqt_jax.transform.rules import Rule, first_match
from pqt_jax.transform.tree_paths import paths_and_leaves

Measured = Mapping[str, Any]
_COLUMNS = len(MIXED_FORMATS) + 1


class BitRecord(NamedTuple):
    """One record.

    Attributes:
      step: number of steps taken when it was measured.
      tokens: number of tokens trained on by then; None if the record lacks it.
      layers: path → float64[L], mean b_t of each layer in bits; NaN if any b_t of it is NaN.
      formats: name → share of the weights, narrowest format first.
    """

    step: int
    tokens: int | None
    layers: dict[str, np.ndarray]
    formats: dict[str, float]


def reduce_bit_widths(params: nnx.State, rules: Sequence[Rule]) -> dict[str, Any]:
    """Reduce the bit-widths to a few numbers for each matrix, on the devices.

    Args:
      params: weights and `BitParam`s, on any mesh.
      rules: the rules that the model was wrapped by.

    Returns:
      "layers": path → float32[L], mean b_t over the blocks of each of L stacked matrices.
      "counts": uint32[matrices, formats + 1], the number of weights of each matrix in each format
      of `MIXED_FORMATS`; the last column counts those with none. Replicated over an active mesh.
      Empty if no bit-widths are learned.
    """
    shapes = paths_and_leaves(bit_state.weights(params))
    layers, counts = {}, []
    for path, b_t in paths_and_leaves(bit_state.bit_widths(params, rules)).items():
        rule = first_match(rules, path)
        assert rule is not None and rule.spec is not None  # since it has bit-widths
        weights = sizes.weights_per_block(shapes[path].shape, rule.spec)
        weights = weights.reshape(-1, *weights.shape[-2:])[0].astype(np.uint32)  # of one layer
        b_t = b_t.reshape(-1, *weights.shape)
        layers[path] = jnp.mean(b_t, axis=(1, 2))
        index = jnp.where(jnp.isnan(b_t), len(MIXED_FORMATS), format_index(b_t))
        by_format = [jnp.where(index == i, weights, np.uint32(0)) for i in range(_COLUMNS)]
        counts.append(jnp.sum(jnp.stack(by_format, -1), axis=(1, 2), dtype=jnp.uint32))
    return partitioning.constrain_state(
        {"layers": layers, "counts": jnp.concatenate(counts)} if layers else {}
    )


_reduce = functools.partial(jax.jit, static_argnums=1)(reduce_bit_widths)


def measure(params: nnx.State, rules: Sequence[Rule]) -> Measured:
    """Measure `layers` and `formats` of a record; compiled once for each model.

    With several processes all of them must call this. All get the same numbers.

    Args:
      params, rules: as for `reduce_bit_widths`.

    Returns:
      Python floats in lists and dicts; empty if no bit-widths are learned.
    """
    reduced = jax.device_get(_reduce(params, tuple(rules)))
    if not reduced:
        return {}
    counts = reduced["counts"].sum(axis=0, dtype=np.int64)
    # Not strict: the last column is of weights without a format.
    shares = zip(MIXED_FORMATS, (counts / counts.sum()).tolist(), strict=False)
    return {
        "layers": {path: mean.tolist() for path, mean in reduced["layers"].items()},
        "formats": {fmt.name: share for fmt, share in shares if share},
    }


def append(path: Path, step: int, tokens: int, measured: Measured) -> None:
    """Append a record as one line, by one write; nothing if no bit-widths are learned.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "bits.jsonl"
      >>> append(path, 10, 640, {"layers": {"w": [6.0, 5.12345]}, "formats": {"E4M7": 1.0}})
      >>> path.read_text()
      '{"step": 10, "tokens": 640, "formats": {"E4M7": 1.0}, "layers": {"w": [6.0, 5.1235]}}\\n'

    Args:
      path: the file `bits.jsonl`.
      step: number of steps taken.
      tokens: number of tokens trained on by then.
      measured: from `measure`.

    Raises:
      OutputError: if it cannot be written.
    """
    if measured:
        rounded = jax.tree.map(lambda x: files.replace_nonfinite(round(x, 4)), dict(measured))
        metrics.append(path, {"step": step, "tokens": tokens, **rounded})


def read(path: Path) -> list[BitRecord]:
    """Read the records of a file, in order; empty if there is no file.

    Incomplete lines and other records are skipped. `metrics.truncate` drops the records that a
    resumed run will write again.
    """
    records = map(_parse, metrics.read_records(path))
    return [record for record in records if record is not None]


def _parse(record: metrics.Record) -> BitRecord | None:
    tokens = metrics.numeric_fields(record).get("tokens")
    try:
        layers = {str(name): np.array(mean, float) for name, mean in record["layers"].items()}
        formats = metrics.numeric_fields(record["formats"])
    except MALFORMED:
        return None
    if not layers or any(mean.ndim != 1 for mean in layers.values()):
        return None
    shares = {fmt.name: formats.get(fmt.name) or 0.0 for fmt in MIXED_FORMATS}
    formats = {name: share for name, share in shares.items() if share}
    return BitRecord(step=record["step"], tokens=tokens, layers=layers, formats=formats)
