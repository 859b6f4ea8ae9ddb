# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Every reader of files, and what an accepted file must have given.

A file that has a digest of its content must give what the intact one gives, or be refused: that is
`SAME`. Files without one are compared with what another reader makes of them (the functions named
`expect_…`), or with nothing (`ANY`): another number in a config is another valid config.
"""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import mutations, records, text, weights
from pqt_jax.interchange.layouts import LAYOUTS

SAME, ANY = "same", "any"


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
    expect: Callable[[Path], Any] | str
    weight: int = 1
    damage: Callable[[random.Random, Path], str] = mutations.mutate


DOCUMENTS = {
    **dict.fromkeys(("a.jsonl", "a.json"), text.expect_json_lines),
    **dict.fromkeys(("a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.txt.gz"), SAME),
    **{"a.csv": text.expect_csv, "a.tsv": text.expect_csv, "a.txt": text.expect_text},
    **{"a.parquet": SAME, "a.array_record": SAME},
}
READERS = [
    Reader("packed_file.read", "packed", "weights*", weights.read_packed, SAME, 6),
    Reader("packed_file.read, mixed", "packed-mixed", "weights*", weights.read_packed, SAME, 4),
    Reader("evaluate --packed", "packed", "weights*", weights.run_evaluate("packed"), SAME),
    Reader("generate --packed", "packed-mixed", "weights*", weights.run_generate("packed"), SAME),
    Reader(
        "packed_file, forged",
        "packed",
        "weights*",
        weights.read_packed,
        ANY,
        5,
        mutations.forge_packed,
    ),
    Reader(
        "evaluate --packed, forged",
        "packed-mixed",
        "weights*",
        weights.run_evaluate("packed"),
        ANY,
        2,
        mutations.forge_packed,
    ),
    Reader("load_run", "run", "**/*", weights.read_run, SAME, 6),
    Reader("evaluate --workdir", "run", "**/*", weights.run_evaluate("workdir"), SAME),
    Reader("generate --workdir", "run", "**/*", weights.run_generate("workdir"), SAME),
    Reader("train, resumed", "run", "**/*", weights.resume, SAME, 3),
    Reader("huggingface.load, gpt2", "gpt2", "[cm]*", weights.read_hf, weights.expect_hf, 5),
    Reader("huggingface.load, shards", "llama", "[cm]*", weights.read_hf, weights.expect_hf, 5),
    Reader("huggingface.load, qwen3", "qwen3", "[cm]*", weights.read_hf, weights.expect_hf, 5),
    *(Reader(f"huggingface.load, {n}", n, "[cm]*", weights.read_hf, ANY, 3) for n in LAYOUTS),
    Reader("evaluate --hf, gpt2", "gpt2", "*", weights.run_evaluate("hf"), ANY, 2),
    Reader("evaluate --hf, shards", "llama", "*", weights.run_evaluate("hf"), ANY, 2),
    Reader("generate --hf", "llama", "*", weights.run_generate("hf"), ANY),
    Reader("gguf_model.load", "gguf", "*", weights.read_gguf, ANY, 6),
    Reader("gguf_model.load, gpt2", "gguf-gpt2", "*", weights.read_gguf, ANY, 3),
    Reader("evaluate --gguf", "gguf", "*", weights.run_evaluate("gguf"), ANY),
    Reader("generate --gguf", "gguf", "*", weights.run_generate("gguf"), ANY),
    Reader("init_from", "gpt2", "[cm]*", weights.read_start, ANY, 2),
    Reader("tokens.load, prepared", "tokens", "*", text.read_tokens, SAME, 6),
    Reader(
        "tokens.load, forged", "tokens", "index*", text.read_tokens, ANY, 3, mutations.forge_index
    ),
    Reader(
        "tokenizer of prepared data", "tokens-json", "[it]*", text.read_prepared_tokenizer, SAME, 3
    ),
    Reader("tokenizer of a run", "copied", "tokenizer/*", text.read_copied_tokenizer, SAME, 3),
    Reader("tokens.load, nanoGPT", "nanogpt", "*", text.read_bin, text.expect_bin, 2),
    Reader("tokens.load, llm.c", "llm.c", "*", text.read_bin, text.expect_bin, 3),
    *(Reader(f"documents, {n}", n, "*", text.read_documents, e, 2) for n, e in DOCUMENTS.items()),
    Reader("data.files", "a.txt", "*", text.read_source, text.expect_source),
    Reader("data.prepare", "a.jsonl.gz", "*", text.run_prepare, SAME, 2),
    *(
        Reader(f"tokenizer.{k}", f"tokenizer.{k}", "*", text.read_tokenizer, ANY, 4)
        for k in ("json", "model", "tiktoken")
    ),
    Reader("plot, tables", "plotted", "a/*", records.read_tables, ANY, 5),
    Reader("plot", "plotted", "a/*", records.run_plot, ANY),
    Reader(
        "metrics at a resume",
        "plotted",
        "a/[mb]*",
        records.resume_records,
        records.expect_records,
        4,
    ),
    Reader("sweep_table.read", "sweep", "**/*", records.read_sweep, records.expect_sweep, 4),
    Reader("lab.report", "sweep", "**/*", records.run_report, ANY),
    Reader("train --config", "configs", "file*", records.read_config, ANY, 5),
    Reader("lab.sweep --config", "configs", "sweep*", records.read_sweep_config, ANY, 2),
]
