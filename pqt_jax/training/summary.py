# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The end of a run: trained weights → table, pictures, `summary.json`."""

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from pqt_jax.console import print_line
from pqt_jax.interchange import files
from pqt_jax.interchange.png import save_png
from pqt_jax.models import partitioning
from pqt_jax.training import final_evaluation, methods
from pqt_jax.training.config import saved_config
from pqt_jax.training.config.schema import Config
from pqt_jax.training.run import distributed, metrics
from pqt_jax.training.run import workdir as workdirs


def read(workdir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is missing, another's, or cannot be used."""
    try:
        summary = json.loads((workdir / workdirs.SUMMARY).read_text())
        final_evaluation.format_table(summary)
        return summary if summary["config"] == saved_config.digest(config) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def finish(
    config: Config,
    workdir: Path,
    params: Any,
    validation_loss: final_evaluation.Loss,
    timer: metrics.Timer,
    mesh: Mesh | None = None,
) -> None:
    """Write the summary and the pictures of a trained model, and print the table.

    Args:
      config, workdir: of the run.
      params: its trained parameters.
      validation_loss: from `final_evaluation.make_loss`.
      timer: of the run.
      mesh: where the parameters are.

    Raises:
      OutputError: if something cannot be written.
    """
    losses = final_evaluation.table(config, validation_loss, params, mesh)
    b_t = partitioning.fetch_whole(methods.bit_widths(config, params), mesh)
    if not distributed.is_first_process():
        return
    summary = {
        **losses,
        "steps": config.steps,
        "seconds": round(timer.seconds(), 1),
        "tokens_per_s": round(timer.rate(), 1),
        "config": saved_config.digest(config),
    }
    from pqt_jax.training.run import run_plots  # here, since matplotlib is slow to import

    records = metrics.read(workdir / workdirs.METRICS)
    title = f"{config.model.name}, {config.method}, seed {config.seed}"
    save_png(run_plots.draw_losses(records, title), workdir / workdirs.LOSS)
    if b_t:
        save_png(run_plots.draw_bits(records, b_t, title), workdir / workdirs.BITS)
    # Last, for it is what says that the run is finished.
    content = json.dumps(files.replace_nonfinite(summary), indent=2)
    files.write(workdir / workdirs.SUMMARY, content + "\n")
    print_line(f"\n{final_evaluation.format_table(losses)}\n")
    print_line(f"{timer.seconds():.0f} s in all; see {workdir}")
