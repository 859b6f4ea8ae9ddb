# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Models in GGUF files are evaluated and sampled from as those of other files."""

import json

import numpy as np
import pytest

from pqt_jax import evaluate, export, generate
from pqt_jax.analysis import document_begin, find_tokenizer, load
from pqt_jax.data import tokenizers
from pqt_jax.errors import InputError
from pqt_jax.interchange import gguf_model, gguf_tokenizer, huggingface, layouts
from pqt_jax.numerics.formats import E2M1
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import gguf_files, low_bit_folder, tiny, tokenizer_files
from support.command import refused

BYTES = gguf_tokenizer.describe("bytes", b"", 256, begin=None, end=256)


def write(path, tokenizer=BYTES, vocab_size=256):
    """A model of mixed formats; returns its configuration and the numbers it stands for."""
    config, params = gguf_files.make("llama of few kv heads", vocab_size=vocab_size)
    values, rounded = gguf_files.encode_model(config, params, gguf_files.mixed)
    gguf_model.write(path, config, values, tokenizer=tokenizer, name="tiny")
    return config, rounded


def options(*given):
    return generate.parser().parse_args(given)


def test_a_file_is_read_as_the_numbers_that_it_stands_for(tmp_path):
    config, rounded = write(tmp_path / "a.gguf")
    loaded = load.load_model(options(f"--gguf={tmp_path / 'a.gguf'}"))
    assert loaded.config == config and loaded.run_config is None
    assert loaded.origin == str(tmp_path / "a.gguf")
    found = paths_and_leaves(loaded.params)
    assert found.keys() == rounded.keys()
    for path, array in rounded.items():
        np.testing.assert_array_equal(found[path], array)


def test_it_is_evaluated_and_sampled_from_as_a_folder_of_the_same_numbers(tmp_path, capsys):
    config, rounded = write(tmp_path / "a.gguf")
    params = huggingface.nest_by_path(rounded)
    huggingface.save(tmp_path / "hf", config, params, dtype="float32")
    tiny.write_text(tmp_path / "text.txt", 300)
    origins = (f"--gguf={tmp_path / 'a.gguf'}", f"--hf={tmp_path / 'hf'}")
    losses, texts = [], []
    for number, origin in enumerate(origins):
        out = tmp_path / f"{number}.json"
        data = [f"--data={tmp_path / 'text.txt'}", f"--json={out}", "--weights=master"]
        assert evaluate.main([origin, *data]) == 0
        assert ("as stored" in capsys.readouterr().out) == (number == 0)
        losses.append(json.loads(out.read_text())["weights"]["master"]["loss"])
        assert generate.main([origin, "--prompt=the ", "--temperature=0", "--tokens=12"]) == 0
        texts.append(capsys.readouterr().out.splitlines()[-1])
    assert losses[0] == losses[1] and texts[0] == texts[1]


def test_its_weights_are_rounded_already(tmp_path, capsys):
    write(tmp_path / "a.gguf")
    tiny.write_text(tmp_path / "text.txt", 300)
    out = tmp_path / "a.json"
    given = [f"--gguf={tmp_path / 'a.gguf'}", f"--data={tmp_path / 'text.txt'}", f"--json={out}"]
    assert evaluate.main(given) == 0
    assert json.loads(out.read_text())["weights"].keys() == {"master"}
    given = [f"--gguf={tmp_path / 'a.gguf'}", "--format=fp4_e2m1", f"--out={tmp_path / 'out'}"]
    message = refused(export.main, given, capsys)
    assert "--gguf: those weights are exported already; give --workdir or --hf" in message


@pytest.mark.parametrize("layout", layouts.LAYOUTS.values(), ids=layouts.LAYOUTS.keys())
def test_weights_of_a_folder_in_few_bits_are_rounded_already(tmp_path, capsys, layout):
    low_bit_folder.write(tmp_path / "m", layout, low_bit_folder.LLAMA, E2M1)
    tiny.write_text(tmp_path / "text.txt", 300)
    given = [f"--hf={tmp_path / 'm'}", f"--data={tmp_path / 'text.txt'}"]
    assert evaluate.main(given) == 0
    rows = capsys.readouterr().out.split("\nweights ")[1].splitlines()[1:]
    assert [row.split("  ")[0] for row in rows] == ["as stored"]


def test_a_file_of_something_else_is_refused_by_a_line(tmp_path, capsys):
    (tmp_path / "a.gguf").write_bytes(b"GGML" + bytes(100))
    message = refused(generate.main, [f"--gguf={tmp_path / 'a.gguf'}"], capsys)
    assert "a.gguf is not a GGUF file; give one" in message
    assert "--gguf= is empty; give a file" in refused(generate.main, ["--gguf="], capsys)
    message = refused(generate.main, [f"--gguf={tmp_path / 'a.gguf'}", "--hf=x"], capsys)
    assert "not allowed with argument --gguf" in message


def of_json(folder, vocab_size, **changes):
    path = tokenizer_files.make_hugging_face(folder / "tokenizer.json")
    content = path.read_bytes()
    path.rename(folder / "elsewhere.json")
    found = gguf_tokenizer.describe(path.name, content, vocab_size, begin=None, end=0)
    return found | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def find(folder, *given):
    chosen = options(f"--gguf={folder / 'a.gguf'}", *given)
    return find_tokenizer.find_tokenizer(chosen, load.load_model(chosen))


@pytest.mark.parametrize("vocab_size", [256, 257, 320])
def test_a_tokenizer_of_bytes_is_known(tmp_path, vocab_size):
    found = gguf_tokenizer.describe("bytes", b"", vocab_size, begin=None, end=256)
    write(tmp_path / "a.gguf", found, vocab_size)
    assert find(tmp_path).name == "bytes" and find(tmp_path).begin is None


def test_another_tokenizer_is_one_beside_the_file_or_given(tmp_path):
    write(tmp_path / "a.gguf", of_json(tmp_path, 384), 384)
    with pytest.raises(InputError, match="--tokenizer is missing; the tokenizer in .*a.gguf is ll"):
        find(tmp_path)
    own = tmp_path / "elsewhere.json"
    assert find(tmp_path, f"--tokenizer={own}").name == "elsewhere.json"
    own.rename(tmp_path / "tokenizer.json")
    assert find(tmp_path).name == "tokenizer.json"


def test_without_a_tokenizer_256_tokens_are_bytes(tmp_path):
    write(tmp_path / "a.gguf", gguf_tokenizer.NONE)
    assert find(tmp_path).name == "bytes"
    write(tmp_path / "a.gguf", gguf_tokenizer.NONE, 320)
    with pytest.raises(InputError, match="has 320 tokens, and it holds no tokenizer"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("changes", "begin"),
    [
        ({}, None),
        ({"add_bos_token": True, "bos_token_id": 7}, 7),
        ({"add_bos_token": False, "bos_token_id": 7}, None),
        ({"add_bos_token": None, "bos_token_id": 7, "model": "llama"}, 7),
        ({"add_bos_token": None, "bos_token_id": 7}, None),
    ],
)
def test_documents_begin_as_the_file_says(tmp_path, changes, begin):
    metadata = of_json(tmp_path, 384, **changes)
    kept = {name: value for name, value in metadata.items() if value is not None}
    write(tmp_path / "a.gguf", kept, 384)
    tokenizer = tokenizers.load(str(tmp_path / "elsewhere.json"))
    given = options(f"--gguf={tmp_path / 'a.gguf'}")
    assert document_begin.set_begin(given, tokenizer, None).begin == begin
    given = options(f"--gguf={tmp_path / 'a.gguf'}", "--no-bos")
    assert document_begin.set_begin(given, tokenizer, None).begin is None
