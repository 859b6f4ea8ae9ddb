# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What is read from text, tokens and tokenizers."""

import csv
import io
import json
import struct

import numpy as np

from fuzz import inputs
from pqt_jax.analysis import find_tokenizer
from pqt_jax.data import documents, source, tokenizers, tokens
from pqt_jax.errors import InputError
from pqt_jax.training.run import tokenizer_copy
from support.tokenizer_files import TEXT


def read_tokens(folder):
    text, index = tokens.load(str(folder), 400), tokens.read_index(folder)
    return text.train[:], text.validation[:], text.end, index.vocab_size, index.tokenizer


def read_prepared_tokenizer(folder):
    (folder / "run").mkdir()
    tokenizer = find_tokenizer._load_of_run(folder / "run", str(folder))
    return use(tokenizer)


def read_copied_tokenizer(folder):
    return use(tokenizer_copy.load(folder))


def use(tokenizer):
    ids = np.asarray(tokenizer.encode(TEXT.encode()))
    return ids, tokenizer.decode(ids.tolist()), tokenizer.end, tokenizer.vocab_size


def read_bin(folder):
    text = tokens.load(f"{folder}/*.bin", 2**16)
    return np.asarray(text.train[:], np.uint32), np.asarray(text.validation[:], np.uint32)


def expect_bin(folder):
    """What nanoGPT and llm.c make of their files."""
    streams = []
    for name in ("train", "val"):
        path = folder / f"{name}.bin"
        content = path.read_bytes() if path.is_file() else b""
        magic, version, count = struct.unpack("<3i", content[:12].ljust(12, b"\0"))
        if magic in (20240520, 20240801):
            assert (magic, version) in ((20240520, 1), (20240801, 7)), "another version"
            ids = np.frombuffer(content[1024:], np.uint16 if magic == 20240520 else np.uint32)
            assert len(ids) == count, "another size"
        else:
            ids = np.frombuffer(content, np.uint16)
        streams.append(ids.astype(np.uint32))
    if not streams[1].size:  # no file for validation: the last twentieth
        size = len(streams[0]) // 20
        return streams[0][: len(streams[0]) - size], streams[0][len(streams[0]) - size :]
    return tuple(streams)


def read_documents(folder):
    return list(documents.read_documents(folder / folder.name))


def expect_json_lines(folder):
    path = folder / folder.name
    content = path.read_bytes()
    if content.lstrip()[:1] == b"[":
        return [texts_of(record) for record in json.loads(content)]
    return [texts_of(json.loads(line)) for line in content.split(b"\n") if line.strip()]


def texts_of(record):
    return (record["text"] or "").encode()


def expect_csv(folder):
    path = folder / folder.name
    text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
    head, *rows = csv.reader(text, delimiter="," if path.suffix == ".csv" else "\t")
    column = len(head) - 1 - head[::-1].index("text")
    return [(row[column] if column < len(row) else "").encode() for row in rows if row]


def expect_text(folder):
    path = folder / folder.name
    return [path.read_bytes()]


def read_source(folder):
    text = source.load(str(folder / folder.name))
    return text.train.tobytes() + text.validation.tobytes()


def expect_source(folder):
    path = folder / folder.name
    return path.read_bytes()


def run_prepare(folder):
    """The command with bytes as tokens: the documents that its shards hold."""
    path = folder / folder.name
    out = folder.parent / "prepared"
    inputs.prepare_inline("--tokenizer=bytes", f"--input={path}", f"--out={out}")
    text = tokens.load(str(out), 257)
    ids = np.concatenate([text.train[:], text.validation[:]])
    ends = np.flatnonzero(ids == 256)
    return sorted(bytes(part[part < 256].astype(np.uint8)) for part in np.split(ids, ends + 1)[:-1])


def read_tokenizer(folder):
    """What training and evaluation ask of a tokenizer; round trips are another test's."""
    path = folder / folder.name
    tokenizer = tokenizers.load(str(path), end="</s>" if path.suffix == ".model" else "")
    try:
        ids = np.asarray(tokenizer.encode(TEXT.encode()))
    except tokenizers.TextError as error:  # each caller names the text
        raise InputError(str(error)) from None
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    tokenizer.decode(ids.tolist())
    tokenizers.count_first_token_bytes(tokenizer, ids[:4].tolist() or [0])
    return None
