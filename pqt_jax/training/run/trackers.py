# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Experiment trackers: records of metrics also go to TensorBoard and Weights & Biases.

    config.log.tensorboard=true    WORKDIR/tensorboard
    config.log.wandb=PROJECT       a run of that project; its ID is in WORKDIR/wandb.id

Both are off by default. A resumed run continues its records. Steps that are repeated have the same
values: TensorBoard shows the new ones, W&B keeps the old ones. A failure before training is an
error. A tracker that fails later is dropped with a warning, since `metrics.jsonl` has all records.
"""

import contextlib
import importlib.util
import secrets
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pqt_jax.console import print_error
from pqt_jax.errors import InputError, OutputError
from pqt_jax.interchange import files
from pqt_jax.training.config.schema import LogConfig, RunConfig
from pqt_jax.training.run import distributed

TENSORBOARD, WANDB_ID = "tensorboard", "wandb.id"
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by field of config.log


class Tracker(NamedTuple):
    """A destination of records.

    Attributes:
      name: the tracker's name in messages.
      send: takes a step and the values of the record by name.
      close: writes what is buffered.
    """

    name: str
    send: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


def check_config(log: LogConfig) -> None:
    """Raise InputError if `config.log` has a tracker that is not installed, or a wrong project."""
    for field, package in _PACKAGES.items():
        value = getattr(log, field)
        if value and importlib.util.find_spec(package) is None:
            raise InputError(
                f"config.log.{field}={value!r}; it needs {package}, which is not installed: "
                "pip install 'pqt_jax[log]'"
            )
    name = log.wandb
    if name and (not name.strip() or len(name) > 128 or set(name) & set("/\\#?%:")):
        raise InputError(
            f"config.log.wandb={name!r}; it must be the name of a project, of 128 letters at most "
            "and without / \\ # ? % :"
        )


def start(config: RunConfig, workdir: Path, step: int) -> list[Tracker]:
    """Open the trackers of a config in the first process; the other processes have none.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      step: the last step that will not be repeated.

    Returns:
      The trackers, for `send` and `close_at_end`.

    Raises:
      InputError: if W&B refuses the run.
      OutputError: if the files of TensorBoard cannot be written.
    """
    if not distributed.is_first_process():
        return []
    trackers = []
    if config.log.tensorboard:
        trackers.append(_tensorboard(workdir / TENSORBOARD, step))
    if config.log.wandb:
        trackers.append(_wandb(config, workdir))
    return trackers


def send(trackers: list[Tracker], record: Mapping[str, Any]) -> None:
    """Send a record to all trackers; warn of one that fails, and remove it from the list."""
    values = {name: x for name, x in record.items() if x is not None and name != "step"}
    for tracker in list(trackers):
        _call_or_remove(
            trackers, tracker, lambda tracker=tracker: tracker.send(record["step"], values)
        )


@contextlib.contextmanager
def close_at_end() -> Iterator[list[Tracker]]:
    """Yield an empty list for the trackers of `start`; they are closed when the body ends."""
    trackers: list[Tracker] = []
    try:
        yield trackers
    finally:
        for tracker in list(trackers):
            _call_or_remove(trackers, tracker, tracker.close)


def _call_or_remove(
    trackers: list[Tracker], tracker: Tracker, function: Callable[[], None]
) -> None:
    try:
        function()
    except Exception as error:  # a tracker must not end the run
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        print_error(f"warning: {tracker.name} failed ({reason}); training continues without it")
        trackers.remove(tracker)
        with contextlib.suppress(Exception):
            tracker.close()


def _tensorboard(folder: Path, step: int) -> Tracker:
    # Not SummaryWriter: its thread fails silently, and then its full queue blocks the run.
    # Protobuf makes these classes at run time.
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
    from tensorboardX.record_writer import RecordWriter

    def write(**event: Any) -> None:
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        writer.flush()

    def send(step: int, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        write(step=step, summary=Summary(value=scalars))

    try:
        folder.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names.
        writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{step:010d}"))
        write(file_version="brain.Event:2")
        # After this event readers discard what they have read of this step and later ones.
        write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
    except OSError as error:
        raise OutputError(folder, error) from None
    return Tracker("TensorBoard", send, writer.close)


def _wandb(config: RunConfig, workdir: Path) -> Tracker:
    import wandb

    name = workdir / WANDB_ID
    if not name.exists():
        files.write(name, secrets.token_hex(4) + "\n")
    settings = wandb.Settings(silent=True, console="off", reinit="finish_previous")
    try:
        run = wandb.init(
            project=config.log.wandb,
            name=workdir.absolute().name,
            id=name.read_text().strip(),
            resume="allow",
            dir=workdir,
            config=config.to_dict(),
            settings=settings,
        )
    except Exception as error:  # such as a missing key, no network, or a wrong project name
        reason = textwrap.shorten(str(error), 300)
        raise InputError(
            f"config.log.wandb={config.log.wandb!r}; W&B cannot be used: {reason}; fix that, or "
            "set WANDB_MODE=offline"
        ) from None

    def send(step: int, values: dict[str, float]) -> None:
        if step >= run.step:  # otherwise W&B has the step from before the resume
            run.log(values, step=step)

    return Tracker("W&B", send, run.finish)
