# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Where else records of metrics go: TensorBoard and Weights & Biases, if they are asked for.

    config.log.tensorboard=true    WORKDIR/tensorboard
    config.log.wandb=PROJECT       a run of that project; WORKDIR/wandb.id holds its ID

A resumed run goes on in both where it was. TensorBoard hides the steps that are made again; W&B
keeps the first of them, which are the same. What fails before training is an error, and what fails
later is said once and not used any more: `metrics.jsonl` has it all.
"""

import contextlib
import importlib.util
import secrets
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pqt_jax.console import print_error
from pqt_jax.errors import InputError, OutputError
from pqt_jax.interchange import files
from pqt_jax.training.config.schema import LogConfig, RunConfig

TENSORBOARD, WANDB_ID = "tensorboard", "wandb.id"
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by field of config.log


class Tracker(NamedTuple):
    """Something that takes records.

    Attributes:
      name: for people.
      send: takes a step and the values that the record has, by name.
      close: sees to it that all is written.
    """

    name: str
    send: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


def check_config(log: LogConfig) -> None:
    """Raise InputError if `config.log` asks for what is not installed."""
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
    """Open what the config asks for, on the first process; the others have none.

    Args:
      config: of the run.
      workdir: of the run.
      step: the last one that is not made again.

    Returns:
      What `send` takes, to be put into the list of `opened`.

    Raises:
      InputError: if W&B refuses.
      OutputError: if nothing can be written.
    """
    if jax.process_index():
        return []
    sinks = []
    if config.log.tensorboard:
        sinks.append(_tensorboard(workdir / TENSORBOARD, step))
    if config.log.wandb:
        sinks.append(_wandb(config, workdir))
    return sinks


def send(sinks: list[Tracker], record: Mapping[str, Any]) -> None:
    """Send a record to all; one that fails is said and dropped from the list."""
    values = {name: x for name, x in record.items() if x is not None and name != "step"}
    for sink in list(sinks):
        _tried(sinks, sink, lambda sink=sink: sink.send(record["step"], values))


@contextlib.contextmanager
def opened() -> Iterator[list[Tracker]]:
    """A list for what `start` returns, all of which is closed at the end."""
    sinks: list[Tracker] = []
    try:
        yield sinks
    finally:
        for sink in list(sinks):
            _tried(sinks, sink, sink.close)


def _tried(sinks: list[Tracker], sink: Tracker, function: Callable[[], None]) -> None:
    try:
        function()
    except Exception as error:  # the run is worth more, whatever it is
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        print_error(f"warning: {sink.name} failed ({reason}); the run goes on without it")
        sinks.remove(sink)
        with contextlib.suppress(Exception):
            sink.close()


def _tensorboard(folder: Path, step: int) -> Tracker:
    # Not its SummaryWriter, whose thread fails in silence and then blocks the run at its queue.
    # Classes that protobuf makes at run time.
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
        # Read in the order of their names.
        writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{step:010d}"))
        write(file_version="brain.Event:2")
        # Readers then forget what they have read of this step and those after it.
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
    except Exception as error:  # no key, no network, or no name of a project
        reason = textwrap.shorten(str(error), 300)
        raise InputError(
            f"config.log.wandb={config.log.wandb!r}; W&B cannot be used: {reason}; mend that, or "
            "set WANDB_MODE=offline"
        ) from None

    def send(step: int, values: dict[str, float]) -> None:
        if step >= run.step:  # else it has the step from before the run was resumed
            run.log(values, step=step)

    return Tracker("W&B", send, run.finish)
