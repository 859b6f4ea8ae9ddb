# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Trained weights that are read one parameter at a time, for models larger than memory.

--workdir RUN | --hf DIR → config, rules, shapes, bit-widths; and a function that reads weights
"""

import dataclasses
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from flax import nnx

from pqt_jax.analysis import load
from pqt_jax.interchange import huggingface
from pqt_jax.models import ModelConfig
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.methods.sampling_rules import quantization_rules
from pqt_jax.training.run import checkpoint
from pqt_jax.transform.nnx_wrapper import BitParam
from pqt_jax.transform.rules import Rule

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A trained model whose weights are not in memory.

    Attributes:
      config, rules, origin, run_config: as in `load.TrainedModel`.
      params: as in `load.TrainedModel`, with `jax.ShapeDtypeStruct` in place of weights. Bit-widths
        are there.
      step: number of the checkpoint; None if it was not read from a run.
      read: path → weights, on the host. Raises InputError if one is not finite.
    """

    config: ModelConfig
    rules: tuple[Rule, ...]
    origin: str
    run_config: RunConfig | None
    params: nnx.State
    step: int | None
    read: Callable[[str], np.ndarray]


def use_model(options: Namespace, use: Callable[[OpenModel], T]) -> T:
    """Open the model that `--workdir` or `--hf` names, and call a function with it.

    Args:
      options: of a parser with `load.add_model_options`, without `--packed`.
      use: the function. It is called again with an older checkpoint if one proves to be damaged, so
        it should leave nothing behind if `read` raises.

    Returns:
      What the function returns.

    Raises:
      InputError: if the model cannot be read.
    """
    load.check_model_options(options)
    if options.workdir is not None:
        return _use_run(Path(options.workdir), use)
    folder = huggingface.open_folder(options.hf)

    def read(path: str) -> np.ndarray:
        values = folder.read(path)
        load.check_finite(values, path, options.hf)
        return values

    model = OpenModel(
        config=folder.config,
        rules=load.HF_RULES,
        origin=options.hf,
        run_config=None,
        params=load.structure(folder.config)[1],
        step=None,
        read=read,
    )
    return use(model)


def _use_run(workdir: Path, use: Callable[[OpenModel], T]) -> T:
    config, meta, like = load.read_run(workdir)
    bits, weights = nnx.split_state(like, BitParam, ...)
    flat = nnx.to_flat_state(weights)

    def use_step(step: int, read_params: checkpoint.ReadParams) -> T:
        origin = f"{workdir}, step {step}"

        def read(path: str) -> np.ndarray:
            one = {keys: leaf for keys, leaf in flat if "/".join(map(str, keys)) == path}
            (values,) = jax.tree.leaves(read_params(nnx.from_flat_state(one)))
            load.check_finite(values, path, origin)
            return values

        params = weights
        if bits:
            params = nnx.merge_state(weights, jax.device_put(read_params(bits)))
        return use(
            OpenModel(
                config=config.model,
                rules=tuple(quantization_rules(config)),
                origin=origin,
                run_config=config,
                params=params,
                step=step,
                read=read,
            )
        )

    return checkpoint.use_newest(workdir, meta, use_step)
