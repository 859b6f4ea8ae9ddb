# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""llama.cpp runs our GGUF files: it makes the same tokens, and nearly the same logits.

Its logits are not exact, since it rounds activations to eight bits or to bfloat16 in products with
weights of few bits or in bfloat16. `test_gguf_tensors` compares the weights, bit for bit.
"""

import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pqt_jax.data import tokenizers
from pqt_jax.interchange import gguf_model, gguf_tokenizer, huggingface
from pqt_jax.models import build_model
from pqt_jax.numerics.formats import E2M1, E2M3
from support import gguf_files, llama_cpp, tokenizer_files
from support.gguf_files import each

pytestmark = pytest.mark.skipif(
    not llama_cpp.is_installed, reason="needs xllamacpp, of the extra 'peers'"
)
BYTES = gguf_tokenizer.describe("bytes", b"", 256, begin=None, end=256)
TOKENS = np.arange(24) * 37 % 256
ROTATED = ["llama", "llama of few kv heads", "llama tied", "llama 3", "llama with biases"]
KINDS = {  # format of all kernels but the head, dtype of numbers, largest error of the logits
    "fp4": (E2M1, "bfloat16", 0.05),
    "fp6": (E2M3, "bfloat16", 0.05),
    "bfloat16": (None, "bfloat16", 0.01),
    "float32": (None, "float32", 0.002),
}


def write(path, name, kind):
    """A model whose heads attend to something; returns it as JAX computes it."""
    config, params = gguf_files.make(name)
    params = {path: 2 * x if path.endswith("kernel") else x for path, x in params.items()}
    fmt, dtype, _ = KINDS[kind]
    values, rounded = gguf_files.encode_model(
        config, params, lambda path, layer: None if path == "head/kernel" else fmt
    )
    gguf_model.write(path, config, values, tokenizer=BYTES, name="tiny", dtype=dtype)
    model = build_model(config, rngs=nnx.Rngs(0))
    nnx.update(model, huggingface.nest_by_path(rounded))
    return model


def error(path, model):
    """Root mean square of the difference of all logits, in standard deviations of them."""
    with llama_cpp.load(path) as theirs:
        found = theirs.logits(TOKENS)
    expected = np.asarray(jax.jit(lambda x: model(x))(jnp.asarray(TOKENS[None])))[0]
    return np.sqrt(np.mean((found - expected) ** 2)) / expected.std()


@each
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_our_model(tmp_path, name, kind):
    model = write(tmp_path / "a.gguf", name, kind)
    assert error(tmp_path / "a.gguf", model) < KINDS[kind][2]


@pytest.mark.parametrize("name", ROTATED)
def test_logits_differ_if_rows_of_q_and_k_keep_their_order(tmp_path, name, monkeypatch):
    monkeypatch.setattr(gguf_model, "_order", lambda *_: slice(None))
    model = write(tmp_path / "a.gguf", name, "float32")
    assert error(tmp_path / "a.gguf", model) > 0.3


@pytest.mark.parametrize("name", ["gpt2", "llama of few kv heads"])
def test_a_greedy_continuation_is_that_of_our_model(tmp_path, name):
    model = write(tmp_path / "a.gguf", name, "float32")
    forward = jax.jit(lambda tokens: model(tokens))
    ours = np.zeros((1, 40), int)
    ours[0, :4] = TOKENS[:4]
    for i in range(4, 40):  # what follows a token does not change its logits
        ours[0, i] = np.asarray(forward(jnp.asarray(ours)))[0, i - 1].argmax()
    with llama_cpp.load(tmp_path / "a.gguf") as theirs:
        found = TOKENS[:4].tolist()
        while len(found) < 40:
            found.append(int(theirs.logits(found)[-1].argmax()))
    assert found == ours[0].tolist() and len(set(found)) > 6


def byte_level(*steps, ignore_merges=False):
    """Makes a tokenizer.json whose merges come from texts like those below."""

    def make(path):
        from tokenizers import Regex, pre_tokenizers

        made = []
        for step in steps:
            if isinstance(step, str):
                made.append(pre_tokenizers.Split(Regex(step), "isolated"))
            else:
                made.append(step(pre_tokenizers))
        text = "".join(TEXTS)
        return tokenizer_files.make_byte_level(
            path, pre_tokenizers.Sequence(made), ignore_merges, text
        )

    return make


def sentencepiece(**options):
    def make(path):
        keep = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        return tokenizer_files.make_sentencepiece(path, **keep, **options)

    return make


PIECES = """the quick don't I'LL we've 1 23 4567 1234567890 … — € 😀 👩‍👩‍👧 é ÄÖÜ ß Привет שלום
नमस्ते กขค 東京 <|endoftext|> </s> <s> <unk> <0x0A> <|unused0|> ▁ _ # {} (); // == != a_b CamelCase
' 's 'S ’s x² ½ Ⅷ ٣ $ + | ~ ^ ` \\ " ſ İ ǆ""".split()
PIECES += [" ", "  ", "\n", "\r\n", "\t", "\n\n", "   \n", "\xa0", "\u2003", "\u3000", "\x0b", "\f"]
PIECES += ["\x1f", "\u200b", "\ufeff", "e\u0301"]


def make_texts():
    choose = random.Random(0)
    return [
        "".join(choose.choice(PIECES) + choose.choice(["", " "]) for _ in range(1 + i % 12))
        for i in range(200)
    ]


TEXTS = make_texts()
TOKENIZERS = {
    "bytes": (None, "bytes"),
    "GPT-2": (tokenizer_files.make_hugging_face, "a.json"),
    "Llama 3": (
        byte_level(
            gguf_tokenizer.LLAMA3, lambda p: p.ByteLevel(False, use_regex=False), ignore_merges=True
        ),
        "a.json",
    ),
    "Llama 3 with merges": (
        byte_level(gguf_tokenizer.LLAMA3, lambda p: p.ByteLevel(False, use_regex=False)),
        "a.json",
    ),
    "Qwen2": (
        byte_level(gguf_tokenizer.QWEN2, lambda p: p.ByteLevel(False, use_regex=False)),
        "a.json",
    ),
    "SmolLM": (byte_level(lambda p: p.Digits(True), lambda p: p.ByteLevel(False)), "a.json"),
    "SentencePiece": (sentencepiece(), "a.model"),
    "SentencePiece with own symbols": (
        sentencepiece(add_dummy_prefix=False, user_defined_symbols=["==", "<eot>"]),
        "a.model",
    ),
    "tiktoken": (tokenizer_files.make_tiktoken, "a.tiktoken"),
}


def write_with(tokenizer, path, folder):
    """A model of 448 tokens that are those of a tokenizer."""
    config, params = gguf_files.make("llama", vocab_size=448)
    content = b"" if path == "bytes" else Path(path).read_bytes()
    metadata = gguf_tokenizer.describe(
        Path(path).name, content, 448, begin=tokenizer.begin, end=tokenizer.end
    )
    values, _ = gguf_files.encode_model(config, params, lambda path, layer: None)
    gguf_model.write(folder / "a.gguf", config, values, tokenizer=metadata, name="tiny")
    return folder / "a.gguf"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_become_the_same_tokens(tmp_path, kind):
    make, path = TOKENIZERS[kind]
    path = path if make is None else str(make(tmp_path / path))
    tokenizer = tokenizers.load(path)
    with llama_cpp.load(write_with(tokenizer, path, tmp_path)) as theirs:
        for text in TEXTS:
            expected = list(map(int, tokenizer.encode(text.encode())))
            assert theirs.tokenize(text.encode()) == expected, text
        begin = [] if tokenizer.begin is None else [tokenizer.begin]
        assert theirs.tokenize(b"fox", special=True) == begin + theirs.tokenize(b"fox")
        assert theirs.is_end(tokenizer.end) and not theirs.is_end(theirs.tokenize(b"x")[-1])
        assert theirs.vocab_size == 448
        characters = "".join(map(chr, range(0x900))).encode()
        assert kind != "bytes" or theirs.tokenize(characters) == list(characters)


def test_a_vocabulary_of_bytes_alone_ends_at_none_that_a_text_has(tmp_path):
    write(tmp_path / "a.gguf", "llama", "float32")
    with llama_cpp.load(tmp_path / "a.gguf") as theirs:
        assert theirs.vocab_size == 256
        assert [token for token in range(256) if theirs.is_end(token)] == [255]
