# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Intact files of every kind that the package reads: small, and the same at every call."""

import bz2
import csv
import dataclasses
import gzip
import json
import lzma
import shutil

import numpy as np
from flax import nnx

from pqt_jax import export
from pqt_jax.data import prepare
from pqt_jax.interchange import gguf_model, gguf_tokenizer, huggingface
from pqt_jax.interchange.layouts import LAYOUTS
from pqt_jax.lab import sweep_table
from pqt_jax.training.run import tokenizer_copy
from support import exported, gguf_files, low_bit_folder, tiny, tokenizer_files
from support.document_files import without_processes
from support.paths import GOLDEN
from support.runs import make_run

TEXTS = ["one\ntwo", "über 東京", 'quoted "text", and commas', "x" * 700, "", "last"]
CONFIG = """from ml_collections import config_dict
from pqt_jax.models import Llama2Config
from pqt_jax.training.config import default

WIDTH = 32


def get_config():
    model = Llama2Config(vocab_size=257, d_model=WIDTH, num_layers=2, num_heads=2, d_ff=64)
    config = default(model)
    config.steps = 60
    config.data.length = 16
    config.data.batch = 4
    config.pqt.pattern = "h/attn/.*/kernel"
    config.pqt.block = (32, 32)
    config.optimizer.learning_rate = 1e-2
    config.update({"log": {"every": 3, "keep": 2}, "watch": {"skips": 7}})
    return config
"""
SWEEP = """    config.sweep.arms = (("BF16", "method=bf16"), ("gauss", "pqt.target_bits=4"))
    config.sweep.seeds = (0, 1)
    config.sweep.learning_rates = (1e-3, 1e-2)
    config.optimizer.learning_rate = 1e-3
    config.simulate.dtype = "E8M3"
    return"""


def make(folder, weights=True):
    """Fill a folder with one folder for each kind of input; weights take the longest."""
    tiny.write_text(folder / "text.txt", 400)
    for make_some in (make_tokens, make_documents, make_tokenizers, make_records, make_configs):
        make_some(folder)
    if weights:
        make_weights(folder)


def make_configs(folder):
    """Config files of a training run and of a sweep."""
    (folder / "configs").mkdir()
    (folder / "configs" / "file.py").write_text(CONFIG)
    sweep = CONFIG.replace("pqt_jax.training.config", "pqt_jax.lab.sweep_config")
    (folder / "configs" / "sweep.py").write_text(sweep.replace("    return", SWEEP))


def make_weights(folder):
    """A run with a checkpoint, packed weights, Hugging Face folders with a tokenizer, and GGUF."""
    shutil.copytree(GOLDEN / "run_17cd108" / "run", folder / "run")
    for name, fmt in (("packed", "fp6_e3m2"), ("packed-mixed", "mixed")):
        options = [f"--workdir={folder / 'run'}", f"--format={fmt}", f"--out={folder / name}"]
        assert export.main(options) == 0
        for picture in (folder / name).glob("*.png"):
            picture.unlink()
    for name, shard_bytes in (("gpt2", 10**9), ("llama", 20_000), ("qwen3", 10**9)):
        sizes = {"vocab_size": 400, "d_model": 16, "d_ff": 32}
        start = tiny.OTHERS if name == "qwen3" else exported.CONFIGS[name]
        config, model = exported.make(dataclasses.replace(start, **sizes))
        params = nnx.state(model, nnx.Param)
        huggingface.save(folder / name, config, params, dtype="float32", shard_bytes=shard_bytes)
        tokenizer_files.make_hugging_face(folder / name / "tokenizer.json")
    for name, model in (("gguf", "llama 3"), ("gguf-gpt2", "gpt2")):
        (folder / name).mkdir()
        config, params = gguf_files.make(model, num_layers=1)
        values, _ = gguf_files.encode_model(config, params, gguf_files.mixed)
        tokenizer = gguf_tokenizer.describe("bytes", b"", 256, begin=None, end=None)
        options = {"tokenizer": tokenizer, "name": "tiny"}
        gguf_model.write(folder / name / "model.gguf", config, values, **options)
    for name, layout in LAYOUTS.items():
        config = low_bit_folder.CONFIGS["few kv heads, tied"]
        low_bit_folder.write(folder / name, layout, config, low_bit_folder.MIXED)


def prepare_inline(*options):
    """Run `pqt_jax.data.prepare` without other processes; raises what it raises."""
    with without_processes():
        prepare._run([*options, "--processes=1", "--validation=0.3", "--shard=900"])


def make_tokens(folder):
    """Prepared folders, and .bin files of nanoGPT and llm.c."""
    documents = folder / "in.jsonl"
    lines = [json.dumps({"text": f"document {i} {'the quick fox ' * i}"}) for i in range(30)]
    documents.write_text("\n".join(lines))
    tokenizer = tokenizer_files.make_hugging_face(folder / "tokenizer.json")
    for name, tokens in (("tokens", "bytes"), ("tokens-json", tokenizer)):
        prepare_inline(f"--tokenizer={tokens}", f"--input={documents}", f"--out={folder / name}")
    documents.unlink()
    tokenizer.unlink()
    (folder / "copied").mkdir()
    tokenizer_copy.write(folder / "copied", tokenizer_copy.read_prepared(folder / "tokens-json"))
    (folder / "nanogpt").mkdir()
    (folder / "llm.c").mkdir()
    for split, count in (("train", 300), ("val", 40)):
        ids = (np.arange(count) ** 2 % 251).astype(np.uint16)
        ids.tofile(folder / "nanogpt" / f"{split}.bin")
        header = np.zeros(256, np.int32)
        header[:3] = 20240520, 1, count
        (folder / "llm.c" / f"{split}.bin").write_bytes(header.tobytes() + ids.tobytes())


def make_documents(folder):
    """The same documents in files of every kind, each in a folder of its own."""
    lines = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(TEXTS))
    contents = {
        "a.jsonl": lines.encode(),
        "a.json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
        "a.jsonl.gz": gzip.compress(lines.encode(), mtime=0),
        "a.jsonl.bz2": bz2.compress(lines.encode()),
        "a.jsonl.xz": lzma.compress(lines.encode()),
        "a.jsonl.zst": zstd(lines.encode()),
        "a.txt": lines.encode(),
        "a.txt.gz": gzip.compress(lines.encode(), mtime=0),
    }
    for name in ("a.csv", "a.tsv", "a.parquet", "a.array_record", *contents):
        (folder / name).mkdir()
        if name in contents:
            (folder / name / name).write_bytes(contents[name])
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (folder / name / name).open("w", newline="", encoding="utf-8") as file:
            rows = [["n", "text"], *([i, text] for i, text in enumerate(TEXTS))]
            csv.writer(file, delimiter=delimiter).writerows(rows)
    write_parquet(folder / "a.parquet" / "a.parquet")
    write_array_record(folder / "a.array_record" / "a.array_record")


def zstd(content):
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def write_parquet(path):
    import pyarrow.parquet

    table = pyarrow.table({"text": TEXTS, "n": range(len(TEXTS))})
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)


def write_array_record(path):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()


def make_tokenizers(folder):
    """A tokenizer of each kind, in a folder of its own."""
    for kind in ("json", "model", "tiktoken"):
        (folder / f"tokenizer.{kind}").mkdir()
        tokenizer_files.make(kind, folder / f"tokenizer.{kind}")


def make_records(folder):
    """Two finished runs as `plot` reads them, and a sweep as `lab.report` does."""
    for name in ("a", "b"):
        make_run(folder / "plotted" / name, steps=60, done=60, seed=ord(name))
    parts = folder / "sweep" / "parts"
    parts.mkdir(parents=True)
    rates, seeds = (1e-3, 1e-2), (0, 1, 2)
    sweep = {"arms": [["BF16"], ["gauss", "method=gaussws"]], "record_every": 5, "window": 20}
    sweep |= {"seeds": seeds, "learning_rates": rates, "at_once": 3, "margin": 0.5}
    meta = {"config": {"sweep": sweep, "steps": 100}, "data_fingerprint": "f"}
    meta |= {"stream_version": 1, "versions": {"jax": "0"}}
    (folder / "sweep" / "run.json").write_text(json.dumps(meta))
    for number, arm in enumerate(("BF16", "gauss")):
        for start, rate in enumerate(rates):
            rows = [make_row(arm, rate, seed) for seed in seeds]
            text = "".join(map(sweep_table.encode_row, rows))
            (parts / f"{number:03d}-{3 * start:05d}.jsonl").write_text(text)


def make_row(arm, rate, seed):
    """What a sweep records of one run."""
    losses = np.round(2 + 3 * np.exp(-np.arange(20) / 5) + 0.01 * seed, 4).tolist()
    diverges = rate > 5e-3 and seed == 1
    return {
        **{"arm": arm, "learning_rate": rate, "seed": seed, "steps": 100, "losses": losses},
        **{"first_loss": 5.5, "final_loss": None if diverges else losses[-1]},
        **{"unigram_loss": 3.2, "outcome": "diverged" if diverges else "learned"},
        "held_out_losses": {n: 2.0 for n in ("master", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1")},
        **{"bits_mean": 4.25, "diverged_at": 70 if diverges else None, "spikes": 0, "skipped": 0},
        "sharpness": [[20 * i, 0.03 * (1 + seed)] for i in range(5)],
    }
