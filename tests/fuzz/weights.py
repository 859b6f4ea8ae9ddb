# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What is read from weights: packed, of Hugging Face, and of runs."""

import dataclasses
import json
import os

import jax
import numpy as np
import safetensors.numpy

from pqt_jax import evaluate, generate
from pqt_jax.analysis import evaluation, generation, load
from pqt_jax.interchange import gguf_model, huggingface
from pqt_jax.quantization import packed_file
from pqt_jax.training import init_from
from pqt_jax.training.config import saved_config, schema
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.run import checkpoint, orbax_errors, workdir
from pqt_jax.training.run_context import RunContext, restore_or_init
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import exported
from support.paths import GOLDEN


def read_packed(folder):
    packed = packed_file.read(folder / packed_file.FILE)
    plan = {path: (str(a.spec), a.index) for path, a in packed.plan.items()}
    return packed.params, plan, packed.model, packed.stream


def read_run(folder):
    run = load.load_run(folder)
    config = run.config.to_dict()
    for section in ("log", "mesh", "watch"):  # a run may change them
        del config[section]
    return config, run.step, paths_and_leaves(run.params)


def resume(folder):
    """The state from which `pqt_jax.train` goes on."""
    meta = json.loads((GOLDEN / "run_17cd108" / "run" / "run.json").read_bytes())
    config = from_values(schema.RunConfig, saved_config.completed(meta["config"]))
    unused = {"text": None, "mesh": None, "signals": [], "take_start": dict, "profile": False}
    run = RunContext(config=config, workdir=folder, meta=meta, **unused)
    with orbax_errors.quiet_orbax():
        os.close(workdir.claim(folder, meta))
        manager = checkpoint.open_manager(folder)
        try:
            start = restore_or_init(run, manager)
        finally:
            checkpoint.close(manager)
    return jax.tree.leaves(start.take_state())


def read_start(folder):
    """The weights of `config.init_from`."""
    config = schema.default(exported.CONFIGS["gpt2"]).to_dict()
    config["model"] |= {"vocab_size": 400, "d_model": 16, "d_ff": 32, "max_length": 64}
    config["init_from"] = str(folder)
    start = init_from.read(from_values(schema.RunConfig, config))
    return paths_and_leaves(start.params), start.fingerprint


def read_hf(folder):
    """The tensors of a Hugging Face folder, by our names, written again by theirs."""
    config, params = huggingface.load(folder)
    huggingface.save(folder / "again", config, params, dtype="float32")
    return read_tensors(folder / "again" / "model.safetensors")


def expect_hf(folder):
    """The same by the safetensors package alone."""
    if (folder / "model.safetensors").exists():
        return read_tensors(folder / "model.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    shards = [read_tensors(folder / name) for name in set(index["weight_map"].values())]
    return {name: array for shard in shards for name, array in shard.items()}


def read_gguf(folder):
    config, params = gguf_model.load(folder / "model.gguf")
    return dataclasses.asdict(config), paths_and_leaves(params)


def read_tensors(path):
    found = safetensors.numpy.load_file(path)
    return {
        name.removeprefix("transformer.").removeprefix("model."): array.astype(np.float32)
        for name, array in found.items()
    }


def origin(option, folder):
    return folder / "model.gguf" if option == "gguf" else folder


def run_evaluate(option):
    """The command, whose numbers are those that it writes by `--json`."""

    def read(folder):
        out = folder / "out.json"
        data = f"--data={folder.parent / 'text.txt'}"
        given = [
            f"--{option}={origin(option, folder)}",
            data,
            "--weights=master,fp4_e2m1",
            f"--json={out}",
        ]
        evaluation.evaluate(evaluate.parse([*given, "--length=16"]))
        return json.loads(out.read_bytes())["weights"]

    return read


def run_generate(option):
    """The command, without what it prints."""

    def read(folder):
        given = [
            f"--{option}={origin(option, folder)}",
            "--prompt=the ",
            "--tokens=4",
            "--weights=master",
        ]
        options = generate.parser().parse_args(given)
        generation.generate(options)
        return None

    return read
