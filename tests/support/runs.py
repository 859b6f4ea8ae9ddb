# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs as tests of their comparison need them, in milliseconds."""

import json

import numpy as np

from pqt_jax.training import named_formats
from pqt_jax.training.config import saved_config
from pqt_jax.training.run import bit_history
from support import tiny


def shift_losses(run, amount, from_step=0):
    """Add an amount to the losses of a run from a step on, and to those of its summary."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["step"] >= from_step:
            record |= {n: record[n] + amount for n in ("loss", "validation_loss") if n in record}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = json.loads((run / "summary.json").read_text())
    summary |= {name: summary[name] + amount for name in ("master", "fp6_e3m2")}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def make_run(folder, *, steps=200, done=200, bits=True, nan_from=None, **fields):
    """Files of a run whose loss falls from 5 to 1 and b_t from 6 to 4, without any training.

    Args:
      folder: made for it.
      steps: planned.
      done: recorded, one by one; with validation and bits after every 20.
      bits: whether it learns any.
      nan_from: the step from which nothing is finite.
      fields: of its config, as `model__num_layers`.
    """
    folder.mkdir(parents=True)
    config = tiny.get_config()
    config.steps = steps
    for name, value in fields.items():
        section, _, last = name.rpartition("__")
        (config[section] if section else config)[last] = value
    meta = {"config": json.loads(saved_config.as_json(config)), "data_fingerprint": "x"}
    meta |= {"stream_version": 1, "versions": {"jax": "0"}}
    (folder / "run.json").write_text(json.dumps(meta))
    lines = []
    for step in range(1, done + 1):
        loss = 5 - 4 * step / steps if nan_from is None or step < nan_from else None
        mean = 6 - 2 * step / steps if bits else None
        lines.append({"step": step, "loss": loss, "tokens": 64 * step, "bits_mean": mean})
        lines[-1]["tokens_per_s"] = 1000.0 + step
        if step % 20 == 0:
            lines.append({"step": step, "validation_loss": loss})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(20, done + 1, 20) if bits else ():
        value = 6 - 2 * step / steps if nan_from is None or step < nan_from else float("nan")
        layers = {f"h/{name}/kernel": [value, value / 2] for name in ("attn/q", "mlp/up")}
        shares = {"E3M2": 0.25, "E4M3": 0.75} if np.isfinite(value) else {}
        measured = {"layers": layers, "formats": shares}
        bit_history.append(folder / "bits.jsonl", step, 64 * step, measured)
    if done == steps:
        summary = {name: 1.0 + i / 100 for i, name in enumerate(named_formats.LABELS)}
        summary |= {"method": config.method, "mean_bits": 4.0, "tokens_per_s": 1234.5}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
