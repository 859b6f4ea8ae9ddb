# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""GPT2-124M on real text with bf16, gaussws and uniform noise: the study for a machine with a GPU.

    python benchmarks/gpt2_text.py --runs DIR --markdown docs/results.md [--minutes 10 | --steps N]
    python benchmarks/gpt2_text.py --runs DIR --smoke                       minutes, on a CPU

    Python sources at hand → text.jsonl → pqt_jax.data.prepare → tokens
      → a short run of bf16, whose rate gives the steps that all three methods take
      → pqt_jax.train by method, one after the other, same seed and so same order of the data
        (all at once with --together, where time is short: the same losses, and no times)
      → at once: pqt_jax.evaluate --weights all by method, the compiled step's memory
      → DIR/results.json, a table

Everything is done by the package's commands. A step whose results are in DIR is not repeated, and
an interrupted training run resumes from its checkpoint. Use a GPU that does nothing else, since
times are measured. Attention is cuDNN's, unless `--attention xla`, which needs a smaller batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpt2_text_report
import python_text

from pqt_jax.interchange import files
from pqt_jax.training.run import metrics

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("bf16", "gaussws", "uniform")
LEAST = 60_000_000  # bytes of text
RATE_STEPS = 60
SMOKE = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "vocab_size": 257}


def main() -> int:
    """Run the missing steps of the study, and write the record."""
    parser = argparse.ArgumentParser(description="GPT2-124M on Python sources, three methods.")
    add = parser.add_argument
    add("--runs", type=Path, required=True, metavar="DIR", help="all that is made; begun or new")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="of training bf16; default: 10")
    length.add_argument("--steps", type=int, help="of every method, instead")
    add("--tokenizer", default="bytes", metavar="FILE", help="as for data.prepare; default: bytes")
    add("--batch", type=int, default=64, help="sequences of 1024 tokens in a step; default: 64")
    add("--attention", choices=["cudnn", "xla"], default="cudnn")
    add("--markdown", type=Path, metavar="FILE", help="put the table into this file")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all, bf16 first")
    add("--together", action="store_true", help="train all methods at once, with --steps")
    add("--smoke", action="store_true", help="a tiny model on 100 kB of text, on any device")
    options = parser.parse_args()
    if options.methods[0] != "bf16":
        parser.error("--methods must begin with bf16, with which the others are compared")
    if options.together and options.steps is None:
        parser.error("--together needs --steps: the rate of one method says nothing about three")
    runs = options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    request = {"smoke": options.smoke, "tokenizer": options.tokenizer, "batch": options.batch}
    request |= {"attention": options.attention, "steps": options.steps, "minutes": options.minutes}
    request |= {"together": options.together, "methods": list(options.methods)}
    if once(runs / "request.json", lambda: request) != request:
        parser.error(f"--runs={options.runs} began with other options; give those, or another DIR")
    study = Study(runs, options)
    record = study.run()
    text = json.dumps(record, indent=1).replace(str(options.runs), "DIR")
    (runs / "results.json").write_text(text.replace(str(runs), "DIR") + "\n")
    table = gpt2_text_report.markdown(record)
    print(f"\n{table}")
    if options.markdown:
        gpt2_text_report.insert(options.markdown, table)
    return 0


def once(path: Path, make: Any) -> Any:
    """The content of a JSON file, which is made first if it does not exist."""
    if not path.exists():
        files.write(path, json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


class Study:
    """The steps of the study in one folder.

    Args:
      runs: the folder, absolute.
      options: the command line.
    """

    def __init__(self, runs: Path, options: argparse.Namespace):
        self.runs, self.options = runs, options
        self.commands: list[str] = []

    def run(self) -> dict[str, Any]:
        """Run all steps, and return the record."""
        names = self.options.methods
        text = once(self.runs / "text.json", self._text)
        share = "0.3" if self.options.smoke else "0.01"
        self._command(
            self.runs / "tokens/index.json",
            *("-m", "pqt_jax.data.prepare", "--tokenizer", self.options.tokenizer),
            *("--input", str(self.runs / "text.jsonl"), "--out", str(self.runs / "tokens")),
            *("--validation", share),
        )
        plan = once(self.runs / "plan.json", self._plan)
        training = [self._training(self.runs / method, method, plan["steps"]) for method in names]
        for some in [training] if self.options.together else [[one] for one in training]:
            self._commands(some)
        memory = self.runs / "memory.json"
        scoring: list[tuple[Path, tuple[str, ...]]] = []
        for method in names:
            workdir = self.runs / method
            scores = workdir / "evaluation.json"
            what = ("-m", "pqt_jax.evaluate", "--workdir", str(workdir), "--weights", "all")
            scoring.append((scores, (*what, "--json", str(scores))))
        what = ("benchmarks/step_memory.py", f"--out={memory}")
        scoring.append((memory, (*what, *self._arguments("bf16", plan["steps"]))))
        self._commands(scoring)
        methods = {method: gpt2_text_report.read_run(self.runs / method) for method in names}
        gpt2_text_report.check_paired(methods, plan["steps"])
        measured = json.loads(memory.read_text())
        for method in names:
            methods[method]["memory"] = measured["methods"].pop(method)
        about = {"command": "python " + " ".join(sys.argv), "commands": self.commands}
        about |= {"smoke": self.options.smoke, "together": self.options.together, "text": text}
        return about | measured | plan | {"runs": methods}

    def _text(self) -> dict[str, Any]:
        limit = 100_000 if self.options.smoke else None
        corpus = python_text.write(self.runs / "text.jsonl", limit)
        if limit is None and corpus["bytes"] < LEAST:
            raise SystemExit(
                f"the Python sources at hand are {corpus['bytes']:,} bytes, and {LEAST:,} are "
                "needed; install more packages"
            )
        return corpus

    def _plan(self) -> dict[str, Any]:
        """Steps of every method, and the rate of bf16 that they come from."""
        if self.options.steps is not None:
            return {"steps": self.options.steps, "rate": None}
        workdir = self.runs / "rate"
        self._commands([self._training(workdir, "bf16", RATE_STEPS)])
        records = [r for r in metrics.read(workdir / "metrics.jsonl") if "loss" in r]
        rate = statistics.median(record["tokens_per_s"] for record in records[len(records) // 3 :])
        minutes = self.options.minutes or (0.005 if self.options.smoke else 10)
        steps = round(minutes * 60 * rate * records[-1]["step"] / records[-1]["tokens"])
        return {"steps": max(steps, 20), "rate": rate}

    def _arguments(self, method: str, steps: int) -> list[str]:
        """The trainer's arguments, except its workdir."""
        fields: dict[str, Any] = {"method": method, "steps": steps}
        fields |= {"data.tokens": self.runs / "tokens", "data.batch": self.options.batch}
        fields |= {"mesh.data": 1, "model.attention": self.options.attention}
        fields |= {"optimizer.warmup_steps": steps // 20, "log.every": max(1, min(steps // 10, 25))}
        fields |= {"log.validate_every": max(1, steps // 5), "log.validation_batches": 8}
        fields |= {"log.checkpoint_every": max(500, steps // 4), "log.keep": 1}
        if self.options.smoke:
            fields |= {f"model.{name}": value for name, value in SMOKE.items()}
            fields |= {"model.attention": "xla", "data.length": 64, "data.batch": 4}
            fields |= {"data.loss_chunk": 0}
        command = ["--config", "configs/gpt2_124m.py"]
        return command + [f"--config.{name}={value}" for name, value in fields.items()]

    def _training(self, workdir: Path, method: str, steps: int) -> tuple[Path, tuple[str, ...]]:
        """The file that a run writes at its end, and the arguments of Python that run it."""
        command = ("-m", "pqt_jax.train", f"--workdir={workdir}")
        return workdir / "summary.json", (*command, *self._arguments(method, steps))

    def _command(self, product: Path, *arguments: str) -> None:
        """Run Python on the arguments, unless the product exists."""
        self._commands([(product, arguments)])

    def _commands(self, several: Sequence[tuple[Path, tuple[str, ...]]]) -> None:
        """Run Python on each set of arguments whose product does not exist, all at once."""
        environment = dict(os.environ)
        if len(several) > 1:  # no process reserves the whole memory of the GPU
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        running = []
        for product, arguments in several:
            self.commands.append("python " + " ".join(arguments).replace(str(self.runs), "DIR"))
            if not product.exists():
                print(f"\n$ {self.commands[-1]}", flush=True)
                command = [sys.executable, *arguments]
                running.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit(f"exit codes {codes}; mend it, and run the command again")


if __name__ == "__main__":
    sys.exit(main())
