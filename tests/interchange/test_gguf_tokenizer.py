# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers are written into GGUF files, or refused; `test_llama_cpp` compares tokens."""

import json

import numpy as np
import pytest

from pqt_jax.errors import InputError
from pqt_jax.interchange import gguf_tokenizer, sentencepiece_file
from support import tokenizer_files

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
PREFIX = "tokenizer.ggml."


def describe(path, vocab_size=448, **options):
    content = path.read_bytes()
    options = {"begin": None, "end": None} | options
    return fields(gguf_tokenizer.describe(path.name, content, vocab_size, **options))


def fields(metadata):
    assert all(name.startswith(PREFIX) for name in metadata)
    return {name.removeprefix(PREFIX): value for name, value in metadata.items()}


def of_bytes(vocab_size):
    metadata = gguf_tokenizer.describe("bytes", b"", vocab_size, begin=None, end=256)
    assert gguf_tokenizer.is_bytes(metadata)
    return fields(metadata)


def test_bytes():
    found = of_bytes(260)
    assert len(found["tokens"]) == 260 and len(set(found["tokens"])) == 260
    assert [found["tokens"][byte] for byte in b"a\n \x7f\xad\xff"] == ["a", "Ċ", "Ġ", "ġ", "Ń", "ÿ"]
    assert found["tokens"][256:] == ["<|endoftext|>", "<|unused0|>", "<|unused1|>", "<|unused2|>"]
    assert found["token_type"].tolist() == 256 * [NORMAL] + [CONTROL] + 3 * [UNUSED]
    assert found["token_type"].dtype == np.int32
    assert (found["model"], found["pre"], len(found["merges"])) == ("gpt2", "gpt-2", 1)
    assert found["bos_token_id"] == found["eos_token_id"] == 256
    assert found["add_bos_token"] is False and found["add_eos_token"] is False


def test_a_vocabulary_without_room_for_an_end_ends_at_a_byte_that_no_text_has():
    found = of_bytes(256)
    assert len(found["tokens"]) == 256 and found["eos_token_id"] == 255
    assert set(found["token_type"].tolist()) == {NORMAL}
    with pytest.raises(InputError, match="tokenizer bytes: it has token 255, and the model 200"):
        of_bytes(200)


def test_other_tokenizers_are_not_bytes(tmp_path):
    path = tokenizer_files.make_hugging_face(tmp_path / "a.json")
    described = gguf_tokenizer.describe("a.json", path.read_bytes(), 448, begin=None, end=0)
    assert not gguf_tokenizer.is_bytes(described)
    assert not gguf_tokenizer.is_bytes(gguf_tokenizer.NONE)


def edited(path, change):
    """A tokenizer.json in which something is different."""
    content = json.loads(tokenizer_files.make_hugging_face(path).read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def add_tokens(content):
    size = len(content["model"]["vocab"])
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] += [
        {"id": size, "content": "<own>", "special": False} | token,
        {"id": size + 1, "content": "<s>", "special": True} | token,
    ]


def test_a_tokenizer_json(tmp_path):
    path = edited(tmp_path / "tokenizer.json", add_tokens)
    model = json.loads(path.read_text())["model"]
    size = len(model["vocab"])
    found = describe(path, begin=size + 1, end=0)
    assert found["tokens"][:size] == sorted(model["vocab"], key=model["vocab"].__getitem__)
    assert found["tokens"][size : size + 3] == ["<own>", "<s>", "<|unused0|>"]
    assert found["merges"] == [" ".join(merge) for merge in model["merges"]]
    expected = [CONTROL, NORMAL, NORMAL, USER_DEFINED, CONTROL, UNUSED]
    places = [0, 1, size - 1, size, size + 1, size + 2]
    assert found["token_type"][places].tolist() == expected
    assert (found["bos_token_id"], found["eos_token_id"]) == (size + 1, 0)
    assert found["add_bos_token"] is True and found["pre"] == "gpt-2"
    assert describe(path, end=7)["token_type"][7] == CONTROL  # whatever the file says of it
    assert found["tokens"].index("ÿ") == describe(path)["eos_token_id"]


def spell(content):
    """A special token that is also what merges make."""
    content["model"]["vocab"]["th"], content["model"]["vocab"]["<end>"] = 380, 381
    content["model"]["merges"] = [["<", "end"], ["en", "d"], ["<end", ">"], ["t", "h"]]
    for number, name in enumerate(("en", "end", "<end"), 382):
        content["model"]["vocab"].setdefault(name, number)
    added = content["added_tokens"][0]
    content["added_tokens"] += [added | {"id": 381, "content": "<end>"}]


def test_no_text_becomes_a_special_token(tmp_path):
    found = describe(edited(tmp_path / "a.json", spell), end=381)
    assert found["merges"] == ["< end", "en d", "t h"]


def test_names_of_padding_are_new(tmp_path):
    def change(content):
        content["model"]["vocab"]["<|unused0|>"] = 390

    found = describe(edited(tmp_path / "a.json", change))
    assert len(set(found["tokens"])) == 448
    assert found["tokens"][390] == "<|unused0|>"


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def split(pattern, **changes):
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    last = BYTE_LEVEL | {"use_regex": False}
    steps = [first | {"invert": False} | changes, last]
    return {"type": "Sequence", "pretokenizers": steps}


DIGITS = {"type": "Digits", "individual_digits": True}
GPT2_LAST = BYTE_LEVEL | {"use_regex": True}
LLAMA3, QWEN2 = gguf_tokenizer.LLAMA3, gguf_tokenizer.QWEN2
SPLITS = {
    "gpt-2": (GPT2_LAST, False),
    "llama-bpe": (split(LLAMA3), True),
    "dbrx": (split(LLAMA3), False),
    "qwen2": (split(QWEN2), False),
    "smollm": ({"type": "Sequence", "pretokenizers": [DIGITS, GPT2_LAST]}, False),
}


@pytest.mark.parametrize("name", SPLITS)
def test_how_text_is_split_is_known_by_its_pattern(tmp_path, name):
    def change(content):
        content["pre_tokenizer"], content["model"]["ignore_merges"] = SPLITS[name]

    assert describe(edited(tmp_path / "a.json", change))["pre"] == name


def set_field(*path, value):
    def change(content):
        *parents, last = path
        for name in parents:
            content = content[name]
        content[last] = value

    return change


def rename_a_byte(content):
    content["model"]["vocab"]["none"] = content["model"]["vocab"].pop("ÿ")


def strip_spaces(content):
    add_tokens(content)
    content["added_tokens"][1]["rstrip"] = True


NO_NAME = "llama.cpp has no name for its pre-tokenizer "
JSON_CHANGES = [
    (set_field("pre_tokenizer", value=None), NO_NAME + r"\[null\] with ignore_merges=False"),
    (set_field("pre_tokenizer", value=split("own")), NO_NAME + "own with"),
    (set_field("pre_tokenizer", value=split(LLAMA3, behavior="Removed")), NO_NAME + ".*Split"),
    (set_field("pre_tokenizer", value=split(LLAMA3, invert=True)), NO_NAME + ".*"),
    (set_field("pre_tokenizer", "use_regex", value=False), NO_NAME + ".*ByteLevel"),
    (set_field("pre_tokenizer", "add_prefix_space", value=True), NO_NAME + ".*ByteLevel"),
    (set_field("model", "ignore_merges", value=True), NO_NAME + ".*with ignore_merges=True"),
    (set_field("normalizer", value={"type": "Lowercase"}), "does not normalize as Lowercase does"),
    (set_field("model", "dropout", value=0.5), "its dropout is 0.5; llama.cpp has none"),
    (set_field("model", "end_of_word_suffix", value="</w>"), "its end_of_word_suffix is '</w>'"),
    (rename_a_byte, "no token for byte 255, so it cannot read all texts"),
    (strip_spaces, "its token '<own>' takes spaces; llama.cpp's do not"),
]


@pytest.mark.parametrize(("change", "message"), JSON_CHANGES)
def test_what_llama_cpp_would_split_otherwise_is_refused(tmp_path, change, message):
    path = edited(tmp_path / "a.json", change)
    with pytest.raises(InputError, match=f"^tokenizer a.json: .*{message}") as raised:
        describe(path)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_nfc_is_taken(tmp_path):
    path = edited(tmp_path / "a.json", set_field("normalizer", value={"type": "NFC"}))
    assert describe(path)["pre"] == "gpt-2"


@pytest.mark.parametrize("kind", ["words", "pieces", "unigram"])
def test_other_models_than_bpe_are_refused(tmp_path, kind):
    tokenizer_files.make(kind, tmp_path)
    with pytest.raises(InputError, match="its model is Word|Unigram; GGUF takes BPE"):
        describe(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(tmp_path):
    path = tokenizer_files.make_hugging_face(tmp_path / "a.json")
    last = max(json.loads(path.read_text())["model"]["vocab"].values())
    assert len(describe(path, last + 1)["tokens"]) == last + 1
    with pytest.raises(InputError, match=f"it has token {last}, and the model {last} tokens; give"):
        describe(path, last)


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    "options",
    [IDENTITY, {"add_dummy_prefix": False}, {"user_defined_symbols": ["<a>"]}, {"bos_id": -1}],
)
def test_a_file_of_sentencepiece_says_what_the_package_does(tmp_path, options):
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra 'data'")
    path = tokenizer_files.make_sentencepiece(tmp_path / "a.model", **options)
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    file = sentencepiece_file.read(path.read_bytes())
    assert len(file.pieces) == model.vocab_size() and file.model_type == sentencepiece_file.BPE
    kinds = ((UNKNOWN, "unknown"), (CONTROL, "control"), (UNUSED, "unused"), (BYTE, "byte"))
    for number, piece in enumerate(file.pieces):
        assert piece.text == model.id_to_piece(number)
        assert piece.score == model.get_score(number)
        found = {kind for kind, name in kinds if getattr(model, f"is_{name}")(number)}
        assert found or piece.type in (NORMAL, USER_DEFINED) and not found & {piece.type}
        assert piece.type in found or not found
        assert (piece.type == USER_DEFINED) == (piece.text == "<a>")
    assert file.adds_prefix == options.get("add_dummy_prefix", True)
    assert file.normalizes == (options is not IDENTITY) and not file.suffixes


def test_a_model_of_sentencepiece(tmp_path):
    path = tokenizer_files.make_sentencepiece(tmp_path / "a.model", **IDENTITY)
    found = describe(path, begin=1, end=2)
    assert (found["model"], found["pre"]) == ("llama", "default")
    assert found["tokens"][:5] == ["<unk>", "<s>", "</s>", "<0x00>", "<0x01>"]
    assert found["token_type"][:4].tolist() == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert found["tokens"][330] == "<|unused0|>" and found["token_type"][330] == UNUSED
    file = sentencepiece_file.read(path.read_bytes())
    assert found["scores"][:330].tolist() == [piece.score for piece in file.pieces]
    names = ("unknown", "bos", "eos")
    assert [found[f"{name}_token_id"] for name in names] == [0, 1, 2]
    assert found["add_space_prefix"] is True and "merges" not in found
    assert describe(path)["eos_token_id"] == found["tokens"].index("<0xFF>")


SENTENCEPIECE = [
    ({}, "it changes texts"),
    ({"normalization_rule_name": "identity"}, "it changes texts"),
    ({"remove_extra_whitespaces": False}, "it changes texts"),
    (IDENTITY | {"treat_whitespace_as_suffix": True}, "it changes texts"),
    (
        IDENTITY | {"model_type": "unigram", "vocab_size": 292},
        "it is no BPE model of SentencePiece",
    ),
    (IDENTITY | {"byte_fallback": False, "vocab_size": 60}, "it has no tokens for bytes"),
    (
        IDENTITY | {"control_symbols": ["qu"]},
        "llama.cpp would join the pieces of a text that spells 'qu'",
    ),
]


@pytest.mark.parametrize(("options", "message"), SENTENCEPIECE)
def test_what_llama_cpp_does_not_do_as_sentencepiece_is_refused(tmp_path, options, message):
    path = tokenizer_files.make_sentencepiece(tmp_path / "a.model", **options)
    with pytest.raises(InputError, match=f"^tokenizer a.model: {message}"):
        describe(path)


def test_ranks_of_tiktoken(tmp_path):
    path = tokenizer_files.make_tiktoken(tmp_path / "a.tiktoken")
    found = describe(path, end=260)
    assert found["merges"] == ["t h", "th e", "Ġ the", "q u"]
    assert found["tokens"][256:262] == ["th", "the", "Ġthe", "qu", "<|endoftext|>", "<|unused0|>"]
    assert found["eos_token_id"] == 260 and found["pre"] == "gpt-2"
    assert describe(path, pattern=QWEN2)["pre"] == "qwen2"
    with pytest.raises(InputError, match="llama.cpp has no name for its pattern 'a|b'"):
        describe(path, pattern="a|b")
    text = path.read_text()
    path.write_text(text + text.splitlines()[-1].replace("cXU= 259", "enp6 260") + "\n")  # b"zzz"
    with pytest.raises(InputError, match="its piece b'zzz' is no pair of pieces"):
        describe(path)


@pytest.mark.parametrize("content", [b"\x0a\xff\x7f", b"\x0f", b"\x0a\x05abc", b"\x80" * 40])
def test_what_is_no_protobuf_is_an_error(content):
    with pytest.raises((ValueError, KeyError)):
        sentencepiece_file.read(content)
