# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The command that evaluates: what it prints and writes, and what it refuses."""

import gzip
import json
import math
import re
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest

from pqt_jax import evaluate
from pqt_jax.analysis import evaluation_text
from pqt_jax.data import tokenizers
from pqt_jax.errors import InputError
from pqt_jax.training import named_formats
from pqt_jax.training.run import digests
from support import tiny
from support.command import refused


def test_all_formats_on_the_runs_own_text(trained_run, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = [f"--workdir={trained_run}", f"--json={out}"]
    assert evaluate.main(arguments) == 0
    shown = capsys.readouterr().out
    results = json.loads(out.read_text())
    # A twentieth of 6000 bytes is held out; the first has no context.
    assert results["scored"] == 299 and results["length"] == 16 and results["documents"] == 1
    assert "1 document, 300 bytes, 299 scored once each (the first byte of a document" in shown
    assert results["units"] == 19 and "19 chunks of consecutive windows" in shown
    assert list(results["weights"]) == list(named_formats.LABELS)
    summary = json.loads((trained_run / "summary.json").read_text())
    for name, row in results["weights"].items():
        loss = row["loss"]
        assert loss["low"] < loss["value"] < loss["high"]
        assert row["bits_per_byte"]["high"] == pytest.approx(loss["high"] / math.log(2))
        assert f"{named_formats.LABELS[name]:<20}{loss['value']:.4f} [" in shown
        if name in summary:  # of fewer windows, and without the last, partial one
            assert loss["value"] == pytest.approx(summary[name], abs=0.1)
    rows = results["weights"]
    assert rows["master"]["difference"] == {"value": 0, "low": 0, "high": 0}
    gap = rows["fp4_e2m1"]["loss"]["value"] - rows["master"]["loss"]["value"]
    assert rows["fp4_e2m1"]["difference"]["value"] == pytest.approx(gap) and gap != 0
    assert len({row["loss"]["value"] for row in rows.values()}) >= 7
    again = tmp_path / "again.json"
    assert evaluate.main([*arguments[:1], f"--json={again}"]) == 0
    assert again.read_text() == out.read_text()


def test_documents_and_chosen_formats(trained_run, tmp_path, capsys):
    for name, size in (("a", 40), ("b", 700), ("c", 1)):
        tiny.write_text(tmp_path / f"{name}.txt", size)
    data = f"--data={tmp_path}/*.txt"
    options = [f"--workdir={trained_run}", data, "--weights=fp6_e2m3", "--length=32", "--batch=7"]
    assert evaluate.main(options) == 0
    out = capsys.readouterr().out
    assert "3 documents, 741 bytes, 738 scored" in out and "in windows of 32" in out
    assert "95 % intervals over 2 documents" in out
    assert re.findall(r"^(master weights|FP\S+ \S+)", out, re.M) == ["master weights", "FP6 E2M3"]
    tiny.write_text(tmp_path / "short.txt", 10)
    assert evaluate.main([*options, f"--data={tmp_path}/short.txt"]) == 0
    out = capsys.readouterr().out
    assert "no intervals: there is only one document" in out and "nan" not in out


def test_an_empty_file_is_left_out_and_named(tmp_path, capsys):
    for name, text in (("a", "text"), ("b", ""), ("c", "more")):
        (tmp_path / f"{name}.txt").write_text(text)
    options = Namespace(data=f"{tmp_path}/*.txt", field="text")
    model: Any = SimpleNamespace(config=tiny.LLAMA2, origin="run")
    _, documents = evaluation_text.read_documents(options, model, tokenizers.load("bytes"))
    assert [bytes(document.tokens.tolist()) for document in documents] == [b"text", b"more"]
    assert capsys.readouterr().err == (
        f"warning: --data: left out, since there is no text in it: {tmp_path}/b.txt\n"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.parquet"])
def test_documents_are_read_as_they_are_prepared(tmp_path, capsys, name):
    import pyarrow.parquet

    lines = [json.dumps({"body": text}) for text in ("one", None, "two words")]
    path = tmp_path / name
    if name == "a.parquet":
        table = pyarrow.table({"body": ["one", None, "two words"]})
        pyarrow.parquet.write_table(table, path)
    elif name == "a.csv":
        path.write_text("n,body\n1,one\n2,\n3,two words\n")
    else:
        content = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    options = evaluate.parse(["--workdir=run", f"--data={path}", "--field=body"])
    model: Any = SimpleNamespace(config=tiny.LLAMA2, origin="run")
    _, documents = evaluation_text.read_documents(options, model, tokenizers.load("bytes"))
    assert [bytes(document.tokens.tolist()) for document in documents] == [b"one", b"two words"]
    assert f"1 document without text, the first in {path}, document 2" in capsys.readouterr().err
    options.field = "text"
    with pytest.raises(InputError, match=rf"--data: {path}.* no (text|column) 'text' \(there is"):
        evaluation_text.read_documents(options, model, tokenizers.load("bytes"))


BAD_OPTIONS = {
    "--weights=all,int4": "--weights: 'int4'; it must be",
    "--weights=all,bf16": "--weights: 'all'; it must be all alone",
    "--weights=int4": "--weights: 'int4'; it must be all alone, or of master, bf16",
    "--length=0": "--length: '0'; it must be a whole number from 1 on",
    "--json=nowhere/x.json": "--json=nowhere/x.json: its folder does not exist",
    "--json=/": "--json=/ is a directory",
    "--dat=x": "unrecognized arguments: --dat=x",
    "--hf=x": "--hf: not allowed with argument --workdir",
}


@pytest.mark.parametrize("argument", BAD_OPTIONS)
def test_options_that_cannot_be_used_are_refused(argument):
    with pytest.raises(InputError, match=re.escape(BAD_OPTIONS[argument])):
        evaluate.parse(["--workdir=run", argument])


def test_a_model_or_a_text_is_missing():
    with pytest.raises(InputError, match="--workdir --hf --packed --gguf is required"):
        evaluate.parse([])
    with pytest.raises(InputError, match="--data is missing"):
        evaluate.parse(["--hf=x"])


BAD_INPUT = {
    "--workdir=nowhere": "--workdir=nowhere does not exist; give the workdir",
    "--length=33": "--length=33; it must be at most 32",
    "--data=nowhere/*": "--data='nowhere/*' matches no file",
}


@pytest.mark.parametrize("argument", BAD_INPUT)
def test_bad_input_is_one_line_and_compiles_nothing(
    trained_run, tmp_path, monkeypatch, capsys, argument
):
    monkeypatch.chdir(tmp_path)  # an empty folder
    arguments = [f"--workdir={trained_run}", argument]
    assert BAD_INPUT[argument] in refused(evaluate.main, arguments, capsys)


def test_text_that_has_changed_is_refused(run_copy, trained_run, tmp_path, capsys):
    meta = json.loads((run_copy / "run.json").read_text())
    text = tiny.write_text(tmp_path / "text.txt", 5000)
    meta["config"]["data"]["files"] = str(text)
    for path in [run_copy / "run.json", *run_copy.glob("checkpoints/*/meta/metadata")]:
        content = json.loads(path.read_text())
        content["config"]["data"]["files"] = str(text)
        if content.pop("digest", None):
            content["digest"] = digests.json_digest(content)
        path.write_text(json.dumps(content))
    message = refused(evaluate.main, [f"--workdir={run_copy}"], capsys)
    assert "is not the text that the run was trained on; give --data" in message
