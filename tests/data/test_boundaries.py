# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Where documents end, and whole runs that stop there."""

import json

import numpy as np
import pytest

from pqt_jax import generate, train
from pqt_jax.data import boundaries, prepare, source, tokens
from pqt_jax.data.source import Text
from pqt_jax.errors import InputError
from pqt_jax.training import final_evaluation, step
from pqt_jax.training.run import metrics
from support import tiny
from support.command import refused
from support.tokenizer_files import make

MASK = "--config.data.boundaries=mask"


def text(train, end=None):
    return Text(np.asarray(train, np.uint8), np.zeros(9, np.uint8), "0123", "made up", end)


def test_the_end_is_what_the_text_says_or_the_user():
    assert boundaries.set_end_token(text([1, 2, 3], 2), -1, needed=True).end == 2
    assert boundaries.set_end_token(text([1, 2, 3], 2), 2, needed=True).end == 2
    assert boundaries.set_end_token(text([1, 2, 3]), 3, needed=True).end == 3
    assert boundaries.set_end_token(text([1, 2, 3]), -1, needed=False).end is None
    assert boundaries.set_end_token(text([1, 2, 3]), 9, needed=False).end == 9


@pytest.mark.parametrize("needed", [False, True])
def test_an_end_beside_that_of_the_index_is_refused(needed):
    with pytest.raises(InputError, match=r"end_token=3; .* end with 2: give that, or -1"):
        boundaries.set_end_token(text([1, 2, 3], 2), 3, needed=needed)


@pytest.mark.parametrize("given", [9, 300])
def test_an_end_that_is_nowhere_is_refused(given, monkeypatch):
    monkeypatch.setattr(boundaries, "_CHUNK", 2)
    assert boundaries.set_end_token(text([1, 2, 3, 4, 5]), 5, needed=True).end == 5
    with pytest.raises(InputError, match=f"end_token={given}: the training text has no such token"):
        boundaries.set_end_token(text([1, 2, 3, 4, 5]), given, needed=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder that holds bytes-tokens and json-tokens, of documents of 3 to 39 bytes."""
    folder = tmp_path_factory.mktemp("data")
    words = tiny.write_text(folder / "text").read_text()
    lines = [json.dumps({"text": words[i * 31 : i * 31 + 3 + i % 37]}) for i in range(150)]
    (folder / "in.jsonl").write_text("\n".join(lines))
    for kind in ("bytes", "json"):
        options = [f"--input={folder}/in.jsonl", f"--out={folder / kind}-tokens", "--processes=1"]
        given = [f"--tokenizer={make(kind, folder)}", "--validation=0.2", *options]
        assert prepare.main(given) == 0
    return folder


def arguments(tmp_path, data, *more):
    given = ["--config=tests/support/tiny.py", f"--workdir={tmp_path / 'run'}", "--config.steps=8"]
    return [*given, f"--config.data.tokens={data}", "--config.model.vocab_size=400", *more]


@pytest.mark.slow
def test_a_run_on_prepared_documents(tmp_path, prepared, monkeypatch, capsys):
    ends = []

    def spy(module, name):
        make = getattr(module, name)

        def wrapped(*args, **options):
            ends.append(options["end"])
            return make(*args, **options)

        monkeypatch.setattr(module, name, wrapped)

    spy(step, "build_train_step")
    spy(final_evaluation, "make_loss")
    given = arguments(tmp_path, prepared / "json-tokens", "--config.steps=4", MASK)
    assert train.main(given) == 0
    shown = capsys.readouterr().out
    assert "config.data.boundaries=mask\n" in shown and "master" in shown
    assert ends == [tokens.read_index(prepared / "json-tokens").end] * 2
    losses = [r["loss"] for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert np.isfinite(losses).all() and len(losses) == 4
    message = refused(train.main, given[:-1], capsys)
    assert "config.data.boundaries was 'mask' and is 'token'; give another --workdir" in message
    message = refused(train.main, [*given, "--config.data.end_token=17"], capsys)
    assert "config.data.end_token=17; by their index the documents of config.data.tokens" in message
    # Without a prompt a text does not begin behind an end token, which predicted nothing.
    run = f"--workdir={tmp_path / 'run'}"
    assert generate.main([run, "--tokens=1", "--temperature=0"]) == 0
    assert capsys.readouterr().out.startswith("\n")


def test_bare_files_need_the_token(tmp_path, prepared, capsys):
    ids = np.fromfile(next((prepared / "bytes-tokens").glob("train-*.bin")), np.uint16)
    assert np.sum(ids == 256) > 100  # which is what `--tokenizer=bytes` ends documents with
    ids.tofile(tmp_path / "train.bin")
    given = arguments(tmp_path, tmp_path / "*.bin", MASK, "--config.steps=3")
    for more, message in (
        ((), "config.data.boundaries='mask': nothing says where a document ends; give the token "),
        (("--config.data.end_token=257",), "end_token=257: the training text has no such token"),
        (("--config.data.end_token=400",), "=400; it must be below config.model.vocab_size=400"),
    ):
        assert message in refused(train.main, [*given, *more], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bare_files_train_as_prepared_ones_do(tmp_path, prepared):
    """The same text with its end token in the index, and in the config."""
    folder, index, found = prepared / "bytes-tokens", {}, []
    for part, name in (("train", "train.bin"), ("validation", "val.bin")):
        (index[part],) = folder.glob(f"{part}-*.bin")
        (tmp_path / name).write_bytes(index[part].read_bytes())
    for i, (data, end) in enumerate(((folder, -1), (tmp_path / "*.bin", 256))):
        more = ("--config.data.microbatches=2", "--config.data.loss_chunk=4", "--config.steps=4")
        more += (MASK, f"--config.data.end_token={end}")
        assert train.main(arguments(tmp_path / str(i), data, *more)) == 0
        records = metrics.read(tmp_path / str(i) / "run" / "metrics.jsonl")
        found.append([r.get("loss", r.get("validation_loss")) for r in records])
    assert found[0] == found[1] and len(found[0]) == 5


def test_text_files_have_no_end_but_a_byte_of_their_own(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a quick fox\n" * 400)
    given = [
        "--config=tests/support/tiny.py",
        f"--workdir={tmp_path / 'run'}",
        MASK,
        "--config.steps=3",
    ]
    given += [f"--config.data.files={tmp_path}/a.txt"]
    assert "nothing says where a document ends" in refused(train.main, given, capsys)
    none = refused(train.main, [*given, "--config.data.end_token=0"], capsys)
    assert "config.data.end_token=0: the training text has no such token; give the one" in none
    found = boundaries.set_end_token(source.load(f"{tmp_path}/a.txt"), ord("\n"), needed=True)
    assert found.end == 10
