# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Every reader of files, and what an accepted file must have given.

A file that has a digest of its content must give what the intact one gives, or be refused: that is
`SAME`. Files without one are compared with what another reader makes of them (the functions named
`expect_…`), or with nothing (`ANY`): another number in a config is another valid config.
"""

import csv
import dataclasses
import io
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from fuzz import inputs, mutations

from pqt_jax import evaluate, generate, plot
from pqt_jax.analysis import (
    comparison,
    evaluation,
    find_tokenizer,
    generation,
    load,
    run_reader,
    run_tables,
)
from pqt_jax.data import documents, source, tokenizers, tokens
from pqt_jax.errors import InputError
from pqt_jax.interchange import huggingface
from pqt_jax.lab import report, sweep_table
from pqt_jax.lab.sweep_arms import load_sweep
from pqt_jax.quantization import packed_file
from pqt_jax.training import init_from
from pqt_jax.training.config import command_line, saved_config, schema
from pqt_jax.training.config.fields import from_values
from pqt_jax.training.run import (
    bit_history,
    checkpoint,
    metrics,
    orbax_errors,
    tokenizer_copy,
    workdir,
)
from pqt_jax.training.run_context import RunContext, restore_or_init
from pqt_jax.transform.tree_paths import paths_and_leaves
from support import exported
from support.paths import GOLDEN
from support.tokenizer_files import TEXT


def SAME(folder):
    """The content is protected by digests: what the intact files give is right."""
    raise NotImplementedError


def ANY(folder):
    """The content is not protected: whatever is read is right."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Reader:
    """A way to read files.

    Attributes:
      name: the command or the function.
      source: the folder of `inputs.make` that it reads.
      files: glob of the files that are damaged.
      read: folder → what was read, made of numbers, texts, arrays, lists, tuples and dicts.
      expect: `SAME`, `ANY`, or a function that reads the same from the damaged folder.
      weight: how often it is chosen.
      damage: (source of randomness, path of a file) → what was done to it.
    """

    name: str
    source: str
    files: str
    read: Callable[[Path], Any]
    expect: Callable[[Path], Any]
    weight: int = 1
    damage: Callable[[random.Random, Path], str] = mutations.mutate


# Weights


def read_packed(folder):
    packed = packed_file.read(folder / packed_file.FILE)
    plan = {path: (str(a.spec), a.index) for path, a in packed.plan.items()}
    return packed.params, plan, packed.model, packed.stream


def read_run(folder):
    run = load.load_run(folder)
    config = run.config.to_dict()
    for section in ("log", "mesh", "watch"):  # a run may change them
        del config[section]
    return config, run.step, paths_and_leaves(run.params)


def resume(folder):
    """The state from which `pqt_jax.train` goes on."""
    meta = json.loads((GOLDEN / "run_17cd108" / "run" / "run.json").read_bytes())
    config = from_values(schema.RunConfig, saved_config.completed(meta["config"]))
    unused = {"text": None, "mesh": None, "signals": [], "take_start": dict, "profile": False}
    run = RunContext(config=config, workdir=folder, meta=meta, **unused)
    with orbax_errors.quiet_orbax():
        os.close(workdir.claim(folder, meta))
        manager = checkpoint.open_manager(folder)
        try:
            start = restore_or_init(run, manager)
        finally:
            checkpoint.close(manager)
    return jax.tree.leaves(start.train_state)


def read_start(folder):
    """The weights of `config.init_from`."""
    config = schema.default(exported.CONFIGS["gpt2"]).to_dict()
    config["model"] |= {"vocab_size": 400, "d_model": 16, "d_ff": 32, "max_length": 64}
    config["init_from"] = str(folder)
    start = init_from.read(from_values(schema.RunConfig, config))
    return paths_and_leaves(start.params), start.fingerprint


def read_hf(folder):
    """The tensors of a Hugging Face folder, by our names, written again by theirs."""
    config, params = huggingface.load(folder)
    huggingface.save(folder / "again", config, params, dtype="float32")
    return read_tensors(folder / "again" / "model.safetensors")


def expect_hf(folder):
    """The same by the safetensors package alone."""
    if (folder / "model.safetensors").exists():
        return read_tensors(folder / "model.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    shards = [read_tensors(folder / name) for name in set(index["weight_map"].values())]
    return {name: array for shard in shards for name, array in shard.items()}


def read_tensors(path):
    found = safetensors.numpy.load_file(path)
    return {
        name.removeprefix("transformer.").removeprefix("model."): array.astype(np.float32)
        for name, array in found.items()
    }


def run_evaluate(option):
    """The command, whose numbers are those that it writes by `--json`."""

    def read(folder):
        out = folder / "out.json"
        data = f"--data={folder.parent / 'text.txt'}"
        given = [f"--{option}={folder}", data, "--weights=master,fp4_e2m1", f"--json={out}"]
        evaluation.evaluate(evaluate.parse([*given, "--length=16"]))
        return json.loads(out.read_bytes())["weights"]

    return read


def run_generate(option):
    """The command, without what it prints."""

    def read(folder):
        given = [f"--{option}={folder}", "--prompt=the ", "--tokens=4", "--weights=master"]
        options = generate.parser().parse_args(given)
        generation.generate(options)
        return None

    return read


# Tokens and text


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
    return (record["text"] or "").encode(errors="replace")


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


# Records of runs and sweeps, and configurations


def read_records(folder):
    """The page of `plot` without its pictures."""
    runs = dict(enumerate(run_reader.read_runs([str(folder)])))
    run_tables.results_table(runs), run_tables.configuration_section(runs)
    return None


def run_plot(folder):
    """The command, with pictures."""
    comparison.compare_runs(plot.parse([str(folder), f"--out={folder.parent / 'plot'}"]))


def resume_records(folder):
    """What a run that is resumed from step 30 keeps of its records."""
    kept = []
    for name in (workdir.METRICS, workdir.BIT_HISTORY):
        metrics.truncate(folder / name, 30)
        kept.append(metrics.read_records(folder / name))
    return kept, len(bit_history.read(folder / workdir.BIT_HISTORY)) >= 0


def expect_records(folder):
    kept = []
    for name in (workdir.METRICS, workdir.BIT_HISTORY):
        path = folder / name
        records = []
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                record = json.loads(line.decode(errors="replace"))
                step = record["step"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if type(step) is int and abs(step) < 2**63 and step <= 30:
                records.append(record)
        kept.append(records)
    return kept, True


def read_sweep(folder):
    table = sweep_table.read(folder)
    return sorted(json.dumps(row) for row in table.rows.values())


def expect_sweep(folder):
    """The rows that were written, of the runs that are left; the others count as to come."""
    lines = [line for p in folder.glob("parts/*.jsonl") for line in p.read_bytes().splitlines()]
    runs = {(r["arm"], r["learning_rate"], r["seed"]) for r in map(json.loads, lines)}
    return sorted(json.dumps(inputs.make_row(*run)) for run in runs)


def run_report(folder):
    """The command, with figures."""
    report._run([str(folder), f"--out={folder.parent / 'report'}"])


def read_config(folder):
    command_line.load(str(folder / "file.py"))


def read_sweep_config(folder):
    load_sweep(str(folder / "sweep.py"))


DOCUMENTS = {
    **dict.fromkeys(("a.jsonl", "a.json"), expect_json_lines),
    **dict.fromkeys(("a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.txt.gz"), SAME),
    **{"a.csv": expect_csv, "a.tsv": expect_csv, "a.txt": expect_text},
    **{"a.parquet": SAME, "a.array_record": SAME},
}
READERS = [
    Reader("packed_file.read", "packed", "weights*", read_packed, SAME, 6),
    Reader("packed_file.read, mixed", "packed-mixed", "weights*", read_packed, SAME, 4),
    Reader("evaluate --packed", "packed", "weights*", run_evaluate("packed"), SAME),
    Reader("generate --packed", "packed-mixed", "weights*", run_generate("packed"), SAME),
    Reader(
        "packed_file, forged", "packed", "weights*", read_packed, ANY, 5, mutations.forge_packed
    ),
    Reader(
        "evaluate --packed, forged",
        "packed-mixed",
        "weights*",
        run_evaluate("packed"),
        ANY,
        2,
        mutations.forge_packed,
    ),
    Reader("load_run", "run", "**/*", read_run, SAME, 6),
    Reader("evaluate --workdir", "run", "**/*", run_evaluate("workdir"), SAME),
    Reader("generate --workdir", "run", "**/*", run_generate("workdir"), SAME),
    Reader("train, resumed", "run", "**/*", resume, SAME, 3),
    Reader("huggingface.load, gpt2", "gpt2", "[cm]*", read_hf, expect_hf, 5),
    Reader("huggingface.load, shards", "llama", "[cm]*", read_hf, expect_hf, 5),
    Reader("evaluate --hf, gpt2", "gpt2", "*", run_evaluate("hf"), ANY, 2),
    Reader("evaluate --hf, shards", "llama", "*", run_evaluate("hf"), ANY, 2),
    Reader("generate --hf", "llama", "*", run_generate("hf"), ANY),
    Reader("init_from", "gpt2", "[cm]*", read_start, ANY, 2),
    Reader("tokens.load, prepared", "tokens", "*", read_tokens, SAME, 6),
    Reader("tokens.load, forged", "tokens", "index*", read_tokens, ANY, 3, mutations.forge_index),
    Reader("tokenizer of prepared data", "tokens-json", "[it]*", read_prepared_tokenizer, SAME, 3),
    Reader("tokenizer of a run", "copied", "tokenizer/*", read_copied_tokenizer, SAME, 3),
    Reader("tokens.load, nanoGPT", "nanogpt", "*", read_bin, expect_bin, 2),
    Reader("tokens.load, llm.c", "llm.c", "*", read_bin, expect_bin, 3),
    *(Reader(f"documents, {n}", n, "*", read_documents, e, 2) for n, e in DOCUMENTS.items()),
    Reader("data.files", "a.txt", "*", read_source, expect_source),
    Reader("data.prepare", "a.jsonl.gz", "*", run_prepare, SAME, 2),
    *(
        Reader(f"tokenizer.{k}", f"tokenizer.{k}", "*", read_tokenizer, ANY, 4)
        for k in ("json", "model", "tiktoken")
    ),
    Reader("plot, tables", "plotted", "*", read_records, ANY, 5),
    Reader("plot", "plotted", "*", run_plot, ANY),
    Reader("metrics at a resume", "plotted", "[mb]*", resume_records, expect_records, 4),
    Reader("sweep_table.read", "sweep", "**/*", read_sweep, expect_sweep, 4),
    Reader("lab.report", "sweep", "**/*", run_report, ANY),
    Reader("train --config", "configs", "file*", read_config, ANY, 5),
    Reader("lab.sweep --config", "configs", "sweep*", read_sweep_config, ANY, 2),
]
