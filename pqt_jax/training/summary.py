# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The end of a run: trained weights → table, pictures, `summary.json`."""

import json
from pathlib import Path
from typing import Any

from pqt_jax.console import print_line
from pqt_jax.errors import MALFORMED
from pqt_jax.interchange import files
from pqt_jax.interchange.png import save_png
from pqt_jax.models import partitioning
from pqt_jax.training import final_evaluation, methods
from pqt_jax.training.config import saved_config
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import distributed, metrics
from pqt_jax.training.run import workdir as run_folder
from pqt_jax.training.run_context import RunContext


def read(workdir: Path, config: RunConfig) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is missing, damaged, or of another config."""
    try:
        summary = files.read_json(workdir / run_folder.SUMMARY)
        final_evaluation.format_table(summary)
        return summary if summary["config"] == saved_config.digest(config) else None
    except (OSError, *MALFORMED):
        return None


def finish(
    run: RunContext, params: Any, validation_loss: final_evaluation.Loss, timer: metrics.Timer
) -> None:
    """Write the summary and the pictures of a trained model, and print the table.

    Args:
      run: the run.
      params: its trained parameters.
      validation_loss: from `final_evaluation.make_loss`.
      timer: the timer of all steps.

    Raises:
      OutputError: if something cannot be written.
    """
    config, workdir, mesh = run.config, run.workdir, run.mesh
    losses = final_evaluation.evaluate_formats(config, validation_loss, params, mesh)
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

    records = metrics.read(workdir / run_folder.METRICS)
    title = f"{config.model.name}, {config.method}, seed {config.seed}"
    save_png(run_plots.draw_losses(records, title), workdir / run_folder.LOSS)
    if b_t:
        save_png(run_plots.draw_bits(records, b_t, title), workdir / run_folder.BITS)
    # Written last: a run with this file is finished.
    content = json.dumps(files.replace_nonfinite(summary), indent=2)
    files.write(workdir / run_folder.SUMMARY, content + "\n")
    print_line(f"\n{final_evaluation.format_table(losses)}\n")
    print_line(f"{timer.seconds():.0f} s in all; see {workdir}")
