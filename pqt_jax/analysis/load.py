# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Read trained weights from a run, a Hugging Face folder, packed weights or a GGUF file.

--workdir RUN | --hf DIR | --packed DIR | --gguf FILE
    → model config, structure, parameters, quantization rules

Nothing that is read is changed.
"""

import argparse
import dataclasses
import operator
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax import console
from pqt_jax.errors import MALFORMED, InputError
from pqt_jax.interchange import gguf_model, huggingface
from pqt_jax.models import MODELS, ModelConfig, build_model
from pqt_jax.quantization import packed_file
from pqt_jax.training import methods, state
from pqt_jax.training.config import saved_config, validation
from pqt_jax.training.config.fields import from_values, read_section
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.training.run import checkpoint, run_metadata, workdir
from pqt_jax.transform.rules import Rule
from pqt_jax.transform.tree_paths import map_paths, paths_and_leaves

HF_RULES = (Rule("h/.*/kernel"),)  # what is quantized in a model that was trained elsewhere


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A checkpoint of a run.

    Attributes:
      config: the run's config, with `model.attention` set to "auto", since this may be another
        machine, and with the data where it is seen from this directory.
      graph: structure of the bare model.
      params: its parameters, and the `BitParam`s if bits were learned.
      step: the step of the checkpoint.
    """

    config: RunConfig
    graph: nnx.GraphDef
    params: nnx.State
    step: int


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model, whatever it was read from.

    Attributes:
      config: the configuration of the model.
      graph, params: as in `LoadedRun`.
      rules: which parameters are quantized.
      origin: where it was read from, for messages.
      run_config: the config of the run; None if it was not read from a run.
      rounded: what to call weights that were rounded when they were stored, "as packed" or "as
        stored"; None for weights as they were trained.
      begin: of packed weights, the token that documents began with in training, or None.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    rules: tuple[Rule, ...]
    origin: str
    run_config: RunConfig | None
    rounded: str | None = None
    begin: int | None = None


class StoredModel(NamedTuple):
    """A model that was read from a folder or a file; the attributes are those of `TrainedModel`."""

    config: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    rounded: str | None = None
    begin: int | None = None


def load_run(path: Path) -> LoadedRun:
    """Read a run's newest intact checkpoint, also while a trainer adds others.

    Args:
      path: the workdir; nothing in it is changed, and its lock is not taken.

    Raises:
      InputError: as `read_run`, and if there is no checkpoint that can be read.
    """
    config, meta, like = read_run(path)
    step, params = checkpoint.read_params(path, like, meta)
    return LoadedRun(config=config, graph=structure(config.model)[0], params=params, step=step)


def read_run(path: Path) -> tuple[RunConfig, run_metadata.Meta, nnx.State]:
    """Read what a workdir says of its run.

    Returns:
      (config as in `LoadedRun`, metadata, shapes and dtypes of the parameters).

    Raises:
      InputError: if it is not the workdir of a run.
    """
    meta = workdir.read_metadata(path)
    try:
        config = from_values(RunConfig, saved_config.completed(meta["config"]))
        model = dataclasses.replace(config.model, attention="auto")
        places = {
            n: run_metadata.locate(meta, getattr(config.data, n)) for n in ("files", "tokens")
        }
        data = dataclasses.replace(config.data, **places)
        config = dataclasses.replace(config, model=model, data=data)
        validation.check(config)
        state.count_parameters(config)  # also checks that the rules match parameters
    except InputError as error:
        raise InputError(
            f"--workdir={path}: {workdir.RUN} in it is damaged or of another version: {error}"
        ) from None
    like = nnx.eval_shape(lambda: methods.make_model(config, nnx.Rngs(0)))
    return config, meta, nnx.state(like)


def load_hf(folder: Path) -> StoredModel:
    """Read a model of a Hugging Face folder.

    Raises:
      InputError: if it cannot be read.
    """
    model = huggingface.open_folder(folder)
    values = {path: model.read(path) for path in model.shapes}
    rounded = None if model.layout is None else "as stored"
    return StoredModel(model.config, *_fill(model.config, values, folder), rounded)


def load_packed(folder: Path) -> StoredModel:
    """Read a folder that `pqt_jax.export` wrote with `--layout packed`.

    Raises:
      InputError: if it cannot be read.
    """
    path = folder / packed_file.FILE
    packed = packed_file.read(path)
    try:
        options = {**packed.model, "attention": "auto"}  # this may be another machine
        begin = options.pop("begin", None)
        if begin is not None and not 0 <= operator.index(begin):
            raise ValueError(f"begin={begin}")
        name = MODELS[options.pop("name")].name
        model = read_section(RunConfig, "model", options, name)
        validation.check_model(model)
    except MALFORMED as error:
        what = error if isinstance(error, InputError) else repr(error)
        raise InputError(f"{path} describes no model of this version: {what}") from None
    return StoredModel(model, *_fill(model, packed.params, folder), "as packed", begin)


def load_gguf(path: Path) -> StoredModel:
    """Read a GPT-2 or a Llama from a GGUF file.

    Raises:
      InputError: if it cannot be read.
    """
    model, values = gguf_model.load(path)
    return StoredModel(model, *_fill(model, paths_and_leaves(values), path), "as stored")


_READERS = {"hf": load_hf, "packed": load_packed, "gguf": load_gguf}  # by option


def _fill(
    model: ModelConfig, values: Mapping[str, np.ndarray], folder: Path
) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and parameters of a bare model from values by path."""
    graph, params = structure(model)
    wanted = paths_and_leaves(params)
    for path in wanted.keys() | values.keys():
        shape = values[path].shape if path in values else "missing"
        if path not in wanted or shape != wanted[path].shape:
            raise InputError(f"{folder}: {path} is {shape}, which is not the model's")

    def take(path, _):
        # Products with exact scales are float32; bfloat16 parameters would round them again.
        dtype = jnp.promote_types(values[path].dtype, model.param_dtype)
        return jnp.asarray(values[path], dtype)

    return graph, map_paths(take, params)


def structure(model: ModelConfig) -> tuple[nnx.GraphDef, nnx.State[Any, Any]]:
    """Structure of a bare model, and shapes and dtypes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: build_model(model, rngs=nnx.Rngs(0))))


def add_model_options(parser: console.Parser, takes_exports: bool = True) -> None:
    """Add `--workdir`, `--hf`, `--packed` and `--gguf`, of which exactly one is required.

    Args:
      parser: the parser.
      takes_exports: whether the help shows the last two, which name exports alone.
    """

    def about(words: str) -> str:
        return words if takes_exports else argparse.SUPPRESS

    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--workdir", metavar="RUN", help="folder of a training run")
    origin.add_argument("--hf", metavar="DIR", help="Hugging Face folder of a model")
    packed = "folder of packed weights, which the export command writes"
    origin.add_argument("--packed", metavar="DIR", help=about(packed))
    gguf = "GGUF file of a GPT-2, or of a model like Llama"
    origin.add_argument("--gguf", metavar="FILE", help=about(gguf))


def load_model(options: Namespace) -> TrainedModel:
    """Read the model that `--workdir`, `--hf`, `--packed` or `--gguf` names.

    Args:
      options: of a parser with `add_model_options`.

    Raises:
      InputError: if it cannot be read, or a weight in it is not finite.
    """
    check_model_options(options)
    if options.workdir is not None:
        run = load_run(Path(options.workdir))
        model = TrainedModel(
            config=run.config.model,
            graph=run.graph,
            params=run.params,
            rules=tuple(quantization_rules(run.config)),
            origin=f"{options.workdir}, step {run.step}",
            run_config=run.config,
        )
    else:
        name = next(name for name in _READERS if getattr(options, name) is not None)
        origin = getattr(options, name)
        stored = _READERS[name](Path(origin))
        model = TrainedModel(rules=HF_RULES, origin=origin, run_config=None, **stored._asdict())
    for path, leaf in paths_and_leaves(model.params).items():
        check_finite(np.asarray(leaf), path, model.origin)
    return model


def check_model_options(options: Namespace) -> None:
    """Raise InputError for an option of `add_model_options` that is empty."""
    for name in ("workdir", *_READERS):
        if getattr(options, name) == "":
            wanted = "a file" if name == "gguf" else "a directory"
            raise InputError(f"--{name}= is empty; give {wanted}")


def check_finite(values: np.ndarray, path: str, origin: str) -> None:
    """Raise InputError, with the first value that is not finite."""
    # Both ends are NaN if a value is; this needs no memory, unlike a test of each value.
    with np.errstate(invalid="ignore"):
        ends = np.min(values), np.max(values)
    if not all(map(np.isfinite, ends)):
        at = np.unravel_index(np.argmin(np.isfinite(values)), values.shape)
        raise InputError(
            f"{origin}: {path} has {values[at]} at {list(map(int, at))}; its training diverged, or "
            "a file is damaged: give weights from before"
        )
