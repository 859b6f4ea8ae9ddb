# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""A folder's tokenizer.json finds the tokens of our tokenizer, whatever kind of file that is of."""

import base64
import json
import random
import re
import sys
from pathlib import Path

import pytest

from pqt_jax.data import (
    tokenizer_conversion,
    tokenizer_files,
    tokenizers,
)
from pqt_jax.data.tokenizer_conversion import Inexact
from pqt_jax.errors import InputError
from support.tokenizer_files import (
    KINDS,
    SPELLED,
    make,
    make_sentencepiece,
    many_texts,
)

ENDS = {"bytes": 256, "json": 0, "tiktoken": 260, "user_defined": None}


def describe(path, **options):
    tokenizer = tokenizers.load(path, **options)
    about = {"name": tokenizer.name, "end": "", "pattern": "", **options}
    return tokenizer, about, b"" if path == "bytes" else Path(path).read_bytes()


def make_files(path, vocab_size=512, **options):
    tokenizer, about, content = describe(path)
    sizes = {"vocab_size": vocab_size, "max_length": 128}
    return tokenizer, tokenizer_files.make_files(about, content, **sizes, **options)


def read(content):
    import tokenizers as hugging_face

    model = hugging_face.Tokenizer.from_str(content.decode())
    model.encode_special_tokens = True
    return model


def check_same(tokenizer, model, texts):
    count = 0
    for text in texts:
        try:
            wanted = list(tokenizer.encode(text.encode()))
        except tokenizers.TextError:
            continue
        assert model.encode(text).ids == wanted, text
        count += 1
    assert count > 0.8 * len(texts)


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
def test_tokens_are_ours(tmp_path, kind):
    tokenizer, found = make_files(make(kind, tmp_path))
    model = read(found.files["tokenizer.json"])
    texts = many_texts()
    assert len(texts) == 200
    check_same(tokenizer, model, texts)
    if kind in ("bytes", "json", "model", "tiktoken", "user_defined"):
        check_same(tokenizer, model, SPELLED)
    for text in ("the quick fox", "a b c 0 1", "東京 über"):
        ids = list(tokenizer.encode(text.encode()))
        assert model.decode(ids).encode() == tokenizer.decode(ids)
    assert (
        found.ids["eos_token_id"]
        == tokenizer.end
        == model.token_to_id(json.loads(found.files["tokenizer_config.json"])["eos_token"])
    )


@pytest.mark.parametrize("size", [256, 257, 300])
def test_bytes_are_written_without_a_package(monkeypatch, size):
    for name in ("tokenizers", "sentencepiece", "tiktoken"):
        monkeypatch.setitem(sys.modules, name, None)
    _, found = make_files("bytes", size)
    content = json.loads(found.files["tokenizer.json"])
    end = min(256, size - 1)
    assert found.ids == dict.fromkeys(tokenizer_files.IDS, end)
    vocabulary = content["model"]["vocab"]
    assert len(vocabulary) == end + 1 and sorted(vocabulary.values()) == list(range(end + 1))
    assert vocabulary["Ġ"] == 32 and vocabulary["a"] == 97 and vocabulary["<|endoftext|>"] == end
    assert content["model"]["merges"] == []


def test_bytes_come_back():
    model = read(make_files("bytes")[1].files["tokenizer.json"])
    every = "".join(map(chr, range(0x3000))) + "\U0001f600\U0010ffff"
    assert (
        model.encode(every).ids == list(every.encode())
        and model.decode(model.encode(every).ids) == every
    )
    rng = random.Random(0)
    for _ in range(200):
        some = rng.randbytes(rng.randint(1, 30))  # no UTF-8
        assert model.decode(list(some)) == some.decode(errors="replace")
    smaller = read(make_files("bytes", 256)[1].files["tokenizer.json"])
    assert smaller.encode(every).ids == list(every.encode())


def test_what_a_file_adds_before_texts_is_left_out(tmp_path):
    path = make("words", tmp_path)  # it adds <s>
    assert tokenizers.load(path).begin == 1
    _, found = make_files(path)
    assert read(found.files["tokenizer.json"]).encode("a b").ids == [3, 4]
    path = make("json", tmp_path)
    assert make_files(path)[1].files["tokenizer.json"] == Path(path).read_bytes()
    path = make("model", tmp_path)
    assert make_files(path)[1].files["tokenizer.model"] == Path(path).read_bytes()


def test_config_says_what_the_model_was_trained_with(tmp_path):
    path = make("tiktoken", tmp_path)
    _, found = make_files(path, vocab_size=264)
    assert sorted(found.files) == [
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads(found.files["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 128,
        "padding_side": "left",
    }
    ids = {"bos_token_id": 260, "eos_token_id": 260, "pad_token_id": 260}
    generation = json.loads(found.files["generation_config.json"])
    assert found.ids == ids and generation == ids | {"suppress_tokens": [261, 262, 263]}
    assert found.about == "tokenizer: tokenizer.tiktoken"
    masked = make_files(path, vocab_size=261, begins=False)[1]
    assert masked.ids == ids | {"bos_token_id": None}
    assert json.loads(masked.files["generation_config.json"]) == {
        "eos_token_id": 260,
        "pad_token_id": 260,
    }
    untrained = make_files("bytes", vocab_size=256, ends=False)[1]
    assert untrained.ids["bos_token_id"] is None and untrained.ids["eos_token_id"] == 255
    assert untrained.about == ("tokenizer: bytes; the model was not trained on its end token, 255")


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "add_dummy_prefix": False},
        {"user_defined_symbols": ["<sep>", "▁▁", "fox"]},
        {"byte_fallback": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_models_of_sentencepiece_are_converted(tmp_path, kind, options):
    path = make_sentencepiece(
        tmp_path / "t.model", model_type=kind, hard_vocab_limit=False, **options
    )
    tokenizer, found = make_files(str(path))
    check_same(tokenizer, read(found.files["tokenizer.json"]), many_texts())
    assert ("equally likely" in found.about) == (kind == "unigram")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_type": "word"}, "it splits text into whole words"),
        ({"treat_whitespace_as_suffix": True}, "it encodes 'a' to other tokens than a tokenizer.j"),
    ],
    ids=str,
)
def test_what_no_tokenizer_json_can_say_gets_no_file(tmp_path, options, message):
    path = make_sentencepiece(tmp_path / "t.model", hard_vocab_limit=False, **options)
    _, found = make_files(str(path))
    assert found.files == {} and set(found.ids.values()) == {None}
    assert found.about.startswith("tokenizer: none, since no tokenizer.json stands for t.model: ")
    assert message in found.about


PIECES = [b"12", b"123", b"1234", b"th", b"the", b" the", b"(the", b"  ", b"   "]
PIECES += [b"\n\n", b" \n", b"\r\n"]
PATTERNS = {
    "gpt2": "",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++"
    r"[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def ranks(pieces):
    lines = [base64.b64encode(x).decode() + f" {i}\n" for i, x in enumerate(pieces)]
    return "".join(lines).encode()


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_of_tiktoken_are_converted(tmp_path, name):
    path = tmp_path / "t.tiktoken"
    path.write_bytes(ranks([bytes([i]) for i in range(256)] + PIECES))
    tokenizer, about, content = describe(str(path), pattern=PATTERNS[name])
    found = tokenizer_files.make_files(about, content, vocab_size=512, max_length=8)
    check_same(tokenizer, read(found.files["tokenizer.json"]), many_texts())


def test_a_pattern_that_another_library_reads_otherwise_is_refused():
    content = ranks([bytes([i]) for i in range(256)] + PIECES)
    with pytest.raises(Inexact, match="encodes .* to other tokens than a tokenizer.json"):
        tokenizer_conversion.from_tiktoken(content, "", r".+$|\n|\s+")  # $ is the end of a line
    with pytest.raises(Inexact, match="has what the package tokenizers refuses: "):
        tokenizer_conversion.from_tiktoken(content, "", r"\p{Script=Latin}|(?s:.)")


def test_every_way_to_cut_a_piece_is_a_pair():
    pieces = [bytes([i]) for i in range(256)] + [b"ab", b"bc", b"abc"]
    result, end = tokenizer_conversion.from_tiktoken(ranks(pieces), "", "")
    assert result["model"]["merges"] == ["a b", "b c", "a bc", "ab c"] and end == 259


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    _, about, content = describe(make("model", tmp_path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="tokenizer.model, the model's tokenizer, needs the pack"):
        tokenizer_files.make_files(about, content, vocab_size=512, max_length=8)


def test_a_folder_of_others_is_copied(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    ids = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": None}
    (source / "config.json").write_text(json.dumps({"model_type": "llama", **ids}))
    none = tokenizer_files.copy(source, 4)
    reason = f"since {source} has none"
    assert none == ({}, ids, f"tokenizer: none, {reason}", f"None, {reason}.")
    tokenizer = b'{"model": {"vocab": {"a": 3}}, "added_tokens": [{"id": 4, "content": "<pad>"}]}'
    contents = {"tokenizer.json": tokenizer, "tokenizer_config.json": b" {}", "merges.txt": b"a b"}
    for name, content in (contents | {"model.safetensors": b"x"}).items():
        (source / name).write_bytes(content)
    found = tokenizer_files.copy(source, 4)
    about = f"copied from {source}"
    assert found == (contents, ids, f"tokenizer: {about}", f"Its files are {about}.")
    tokenizer_files.write(tmp_path, found)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", '{"eos_token_id": "x"}', "eos_token_id='x'; it must be null, a token or"),
        (
            "config.json",
            '{"eos_token_id": [1, true]}',
            r"eos_token_id=\[1, True\]; it must be null",
        ),
        ("config.json", '{"bos_token_id": [1]}', r"bos_token_id=\[1\]; it must be null or a token"),
        ("config.json", '{"pad_token_id": 1.5}', "pad_token_id=1.5; it must be null or a token"),
        ("tokenizer.json", '{"version":', "is not JSON (.*); put a whole copy there"),
        ("tokenizer.json", "{}", "holds no model.vocab; put a whole copy there"),
        (
            "tokenizer.json",
            '{"model": {"vocab": {}}}',
            "holds no model.vocab; put a whole copy there",
        ),
        (
            "tokenizer.json",
            '{"model": {"vocab": [["a", 0], ["b", 0], ["c", 0], ["d", 0], ["e", 0]]}}',
            "has token 4, 'e', and the model has 4 tokens; put the model's own tokenizer there",
        ),
        ("tokenizer_config.json", "[]", "must hold a JSON object; put a whole copy there"),
        ("special_tokens_map.json", "{", "is not JSON"),
        ("generation_config.json", "3", "must hold a JSON object"),
    ],
)
def test_a_folder_that_others_cannot_load_is_not_copied(tmp_path, name, content, message):
    whole = {"config.json": "{}", "tokenizer.json": '{"model": {"vocab": {"a": 3}}}'}
    for file, text in (whole | {name: content}).items():
        (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / name))}.*{message}"):
        tokenizer_files.copy(tmp_path, 4)
