# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What few bits cost each arm of a sweep, as text: it ends the command."""

import numpy as np

from pqt_jax.console import format_quantity
from pqt_jax.lab.sweep_table import SweepTable


def held_out_table(table: SweepTable) -> str:
    """A row for each arm, a column for each of the weights that the sweep measures.

    Losses are those at the arm's best learning rate, over the seeds that did not diverge; "-" where
    there are none, as for mixed formats of an arm that learns no bits. The differences are not
    paired: of arms from which other seeds diverged they are of other seeds.

        held-out loss in nats per token, above that of BF16 as it is; means over 2 seeds
                     master  fp8_e4m3  fp4_e2m1/mse
        BF16         1.3194   +0.0015       +0.0342
        recipe fp4  +0.0260   +0.0282       +0.0108

    Args:
      table: the results of a sweep.
    """
    weights = [x for x in table.options.weights if x == "master" or _has_losses(table, x)]
    baseline = _mean_loss(table, table.arms[0], "master")
    rows = [["", *weights]]
    for arm in table.arms:
        above = [_mean_loss(table, arm, name) - baseline for name in weights]
        rows.append([arm, *("-" if np.isnan(x) else f"{x:+.4f}" for x in above)])
    rows[1][1] = "-" if np.isnan(baseline) else f"{baseline:.4f}"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, values, widths[1:])])
        for name, *values in rows
    ]
    seeds = format_quantity(len(table.seeds), "seed")
    over = f"; means over {seeds}" if len(table.seeds) > 1 else ""
    over += ", each arm at its best rate" if len(table.rates) > 1 else ""
    heading = f"held-out loss in nats per token, above that of {table.arms[0]} as it is{over}"
    return "\n".join([heading, *(line.rstrip() for line in lines)])


def _has_losses(table: SweepTable, name: str) -> bool:
    return any(np.isfinite(_mean_loss(table, arm, name)) for arm in table.arms)


def _mean_loss(table: SweepTable, arm: str, name: str) -> float:
    """The mean over seeds at the arm's best rate; NaN if there is none."""
    best = table.best_rate_index(arm)
    if best is None:
        return np.nan
    losses = table.stable_values(arm, f"held_out_losses.{name}")[:, best]
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else np.nan
