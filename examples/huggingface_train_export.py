# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A Hugging Face folder → train on with sampled weights → export, in FP4 and for transformers.

    python examples/huggingface_train_export.py

The folder here is written by the example itself: a small byte-level Llama with new weights. Any
folder of a Llama or a GPT-2 will do, if the config file describes a model of the same shape; the
trainer refuses another with one line. Each call below is the command of the same name: `train.main`
is `python -m pqt_jax.train`.
"""

import tempfile
from pathlib import Path

from flax import nnx

from pqt_jax import evaluate, export, train
from pqt_jax.interchange import huggingface
from pqt_jax.models import Llama2, Llama2Config

SHAPE = {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128, "max_length": 64}


def write_folder(folder: Path) -> None:
    """A Hugging Face folder, as `save_pretrained` of transformers would write it."""
    config = Llama2Config(vocab_size=256, **SHAPE)
    model = Llama2(config, [], rngs=nnx.Rngs(0))
    huggingface.save(folder, config, nnx.state(model, nnx.Param), dtype="float32")


def run(command, *arguments: str) -> None:
    """Run a command of the package; its exit code must be 0."""
    print(f"\n$ python -m {command.__name__} {' '.join(arguments)}")
    code = command.main(arguments)
    if code:
        raise SystemExit(code)


def main(folder: Path, steps: int = 40) -> Path:
    """Run the whole way in `folder`; returns the exported Hugging Face folder."""
    write_folder(folder / "start")
    shape = [f"--config.model.{name}={value}" for name, value in SHAPE.items()]
    text = [f"--config.data.files={Path(__file__).parent}/../pqt_jax/*/*.py"]
    run(
        train,
        "--config=quickstart",
        f"--workdir={folder}/run",
        f"--config.init_from={folder}/start",
        f"--config.steps={steps}",
        "--config.data.length=64",
        "--config.optimizer.warmup_steps=2",
        "--config.log.validation_batches=4",
        *shape,
        *text,
    )
    weights = [f"--workdir={folder}/run", "--format=fp4_e2m1"]
    run(export, *weights, f"--out={folder}/packed")
    run(export, *weights, "--layout=huggingface", f"--out={folder}/fp4")
    texts = f"--data={Path(__file__).parent}/*.py"
    run(evaluate, f"--packed={folder}/packed", "--length=64", texts)
    run(
        evaluate,
        f"--hf={folder}/fp4",
        "--length=64",
        texts,
        "--weights=master",
        "--tokenizer=bytes",
    )
    return folder / "fp4"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
