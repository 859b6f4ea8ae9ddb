# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tokenizers of four kinds, trained here on a little text."""

import base64
import io

TEXT = "the quick brown fox jumps over the lazy dog; über naïve 東京 \n  indented\n" * 20


def make_hugging_face(path, end="<|endoftext|>"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([TEXT], trainer)
    model.save(str(path))
    return path


def make_sentencepiece(path):
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=written,
        vocab_size=330,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    return path


def make_tiktoken(path):
    pieces = [bytes([i]) for i in range(256)] + [b"th", b"the", b" the", b"qu"]
    lines = [base64.b64encode(x).decode() + f" {i}\n" for i, x in enumerate(pieces)]
    path.write_text("".join(lines))
    return path


def make(kind, folder):
    if kind == "bytes":
        return "bytes"
    maker = {
        "json": make_hugging_face,
        "model": make_sentencepiece,
        "tiktoken": make_tiktoken,
    }[kind]
    return str(maker(folder / f"tokenizer.{kind}"))
