# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Trained weights, wherever they are, read and not changed: a run's, or a Hugging Face folder's.

--workdir RUN | --hf DIR → structure of the bare model, parameters, rules → weights in a format
"""

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from pqt_jax import checkpoint, checks, cli, workdir
from pqt_jax import config as configs
from pqt_jax import step as steps
from pqt_jax.config import Config
from pqt_jax.errors import InputError
from pqt_jax.formats import BF16, E2M1, E2M3, E3M2, E4M3, E5M2
from pqt_jax.models import GPT2, GPT2Config, Llama2, Llama2Config
from pqt_jax.quantize import quantize
from pqt_jax.rules import Rule, paths_and_leaves
from pqt_jax.transform import param_transform

FORMATS = {
    "bf16": BF16,
    "fp8_e4m3": E4M3,
    "fp8_e5m2": E5M2,
    "fp6_e3m2": E3M2,
    "fp6_e2m3": E2M3,
    "fp4_e2m1": E2M1,
}
LABELS = {
    "master": "master weights",
    "bf16": "BF16",
    "fp8_e4m3": "FP8 E4M3",
    "fp8_e5m2": "FP8 E5M2",
    "fp6_e3m2": "FP6 E3M2",
    "fp6_e2m3": "FP6 E2M3",
    "fp4_e2m1": "FP4 E2M1",
    "mixed": "learned mixed bits",
}
HF_RULES = (Rule("h/.*/kernel"),)  # what is quantized of a model that was trained elsewhere
ModelConfig = Llama2Config | GPT2Config


class Run(NamedTuple):
    """What `load_run` reads.

    Attributes:
      config: of the run, as it was trained; `model.attention` is "xla" where there is no GPU.
      graph: structure of the bare model.
      params: its parameters, and the `BitParam`s if bits were learned.
      step: of the checkpoint.
    """

    config: Config
    graph: nnx.GraphDef
    params: nnx.State
    step: int


class Trained(NamedTuple):
    """A trained model, whatever it was read from.

    Attributes:
      model: the model's own configuration.
      graph, params: as in `Run`.
      rules: which parameters are quantized.
      origin: where it is from, for people.
      run: configuration of the run; None for a Hugging Face folder.
    """

    model: ModelConfig
    graph: nnx.GraphDef
    params: nnx.State
    rules: tuple[Rule, ...]
    origin: str
    run: Config | None


def load_run(path: Path) -> Run:
    """Read a run's newest checkpoint that is whole, while a trainer may be adding others.

    Args:
      path: the workdir; nothing in it is changed, and its lock is not taken.

    Raises:
      InputError: if it is not a run's, or nothing in it can be read.
    """
    meta = workdir.read(path)
    config: Config = ConfigDict(_with_tuples(meta["config"]), type_safe=False)
    try:
        if isinstance(config.get("model"), ConfigDict) and jax.default_backend() != "gpu":
            config.model.attention = "xla"
        cli.set_types(config)
        checks.check(config)
    except (InputError, TypeError) as error:
        raise InputError(
            f"--workdir={path}: {workdir.RUN} in it is damaged or of another version: {error}"
        ) from None
    _, cls = configs.MODELS[config.model.name]
    model = configs.model_config(config)
    like = nnx.eval_shape(lambda: cls(model, configs.rules(config), rngs=nnx.Rngs(0)))
    step, params = checkpoint.read_params(path, nnx.state(like), meta)
    return Run(config.lock(), _structure(cls, model)[0], params, step)


def _with_tuples(value: Any) -> Any:
    """What JSON made lists of as tuples again; a ConfigDict would keep a list a list."""
    if isinstance(value, dict):
        return {name: _with_tuples(inside) for name, inside in value.items()}
    return tuple(value) if isinstance(value, list) else value


def load_hf(folder: Path) -> tuple[ModelConfig, nnx.GraphDef, nnx.State]:
    """Read a GPT2 or a Llama from a Hugging Face folder.

    Returns:
      (the model's configuration, structure of the model, parameters).

    Raises:
      InputError: if it cannot be read.
    """
    try:
        reader = importlib.import_module("pqt_jax.huggingface")
    except ImportError as error:
        raise InputError(f"--hf={folder} cannot be read: {error}; give --workdir") from None
    model, values = reader.load(folder)
    cls = {config: cls for config, cls in configs.MODELS.values()}[type(model)]
    graph, params = _structure(cls, model)
    wanted, found = paths_and_leaves(params), paths_and_leaves(values)
    if wrong := sorted(wanted.keys() ^ found.keys()):
        raise InputError(f"--hf={folder}: {wrong[0]} is missing or is no parameter of the model")
    for name, leaf in wanted.items():
        if leaf.shape != found[name].shape:
            raise InputError(f"--hf={folder}: {name} is {found[name].shape}, not {leaf.shape}")
    values = jax.tree.map(lambda x: jnp.asarray(x, model.param_dtype), values)
    nnx.replace_by_pure_dict(params, values)
    return model, graph, params


def _structure(
    cls: type[Llama2] | type[GPT2], model: Any
) -> tuple[nnx.GraphDef, nnx.State[Any, Any]]:
    return nnx.split(nnx.eval_shape(lambda: cls(model, rngs=nnx.Rngs(0))))


def weights_as(params: nnx.State, rules: Any, name: str) -> nnx.State:
    """The weights, rounded to a format or by the learned bits, in their own dtype.

    Args:
      params: with or without `BitParam`s.
      rules: which parameters are rounded, and by what blocks.
      name: one of `LABELS`.

    Returns:
      The weights alone, without bits, as the bare model takes them.

    Raises:
      InputError: for "mixed" where no bits were learned, or an unknown name.
    """
    weights = steps.weights(params)
    if name not in LABELS:
        raise InputError(f"weights {name!r}; it must be one of {', '.join(LABELS)}")
    if name == "master":
        return weights
    if name == "mixed":
        if not (bits := steps.collect_bits(params)):
            raise InputError("weights 'mixed': no bits were learned here; give another format")
        transform = param_transform(rules)
        rounded = jax.jit(lambda w: transform.quantize(w, bits))(weights)
    else:
        rounded = jax.jit(lambda w: quantize(w, rules, FORMATS[name]))(weights)
    # Back to the parameters' dtype, which holds every format: one compiled model serves all.
    return jax.tree.map(lambda q, w: q.astype(w.dtype), rounded, weights)


def add_arguments(parser: cli.Parser) -> None:
    """Add `--workdir` and `--hf`, of which one has to be given."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--workdir", metavar="RUN", help="workdir of a training run")
    origin.add_argument("--hf", metavar="DIR", help="Hugging Face folder of a GPT2 or a Llama")


def from_arguments(given: Namespace) -> Trained:
    """Read what `--workdir` or `--hf` names.

    Raises:
      InputError: if it cannot be read, or a weight in it is not finite.
    """
    for name in ("workdir", "hf"):
        if getattr(given, name) == "":
            raise InputError(f"--{name}= is empty; give a directory")
    if given.workdir is not None:
        run = load_run(Path(given.workdir))
        model = configs.model_config(run.config)
        origin = f"{given.workdir}, step {run.step}"
        rules = tuple(configs.quantization_rules(run.config))
        trained = Trained(model, run.graph, run.params, rules, origin, run.config)
    else:
        trained = Trained(*load_hf(Path(given.hf)), HF_RULES, given.hf, None)
    for path, leaf in paths_and_leaves(trained.params).items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise InputError(f"{trained.origin}: {path} is not finite; its training diverged")
    return trained


def check_bytes(trained: Trained, vocab_size: int) -> None:
    """Raise InputError for a model of other tokens than bytes."""
    if trained.model.vocab_size != vocab_size:
        raise InputError(
            f"{trained.origin}: the model has {trained.model.vocab_size} tokens and this command "
            f"reads bytes; give a model of {vocab_size}"
        )
