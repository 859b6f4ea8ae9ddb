# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Files → tokens on disk: what is written, that it is what the tokenizer says, and bad input."""

import gzip
import json
import os
import re
import signal
import sys

import numpy as np
import pytest

from pqt_jax import train
from pqt_jax.data import encoding, prepare, tokenizers, tokens
from support import tiny
from support.command import refused
from support.document_files import TEXTS, is_held_out, json_lines, without_processes
from support.tokenizer_files import make, make_hugging_face


def write_texts(folder, count=40):
    folder.mkdir()
    texts = {f"{i:02d}.txt": f"<{i}> " + "über " * (i % 7) + "x" * i for i in range(count)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return f"--input={folder}/*.txt", list(texts.values())


def run(*arguments):
    assert prepare.main([*arguments, "--processes=2"]) == 0


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["bytes", "json"])
def test_what_is_written_is_what_the_tokenizer_says(tmp_path, capsys, kind):
    given, texts = write_texts(tmp_path / "in")
    path = make(kind, tmp_path)
    out = tmp_path / "out"
    run(f"--tokenizer={path}", given, f"--out={out}", "--validation=0.2", "--shard=100")
    shown = capsys.readouterr().out
    tokenizer, index = tokenizers.load(path), json.loads((out / "index.json").read_text())
    for part in ("train", "validation"):
        held = part == "validation"
        mine = [t.encode() for t in texts if is_held_out(t.encode(), 0.2) == held]
        ids = [i for text in mine for i in [*tokenizer.encode(text), tokenizer.end]]
        shards = [np.fromfile(out / s["file"], np.uint16) for s in index[part]["shards"]]
        assert np.concatenate(shards).tolist() == ids
        assert [len(x) for x in shards[:-1]] == [100] * (len(shards) - 1) and len(shards) > 1
        assert index[part]["documents"] == len(mine) > 0
        assert index[part]["bytes"] == sum(map(len, mine)) and index[part]["tokens"] == len(ids)
        assert f"{part}: {len(mine)} documents" in shown
    assert (out / tokenizer.name).exists() == (kind != "bytes")
    text = tokens.load(str(out), tokenizer.vocab_size)
    assert len(text.train) == index["train"]["tokens"]
    assert len(text.validation) == index["validation"]["tokens"]


@pytest.mark.slow
def test_processes_and_batches_change_nothing(tmp_path, monkeypatch):
    given, _ = write_texts(tmp_path / "in")
    for name, processes, batch in (("a", 1, 1 << 20), ("b", 3, 10)):
        monkeypatch.setattr(encoding, "_BATCH", batch)
        options = [given, f"--out={tmp_path / name}", "--validation=0.2", "--tokenizer=bytes"]
        assert prepare.main([*options, f"--processes={processes}"]) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_every_document_of_a_file_of_many(tmp_path):
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(json_lines() * 30))
    out = tmp_path / "out"
    texts = {is_held_out(t.encode(), 0.5) for t in TEXTS if t}
    assert texts == {False, True}  # else there is nothing for one part
    run("--tokenizer=bytes", f"--input={tmp_path}/*.gz", f"--out={out}", "--validation=0.5")
    index = json.loads((out / "index.json").read_text())
    assert sum(index[part]["documents"] for part in tokens.SPLITS) == 90  # empty ones are none


@pytest.mark.slow
def test_a_run_trains_on_what_was_prepared(tmp_path, capsys):
    tiny.write_text(tmp_path / "a.txt", 9000)
    tiny.write_text(tmp_path / "b.txt", 3000)
    path, out = make("json", tmp_path), tmp_path / "out"
    share = next(
        s / 100
        for s in range(1, 100)
        if is_held_out((tmp_path / "b.txt").read_bytes(), s / 100)
        != is_held_out((tmp_path / "a.txt").read_bytes(), s / 100)
    )
    given = [f"--input={tmp_path}/?.txt", f"--out={out}", f"--validation={share}"]
    run(f"--tokenizer={path}", *given)
    capsys.readouterr()
    arguments = [
        "--config=tests/support/tiny.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.tokens={out}",
        "--config.steps=8",
        "--config.model.vocab_size=400",
    ]
    assert train.main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"tokens under {out}, tokenizer tokenizer.json" in " ".join(shown.split())
    assert "master" in shown
    small = refused(train.main, [*arguments, "--config.model.vocab_size=300"], capsys)
    assert "it must be below config.model.vocab_size=300" in small
    both = refused(train.main, [*arguments, "--config.data.files=x"], capsys)
    assert "config.data.files='x' and config.data.tokens=" in both and "give one" in both
    shard = next(out.glob("train-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    assert "it is incomplete, put a copy back" in refused(train.main, arguments, capsys)


BAD = {
    "--tokenizer=gpt2": "--tokenizer=gpt2; it must be bytes, a .json file",
    "--input=nothing/*": "--input='nothing/*' matches no file",
    "--validation=1": "--validation: '1'; it must be above 0 and below 1",
    "--validation=1e-9": "--validation=1e-09: none of 3 documents is for validation; give "
    "more documents, or another share, such as ",
    "--shard=0": "--shard: '0'; it must be a whole number from 1 on",
    "--shard=1.5": "--shard: '1.5'; it must be a whole number from 1 on",
    "--processes=x": "--processes: 'x'; it must be a whole number",
    "--out=in": "--out=in exists and holds 00.txt; give another folder",
    "--end=x": "--end and --pattern do not go with --tokenizer=bytes",
    "--inputs=x": "unrecognized arguments: --inputs=x",
}


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def make_killed(*_):
    return killed


def test_a_process_that_is_killed_is_said(tmp_path, monkeypatch, capsys):
    write_texts(tmp_path / "in", 3)
    monkeypatch.setattr(encoding, "_make_encoder", make_killed)
    given = ["--tokenizer=bytes", f"--input={tmp_path}/in/*", f"--out={tmp_path / 'out'}"]
    message = refused(prepare.main, [*given, "--processes=1"], capsys)
    assert "a process was killed, perhaps for lack of memory; give fewer --processes" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, argument):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "in", 3)
    given = ["--tokenizer=bytes", "--input=in/*.txt", "--out=out", "--processes=1", argument]
    assert BAD[argument] in refused(prepare.main, given, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_token_that_ends_documents_is_needed(tmp_path, capsys):
    path = make_hugging_face(tmp_path / "t.json", end="[STOP]")
    given, _ = write_texts(tmp_path / "in")
    given = [f"--tokenizer={path}", given, f"--out={tmp_path / 'out'}", "--validation=0.2"]
    message = refused(prepare.main, given, capsys)
    assert "t.json has none of <|endoftext|>, " in message and message.endswith("by --end\n")
    run(*given, "--end=[STOP]")
    assert tokens.read_index(tmp_path / "out").end == 0


def test_text_that_is_none_is_named(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    given = [f"--tokenizer={make('json', tmp_path)}", f"--input={tmp_path}/a.txt", "--processes=1"]
    message = refused(prepare.main, [*given, f"--out={tmp_path / 'out'}"], capsys)
    assert f"{tmp_path}/a.txt, document 1 has bytes that are not UTF-8 (" in message


@pytest.mark.parametrize("kind", ["words", "user_defined"])
def test_a_text_that_spells_the_end_token_is_one_document(tmp_path, kind):
    lines = [json.dumps({"text": f"a </s> b</s>c </s> {i}"}) + "\n" for i in range(32)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    given = [f"--tokenizer={make(kind, tmp_path)}", f"--input={tmp_path}/in.jsonl"]
    assert (
        prepare.main([*given, f"--out={tmp_path / 'out'}", "--validation=0.3", "--end=</s>"]) == 0
    )
    index = tokens.read_index(tmp_path / "out")
    streams = tokens.load(str(tmp_path / "out"), index.vocab_size)
    ends = [int((part[:] == index.end).sum()) for part in (streams.train, streams.validation)]
    assert sum(ends) == 32 and min(ends) > 0


def test_what_a_tokenizer_cannot_encode_is_named_by_file_and_document(tmp_path, capfd):
    texts = ["a", "", "b" + "\n" * 2_000_000 + "c"]  # too much for the stack of tiktoken's regex
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    given = [f"--tokenizer={make('tiktoken', tmp_path)}", f"--input={tmp_path}/in.jsonl"]
    assert prepare.main([*given, f"--out={tmp_path / 'out'}", "--processes=1"]) == 2
    message = capfd.readouterr().err  # also of the other process
    assert message.startswith(
        f"error: --input: {tmp_path}/in.jsonl, document 3 cannot be tokenized"
    )
    assert message.count("\n") == 1 and "StackOverflow" in message


def prepared(tmp_path, *arguments):
    with without_processes():
        given = ["--tokenizer=bytes", f"--out={tmp_path / 'out'}", *map(str, arguments)]
        return prepare.main(given)


def test_what_has_no_text_is_left_out_and_said(tmp_path, capsys):
    write_texts(tmp_path / "in", 9)
    (tmp_path / "in" / "empty.txt").write_text("")
    (tmp_path / "in" / "null.jsonl").write_text('{"text": null}\n')
    lines = ['{"text": "a"}', '{"text": null}', '{"text": ""}', '{"text": "b"}']
    (tmp_path / "in" / "some.jsonl").write_text("\n".join(lines))
    (tmp_path / "in" / "some.csv").write_text('id,text\n1,c\n2,\n3,""\n')
    assert prepared(tmp_path, "--validation=0.4", f"--input={tmp_path}/in/*") == 0
    folder = tmp_path / "in"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: --input: left out, since there is no text in it: {folder}/empty.txt, "
        f"{folder}/null.jsonl",
        "warning: --input: left out: 4 documents without text, the first in "
        f"{folder}/some.csv, document 2",
    ]
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert sum(index[split]["documents"] for split in tokens.SPLITS) == 9 + 2 + 1


@pytest.mark.parametrize("content", ["", '{"text": null}'])
def test_files_without_text_are_named(tmp_path, capsys, content):
    (tmp_path / "a.jsonl").write_text(content)
    given = ["--tokenizer=bytes", f"--input={tmp_path}/a.jsonl", f"--out={tmp_path / 'out'}"]
    message = refused(prepare.main, given, capsys)
    assert (
        message == f"error: --input: there is no text in {tmp_path}/a.jsonl; give files with text\n"
    )


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("share", ["1e-9", "0.999999999"])
def test_the_share_that_is_suggested_works(tmp_path, capsys, count, share):
    given = [write_texts(tmp_path / "in", count)[0]]
    assert prepared(tmp_path, *given, f"--validation={share}") == 2
    message = capsys.readouterr().err
    assert f"none of {count} documents is for " in message
    suggested = re.search(r"give more documents, or another share, such as (\S+)\n", message)[1]
    assert len(suggested) < 8
    assert prepared(tmp_path, *given, f"--validation={suggested}") == 0


def test_one_text_cannot_be_divided(tmp_path, capsys):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("the same")
    assert prepared(tmp_path, f"--input={tmp_path}/?.txt") == 2
    message = capsys.readouterr().err
    assert "none of 2 documents is for validation; 2 at least, of different texts, are" in message


def test_a_whole_number_may_be_written_as_the_default_is_shown(tmp_path):
    given, _ = write_texts(tmp_path / "in")
    assert prepared(tmp_path, given, "--validation=0.2", "--shard=1e2") == 0
    assert tokens.read_index(tmp_path / "out").shards["train"][0].count == 100


def test_under_mpirun_lines_are_printed_instead_of_a_bar(tmp_path, monkeypatch, capsys):
    given, _ = write_texts(tmp_path / "in", 4)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    monkeypatch.setattr(encoding, "_LINE_EVERY", -1)
    assert prepared(tmp_path, given, "--validation=0.5") == 0
    out = capsys.readouterr().out
    assert "file 4 of 4, 0 MB of text\n" in out and "\x1b" not in out


def test_bos_that_a_tokenizer_lacks_or_ends_documents_with_is_refused(tmp_path, capsys):
    given = [write_texts(tmp_path / "in", 2)[0], f"--out={tmp_path / 'out'}", "--bos"]
    message = refused(prepare.main, [*given, "--tokenizer=bytes"], capsys)
    assert "--bos: tokenizer bytes has none; leave it out" in message
    words = [*given, f"--tokenizer={make('words', tmp_path)}", "--end=<s>"]
    message = refused(prepare.main, words, capsys)
    assert (
        "--bos: the BOS of tokenizer tokenizer.json also ends documents, token 1; leave" in message
    )
