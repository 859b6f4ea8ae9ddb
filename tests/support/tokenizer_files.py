# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers of several kinds, trained or made here on a little text."""

import base64
import io
import random

from pqt_jax.data import tokenizer_conversion

TEXT = "the quick brown fox jumps over the lazy dog; über naïve 東京 \n  indented\n" * 20


def make_hugging_face(path, end="<|endoftext|>"):
    from tokenizers import pre_tokenizers

    return make_byte_level(path, pre_tokenizers.ByteLevel(add_prefix_space=False), end=end)


def make_byte_level(path, split, ignore_merges=False, text=TEXT, end="<|endoftext|>"):
    """Byte-level BPE that splits texts in a way of its own before it merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    model.pre_tokenizer = split
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([text], trainer)
    model.save(str(path))
    return path


def make_of_model(path, model, split):
    """A tokenizer.json of a vocabulary with special tokens, whose post-processor adds <s>."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    begin = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[begin]
    )
    tokenizer.save(str(path))
    return path


VOCABULARY = ["<unk>", "<s>", "</s>", "a", "b", "c", "</", "s>", "##s>", *"0123456789"]


def make_words(path):
    from tokenizers import models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    model = models.WordLevel(vocabulary, unk_token="<unk>")
    return make_of_model(path, model, pre_tokenizers.WhitespaceSplit())


def make_pieces(path):
    from tokenizers import models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    model = models.WordPiece(vocabulary, unk_token="<unk>")
    return make_of_model(path, model, pre_tokenizers.WhitespaceSplit())


def make_unigram(path):
    from tokenizers import models, pre_tokenizers

    pieces = [(word, -float(i)) for i, word in enumerate(VOCABULARY)]
    model = models.Unigram([*pieces, ("▁", -3.0)], unk_id=0, byte_fallback=False)
    return make_of_model(path, model, pre_tokenizers.Metaspace())


def make_whole_words(path):
    """BPE that looks a word up before it merges, as Llama 3's."""
    from tokenizers import models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*VOCABULARY, *"</>s"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", ignore_merges=True)
    return make_of_model(path, model, pre_tokenizers.WhitespaceSplit())


def make_user_defined(path):
    return make_sentencepiece(path, eos_id=-1, user_defined_symbols=["</s>"])


def make_sentencepiece(path, **options):
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=written,
        minloglevel=2,
        **{"vocab_size": 330, "byte_fallback": True, "model_type": "bpe", **options},
    )
    path.write_bytes(written.getvalue())
    return path


def make_tiktoken(path):
    pieces = [bytes([i]) for i in range(256)] + [b"th", b"the", b" the", b"qu"]
    lines = [base64.b64encode(x).decode() + f" {i}\n" for i, x in enumerate(pieces)]
    path.write_text("".join(lines))
    return path


KINDS = {
    "json": (make_hugging_face, "json"),
    "words": (make_words, "json"),
    "pieces": (make_pieces, "json"),
    "unigram": (make_unigram, "json"),
    "whole_words": (make_whole_words, "json"),
    "model": (make_sentencepiece, "model"),
    "user_defined": (make_user_defined, "model"),
    "tiktoken": (make_tiktoken, "tiktoken"),
}


def make(kind, folder):
    if kind == "bytes":
        return "bytes"
    maker, suffix = KINDS[kind]
    return str(maker(folder / f"tokenizer.{suffix}"))


SPELLED = ("a<|endoftext|>b", "</s>", "x</s>y <s> z", "<unk>a<unk>")  # special tokens, as text


def many_texts():
    """200 texts without special tokens: scripts, spaces, tabs, line breaks of all kinds, digits."""
    rng = random.Random(1)
    letters = "abc the quick\t\n\r\n  é東京ß0123456789.,'\"()<|>_😀\u00a0\u0301"
    count = 200 - len(tokenizer_conversion.TEXTS)
    some = ("".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(count))
    return [*tokenizer_conversion.TEXTS, *some]
