# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command: whole runs in this process, and input that cannot be used."""

import json
import re
import time

import jax
import pytest

from pqt_jax import train
from pqt_jax.training import step_records
from pqt_jax.training.run import metrics
from support import tiny
from support.command import end, main, start
from support.compilation import count_compilations


@pytest.mark.jax_version
@pytest.mark.slow
def test_bf16_and_gpt2_run_to_the_end_in_process(tmp_path, capsys):
    (tmp_path / "gpt2.py").write_text(
        "from support import tiny\ndef get_config(): return tiny.get_config(tiny.GPT2)\n"
    )
    options = ("--config.method=bf16", "--config.steps=5", "--config.log.every=2")
    assert main(tmp_path, *options, config=tmp_path / "gpt2.py") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mixed"] is summary["mean_bits"] is summary["formats"] is None
    assert summary["fp4_e2m1"] != summary["master"]
    logged = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in logged] == [2, 4, 5]
    assert logged[0]["bits_mean"] is None
    assert not (tmp_path / "run" / "bits.png").exists()
    assert "FP4 E2M1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_rate_counts_the_wait_for_the_step_before(tmp_path, monkeypatch):
    check_step = step_records.check_step

    def late(*arguments):  # as on a GPU, where a step ends long after its dispatch
        time.sleep(0.05)
        return check_step(*arguments)

    monkeypatch.setattr(step_records, "check_step", late)
    assert main(tmp_path, "--config.steps=8", "--config.log.every=4") == 0
    logged = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    tokens = logged[1]["tokens"] - logged[0]["tokens"]
    assert 0 < logged[1]["tokens_per_s"] < tokens / (4 * 0.05)


@pytest.mark.jax_version
@pytest.mark.slow
def test_a_run_that_diverged_ends_with_a_summary(tmp_path, capsys):
    arguments = ("--config.steps=6", "--config.optimizer.learning_rate=1e36")
    arguments += ("--config.pqt.learning_rate=1e36",)
    assert main(tmp_path, *arguments) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"step \d is skipped: its loss or gradient is not finite\n", err)
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    summary = (tmp_path / "run" / "summary.json").read_text()
    found = json.loads(summary, parse_constant=refuse)
    assert found["master"] > 5  # what is not finite has not reached the weights
    losses = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [r["grad_norm"] is None for r in losses].count(True) >= 3 and len(losses) == 6
    for name in ("loss.png", "bits.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    assert main(tmp_path, *arguments) == 0
    out = capsys.readouterr().out
    assert "finished: all 6 steps are done" in out and "learned mixed bits" in out


BAD = {
    "no such file": "--config.data.files=nowhere/text.txt",
    "no match": "--config.data.files=nowhere/*.txt",
    "typo": "--config.optimizer.learnin_rate=1",
    "method": "--config.method=int4",
    "pattern": "--config.pqt.pattern=layers/.*",
    "vectors": "--config.pqt.pattern=norm/scale",
    "everything": "--config.pqt.pattern=.*",
    "stacked vectors": "--config.pqt.pattern=.*norm.*",
    "memory": "--config.model.vocab_size=1e12",
    "no GPU": "--config.model.attention=cudnn",
    "workdir": "--workdir=/dev/null/run",
    "config": "--config=configs/missing.py",
    "sweep": "--config=configs/lab/smoke.py",
    "line break": "--config.op\ntimizer=1",
    "device": "--config.data.files=/dev/zero",
    "path": "--workdir=/" + "x" * 300,
    "not UTF-8": "--workdir=\udcff",
    "a long value": "--config.steps=" + "x" * 5000,
    **{f"{n} parameters": f"--config.model.{n}" for n in ("vocab_size=1e25", "num_layers=2e9")},
}


@pytest.mark.parametrize("argument", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_compiles_nothing(tmp_path, monkeypatch, capsys, argument):
    monkeypatch.chdir(tmp_path)  # which holds nothing
    with count_compilations() as programs:
        code = main(tmp_path, argument)
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 2100
    if "pattern" in argument:
        assert err.startswith("error: config.pqt.pattern=")
    assert not programs
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_output_that_cannot_show_a_name_shows_its_escape(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    folder = tmp_path / "é\udcff"
    folder.mkdir()
    files = f"--config.data.files={tiny.write_text(folder / 'text.txt')}"
    out, err = end(start(f"--workdir={tmp_path / 'run'}", files, "--config.steps=3"))
    assert "config.data.files=" in out and "\\xe9\\xff/text.txt" in out and err == ""


@pytest.mark.slow
def test_short_and_empty_text_in_a_process_of_its_own(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    tiny.write_text(tmp_path / "short.txt", 100)  # its last twentieth is shorter than a sequence
    run = f"--workdir={tmp_path / 'run'}"
    processes = {
        "is empty": start(run, f"--config.data.files={tmp_path / 'empty.txt'}"),
        "the validation text has only 5 tokens": start(
            run, f"--config.data.files={tmp_path / 'short.txt'}"
        ),
    }
    for message, process in processes.items():
        out, err = end(process, 2)
        assert out == "" and err.startswith("error: config.data.") and message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_memory_that_does_not_suffice_is_one_line(tmp_path, monkeypatch, capsys):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(train.loop, "train", exhausted)
    assert main(tmp_path) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: memory does not suffice: RESOURCE_EXHAUSTED: Out of memory all")
    assert "give more of config.data.microbatches" in err and err.count("\n") == 1
